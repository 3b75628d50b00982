"""Result files: measurements with the facts of the machine they were made on, the README of a question, and the summary of all questions."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def machine() -> dict[str, Any]:
    """What somebody must know to compare a figure with theirs."""
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cores": os.cpu_count(),
        "cpu": model[0] if model else platform.machine(),
        "memory_gib": round(int(memory.split()[1]) / 2**20),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        "commit": commit,
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
    }


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
        "p99": round(quantile(values, 0.99), 4),
        "max": round(max(values), 4),
    }


def write(question: str, data: dict[str, Any], table: str, measures: Sequence[dict[str, Any]]) -> None:
    """Writes results/latest.json, the table into the README between its marks, and the measures into summary.json.

    A measure is {id, unit, ours, goal, met} and whatever else tells it apart.
    """
    folder = HERE / question
    facts = machine()
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results/latest.json").write_text(json.dumps({"machine": facts, **data}, indent=1) + "\n")
    readme = folder / "README.md"
    begin, end = "<!-- table -->", "<!-- /table -->"
    text = readme.read_text()
    head, rest = text.split(begin, 1)
    tail = rest.split(end, 1)[1]
    about = f"{facts['cores']} cores ({facts['cpu']}), {facts['memory_gib']} GiB, Linux {facts['kernel']}, {facts['at']}, commit {facts['commit']}"
    readme.write_text(f"{head}{begin}\n{table}\n\nMeasured on: {about}.\n{end}{tail}")
    summary = HERE / "summary.json"
    known = json.loads(summary.read_text()) if summary.exists() else []
    names = {m["id"] for m in measures}
    known = [m for m in known if m["id"] not in names] + [{**m, "machine": facts} for m in measures]
    summary.write_text(json.dumps(sorted(known, key=lambda m: m["id"]), indent=1) + "\n")


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)
