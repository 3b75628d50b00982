"""How many preemptions end with a checkpoint that is at most one step old? Thousands in simulated time, a few with real agents in real time."""

import dataclasses
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.preemptions_sealed import real
from benchmarks.preemptions_sealed.simulate import Result, simulate
from benchmarks.preemptions_sealed.world import World, draw, draw_on_nodes

QUICK = os.environ.get("QUICK", "") not in ("", "0")
SIMULATED = {"mid-step": 3000, "boundary only": 1000}
ON_NODES = 1000
REAL = 2 if QUICK else 10


def main() -> None:
    logging.disable(logging.CRITICAL)
    rows, data, measures = [], {}, []
    for name, number in SIMULATED.items():
        mid_step = name == "mid-step"
        found = simulated([draw(seed, mid_step=mid_step) for seed in range(number // 15 if QUICK else number)])
        for budget in (15.0, 30.0):
            part = [r for r in found if r.world.budget == budget]
            rows.append((f"simulated, {name}", f"{budget:.0f} s", *_row(part)))
        data[name] = _data(found)
        measures.append(_measure(name, found))
    nodes, data["on nodes"] = _on_nodes(ON_NODES // 15 if QUICK else ON_NODES)
    logging.disable(logging.NOTSET)
    seen = real.run(range(REAL))
    if isinstance(seen, str):
        data["real agents"] = {"skipped": seen}
    else:
        data["real agents"] = {"runs": [{f: getattr(r, f) for f in real.Real.__slots__} for r in seen]}
        for budget in (15, 30):
            part = [r for r in seen if r.budget == budget]
            slowest = max((r.ended_after for r in part), default=0.0)
            failed = sum(not r.sealed for r in part)
            rows.append(("real agents, boundary only", f"{budget} s", len(part), failed, 0, 0, "-", f"{slowest:.1f}"))
        measures.append({
            "id": "preemptions_sealed.real",
            "what": f"preemptions of real agents not sealed at most one step old, of {len(seen)} (small state, throttled store)",
            "unit": "", "ours": sum(not r.sealed for r in seen), "goal": 0, "met": all(r.sealed for r in seen),
        })  # fmt: skip
    header = ("what", "budget", "preemptions", "not sealed", "of these, nobody could have",
              "records after the deadline", "sealed after, median, s", "slowest")  # fmt: skip
    table = results.markdown(header, rows) + "\n\n" + nodes
    print(table, flush=True)
    results.write("preemptions_sealed", data, table, measures)


def simulated(worlds: Sequence[World]) -> list[Result]:
    found = []
    with tempfile.TemporaryDirectory(prefix="holdfast-simulated-") as folder:
        for number, world in enumerate(worlds, 1):
            found.append(simulate(world, Path(folder)))
            if number % 500 == 0:
                print(f"   {number} simulated, {sum(not r.sealed for r in found)} not sealed", flush=True)
    return found


def _on_nodes(number: int) -> tuple[str, dict[str, Any]]:
    """The same preemptions with machines that stay and with machines that go: what is sealed, what is finished by those who return, what is lost."""
    worlds = [draw_on_nodes(seed) for seed in range(number)]
    stay = simulated(worlds)
    go = simulated([dataclasses.replace(w, node=0.0) for w in worlds])
    parts = {
        "machines go": go,
        "machines stay, all pods come back to them": [r for r in stay if r.world.returns],
        "machines stay, one pod does not come back": [r for r in stay if not r.world.returns],
    }
    rows, data = [], {}
    for name, found in parts.items():
        sealed, kept = sum(r.sealed for r in found), sum(r.kept for r in found)
        lost = [r.boundary_at_notice - max(r.committed, r.resumed) for r in found if not r.kept]
        # Training that has to be done again, beside what the claim has waited.
        again = sum(n * r.world.step for n, r in zip(lost, [r for r in found if not r.kept], strict=True))
        waited = [r.waited for r in found if r.kept and not r.sealed]
        rows.append((
            name, len(found), sealed, kept - sealed, len(found) - kept, f"{again / max(1, len(found)):.1f}",
            f"{results.spread(waited)['median']:.1f}" if waited else "-", f"{max(waited):.1f}" if waited else "-",
        ))  # fmt: skip
        data[name] = {
            "preemptions": len(found), "sealed": sealed, "finished": kept - sealed, "lost": len(found) - kept,
            "seconds_done_again": again, "waited_for_nothing": sum(r.waited > 1 for r in found if not r.kept),
        }  # fmt: skip
    header = ("on nodes", "preemptions", "sealed", "finished by those who return", "steps are lost",
              "done again, mean, s", "the claim waited, median, s", "longest")  # fmt: skip
    return results.markdown(header, rows), data


def _row(found: Sequence[Result]) -> tuple[object, ...]:
    failed = [r for r in found if not r.sealed]
    after = [r.sealed_after for r in found if r.sealed_after is not None]
    times = results.spread(after)
    return (
        len(found), len(failed), sum(not r.possible for r in failed), sum(r.late_commits for r in found),
        f"{times['median']:.1f}", f"{times['max']:.1f}",
    )  # fmt: skip


def _data(found: Sequence[Result]) -> dict[str, Any]:
    plans = Counter(f"{p.choice}: {p.outcome or 'under way'}" for r in found for p in r.plans)
    return {
        "preemptions": len(found),
        "not_sealed": [
            {
                "seed": r.world.seed, "possible": r.possible, "boundary_at_notice": r.boundary_at_notice, "committed": r.committed,
                "plans": [[p.choice, p.boundary, p.outcome, p.chance, p.likely_seconds, p.took_seconds] for p in r.plans],
            }
            for r in found if not r.sealed
        ],
        "ended_after_the_deadline": sum(r.ended_after is not None and r.ended_after > r.world.budget for r in found),
        "plans": dict(sorted(plans.items())),
    }  # fmt: skip


def _measure(name: str, found: Sequence[Result]) -> dict[str, Any]:
    failed = sum(not r.sealed for r in found)
    impossible = sum(not r.sealed and not r.possible for r in found)
    goal = name == "mid-step"
    return {
        "id": f"preemptions_sealed.{name.replace(' ', '_')}",
        "what": f"simulated preemptions ({name}, 15 and 30 s, state of 60 % of the budget, steps up to 5 s) not sealed at most one step old, of {len(found)}",
        "unit": "", "ours": failed, "impossible": impossible, "goal": 0 if goal else None, "met": failed == 0 if goal else None,
    }  # fmt: skip


if __name__ == "__main__":
    main()
