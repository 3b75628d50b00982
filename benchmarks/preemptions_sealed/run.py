"""How many preemptions end with a checkpoint that is at most one step old? Thousands in simulated time, a few with real agents in real time."""

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
from benchmarks.preemptions_sealed.world import draw

QUICK = os.environ.get("QUICK", "") not in ("", "0")
SIMULATED = {"mid-step": 3000, "boundary only": 1000}
REAL = 2 if QUICK else 10


def main() -> None:
    logging.disable(logging.CRITICAL)
    rows, data, measures = [], {}, []
    for name, number in SIMULATED.items():
        found = simulated(range(number // 15 if QUICK else number), mid_step=name == "mid-step")
        for budget in (15.0, 30.0):
            part = [r for r in found if r.world.budget == budget]
            rows.append((f"simulated, {name}", f"{budget:.0f} s", *_row(part)))
        data[name] = _data(found)
        measures.append(_measure(name, found))
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
    results.write("preemptions_sealed", data, results.markdown(header, rows), measures)


def simulated(seeds: range, *, mid_step: bool) -> list[Result]:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-simulated-"))
    found = []
    for seed in seeds:
        found.append(simulate(draw(seed, mid_step=mid_step), folder))
        if (seed + 1) % 500 == 0:
            print(f"   {seed + 1} simulated, {sum(not r.sealed for r in found)} not sealed", flush=True)
    return found


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
