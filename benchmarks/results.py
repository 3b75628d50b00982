"""Result files: measurements with the facts of the machine they were made on, the README of a question, and the summary of all questions."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- table -->", "<!-- /table -->"
_BUSY_WITH = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_began: list[int] = []
_NOTHING = {
    "floor": None,
    "floor_name": "",
    "peers": {},
    "ratio": None,
    "goal": None,
    "at_least": False,
    "goal_on": "ours",
    "met": None,
}
_SPREAD = ("n", "min", "median", "p50", "p90", "p99", "max")


def machine() -> dict[str, Any]:
    """What somebody must know to compare a figure with theirs."""
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cores": os.cpu_count(),
        "cpu": model[0] if model else platform.machine(),
        "memory_gib": round(int(memory.split()[1]) / 2**20),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors_percent": _processors(),
        "commit": commit(),
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
    }


def begin() -> None:
    """Called when a question begins, so that its results can say what the machine was busy with until they were written."""
    _began[:] = _ticks()


def _ticks() -> list[int]:
    return [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1 : 1 + len(_BUSY_WITH)]]


def _processors() -> dict[str, float]:
    """Shares of all cores. `nice` is work of low priority: builds, or somebody else's; nothing that is measured here."""
    spent = [now - then for now, then in zip(_ticks(), _began or [0] * len(_BUSY_WITH), strict=True)]
    return {name: round(100 * n / max(1, sum(spent)), 1) for name, n in zip(_BUSY_WITH, spent, strict=True)}


def commit() -> str:
    """What was measured. The benchmarks themselves do not count: writing results changes them."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=HERE.parent, capture_output=True, text=True, check=False).stdout

    changed = git("status", "--porcelain", "--", ".", ":!benchmarks").strip()
    return git("rev-parse", "--short", "HEAD").strip() + (" with changes" if changed else "")


def quantile(values: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * q
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "n": len(values),
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "p90": round(quantile(values, 0.90), 4),
        "p99": round(quantile(values, 0.99), 4),
        "max": round(max(values), 4),
    }


def write(question: str, data: dict[str, Any], table: str, measures: Sequence[dict[str, Any]]) -> None:
    """Writes results/latest.json, the table into the README between its marks, and the measures into summary.json and the README of all questions.

    A measure is {id, what, unit, ours, goal, met} and whatever else tells it apart. Without a goal `goal` and `met` are None. `at_least` turns the
    goal round; with `goal_on` "ratio" it is about `ratio`. Where nothing could be measured `ours` is None and `skipped` says why.
    """
    folder = HERE / question
    facts = machine()
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results/latest.json").write_text(json.dumps({"machine": facts, **data}, indent=1) + "\n")
    shares = facts["processors_percent"]
    about = (
        f"{facts['cores']} cores ({facts['cpu']}), {facts['memory_gib']} GiB, Linux {facts['kernel']}, Python {facts['python']}, "
        f"{facts['at']}, commit {facts['commit']}. Over the run the cores were {shares['idle']:.0f} % idle and "
        f"{shares['nice']:.0f} % busy with work of low priority (nice)"
    )
    _between_marks(folder / "README.md", f"{table}\n\nMeasured on: {about}.")
    summary = HERE / "summary.json"
    known = json.loads(summary.read_text()) if summary.exists() else []
    names = {m["id"] for m in measures}
    known = [entry(m, m["machine"]) for m in known if m["id"] not in names] + [entry(m, facts) for m in measures]
    known.sort(key=lambda m: m["id"])
    summary.write_text(json.dumps(known, indent=1) + "\n")
    rows = [(m["what"], measured(m), goal(m), f"[{question_of(m)}]({question_of(m)}/)") for m in known]
    _between_marks(HERE / "README.md", markdown(("what", "measured", "goal", "question"), rows))


def entry(measure: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What summary.json says of a measure: every field, also where its question has nothing for it, so that whoever reads the file need not ask."""
    told = {name: measure[name] for name in _SPREAD if name in measure}
    return {
        "id": measure["id"],
        "what": measure["what"],
        "unit": measure["unit"],
        "ours": measure["ours"],
        **_NOTHING,
        **measure,
        "peers": measure.get("peers") or {},
        "spread": measure.get("spread") or told,
        "machine": facts,
        "commit": facts.get("commit", ""),
    }


def question_of(measure: dict[str, Any]) -> str:
    return str(measure["id"]).split(".")[0]


def measured(measure: dict[str, Any]) -> str:
    """The figure in words: a ratio with both of its sides where the goal is about one."""
    if measure["ours"] is None:
        return f"not measured: {measure.get('skipped', 'no figure')}"
    ours = f"{measure['ours']} {measure['unit']}"
    if measure.get("ratio") is None:
        return ours
    against = f"; floor {measure['floor']}" if measure.get("floor") is not None else ""
    return f"{measure['ratio']} × ({ours}{against})"


def goal(measure: dict[str, Any]) -> str:
    if measure["goal"] is None:
        return "none set"
    unit = "×" if measure.get("goal_on") == "ratio" else measure["unit"]
    words = {True: "met", False: "NOT met", None: "not measured"}[measure["met"]]
    return f"{'≥' if measure.get('at_least') else '≤'} {measure['goal']} {unit}: {words}"


def _between_marks(page: Path, text: str) -> None:
    head, rest = page.read_text().split(BEGIN, 1)
    page.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)
