"""From rounds to the table, the picture and the measures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.harness import plot
from benchmarks.time_to_resume import peers
from benchmarks.time_to_resume.ways import WAYS
from hack.demo import show

HERE = Path(__file__).resolve().parent
GOAL_AGENT_MS, GOAL_RATIO, GOAL_WHOLE = 250, 0.35, 1.15
TITLES = {
    **{
        f"{w.name}{more}": f"{w.title}{words}"
        for w in WAYS
        for more, words in (("", ""), ("-warm", ", with `spec.warmStart: On`"))
    },
    "spot": "spot notice on the node: the worker leaves for another one",
    "job": f"peer (a): {peers.PlainJob.TITLE}",
    "gang": f"peer (b): {peers.Gang.TITLE}",
}
NOTICE = ("spot", *(f"{w.name}{more}" for w in WAYS if w.notice for more in ("", "-warm")))
WITHOUT = tuple(f"{w.name}{more}" for w in WAYS if not w.notice for more in ("", "-warm"))
PEERS = ("job", "gang")
OURS_COLOUR, PEER_COLOUR = "#1f77b4", "#b0b0b0"
Round = dict[str, Any]
Groups = dict[tuple[str, int], list[Round]]


def report(rounds: Sequence[Round], *, every: int) -> None:
    groups = grouped(rounds)
    parts = [totals_table(groups), "Phases, median / p99 in ms:", phases_table(groups)]
    if restarts := peers_table(groups):
        parts += ["The peers' phases, median / p99 in ms:", restarts]
    parts += [sources(rounds), "![by way](results/plot.svg)"]
    results.write("time_to_resume", {"rounds": list(rounds)}, "\n\n".join(parts), measures(groups, every=every))
    bars = [
        (f"{kind}, {workers} workers", results.quantile(totals(r), 0.5), totals(r), PEER_COLOUR if kind in PEERS else OURS_COLOUR)
        for (kind, workers), r in groups.items()
    ]  # fmt: skip
    plot.draw(HERE / "results/plot.svg", bars, "ms from the loss or its notice to the first new step")


def grouped(rounds: Sequence[Round]) -> Groups:
    """By kind and number of workers, in the order of TITLES. Pure."""
    keys = sorted({(r["kind"], r["workers"]) for r in rounds}, key=lambda k: (list(TITLES).index(k[0]), k[1]))
    return {k: [r for r in rounds if (r["kind"], r["workers"]) == k] for k in keys}


def totals(rounds: Sequence[Round]) -> list[float]:
    return [r["total_ms"] for r in rounds]


def totals_table(groups: Groups) -> str:
    base = groups.get(("job", 2))
    against = results.quantile(totals(base), 0.5) if base else None
    rows = []
    for (kind, workers), r in groups.items():
        half, most = (results.quantile(totals(r), q) for q in (0.5, 0.99))
        ratio = f"{half / against:.2f}" if against else ""
        lost = max(x["steps_lost"] for x in r)
        rows.append((f"**{kind}**: {TITLES[kind]}", workers, len(r), round(half), round(most), ratio, lost))
    header = ("how the worker went", "workers", "n", "median, ms", "p99", "median / (a)", "steps lost, most")
    return results.markdown(header, rows)


def phases_table(groups: Groups) -> str:
    ours = {k: r for k, r in groups.items() if k[0] not in PEERS}
    header = ("phase", "until", *(f"{kind}, {workers}" for kind, workers in ours))
    return results.markdown(header, [(n, words, *_cells(ours, n)) for n, words in show.PHASES.items()])


def peers_table(groups: Groups) -> str:
    theirs = {k: r for k, r in groups.items() if k[0] in PEERS}
    names = list(next(iter(theirs.values()))[0]["phases_ms"]) if theirs else []
    return (
        results.markdown(("phase", *(k for k, _ in theirs)), [(n, *_cells(theirs, n)) for n in names]) if names else ""
    )


def _cells(groups: Groups, phase: str) -> list[str]:
    each = [[r["phases_ms"].get(phase, 0) for r in rounds] for rounds in groups.values()]
    return [f"{results.quantile(v, 0.5):.0f} / {results.quantile(v, 0.99):.0f}" for v in each]


def sources(rounds: Sequence[Round]) -> str:
    """A measurement in pieces says so."""
    pieces = sorted({(r["at"], r["commit"]) for r in rounds})
    return "Measured in " + ", ".join(f"{at} (commit {commit})" for at, commit in pieces) + "."


def measures(groups: Groups, *, every: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    base, gang = groups.get(("job", 2)), groups.get(("gang", 2))
    theirs = {TITLES[k[0]]: results.spread(totals(r)) for k, r in groups.items() if k[0] in PEERS}
    for (kind, workers), r in groups.items():
        if kind in PEERS:
            continue
        s = results.spread(totals(r))
        ratio = s["median"] / results.quantile(totals(base), 0.5) if base and workers == 2 else None
        goal = GOAL_RATIO if kind in ("handover", "handover-warm") and workers == 2 else None
        found.append({
            "id": f"time_to_resume.{kind}" + (f".{workers}" if workers != 2 else ""),
            "what": f"{TITLES[kind]}, {workers} workers → first new step, median of {len(r)}",
            "unit": "ms", "ours": round(s["median"]), **s, "peers": theirs, "ratio": ratio and round(ratio, 3), "goal": goal, "goal_on": "ratio",
            "met": ratio <= goal if goal and ratio else None,
        })  # fmt: skip
    handover = groups.get(("handover", 2))
    floor = unavoidable(base, gang)
    if handover and floor:
        whole = results.quantile(totals(handover), 0.5)
        found.append({
            "id": "time_to_resume.whole", "what": f"handover / the longest single phase that nobody avoids ({floor[0]}, of the peers in the same run)",
            "unit": "ms", "ours": round(whole), "floor": round(floor[1]), "floor_name": floor[0], "ratio": round(whole / floor[1], 3),
            "goal": GOAL_WHOLE, "goal_on": "ratio", "met": whole <= GOAL_WHOLE * floor[1],
        })  # fmt: skip
    for name, words, goal, kinds in (
        ("lost_with_notice", "steps lost with a notice of 15 s or more, the most", 0, NOTICE),
        ("lost_without", f"steps lost without notice, the most (one interval is {every})", every, WITHOUT),
    ):  # fmt: skip
        lost = [x["steps_lost"] for k, r in groups.items() if k[0] in kinds for x in r]
        if lost:
            what = f"{words} of {len(lost)}"
            met = max(lost) <= goal
            found.append({"id": f"time_to_resume.{name}", "what": what, "unit": "steps", "ours": max(lost), "goal": goal, "met": met})  # fmt: skip
    if heard := [r["notice_to_agent_ms"] for r in groups.get(("spot", 2), [])]:
        s = results.spread(heard)
        found.append({
            "id": "time_to_resume.agent", "what": f"a spot notice is put on a node → the agent has it, the slowest of {len(heard)}",
            "unit": "ms", "ours": round(s["max"]), "median": s["median"], "goal": GOAL_AGENT_MS, "met": s["max"] <= GOAL_AGENT_MS,
        })  # fmt: skip
    return found


def unavoidable(job: Sequence[Round] | None, gang: Sequence[Round] | None) -> tuple[str, float] | None:
    """(name, median ms) of the longest of: a pod is scheduled and its launcher starts (gang: nothing else is waited for there), Python and torch are imported
    by all ranks at once. Pure."""
    found = []
    if gang:
        found.append(("pod and launcher", results.quantile([r["phases_ms"]["pods and launcher"] for r in gang], 0.5)))
    if both := [*(job or []), *(gang or [])]:
        found.append(("import", results.quantile([r["phases_ms"]["import"] for r in both], 0.5)))
    return max(found, key=lambda f: f[1]) if found else None
