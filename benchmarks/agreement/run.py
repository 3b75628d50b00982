"""Tells one agent of a gang that its node goes, and reads from every rank when its gate was closed and when it was told the boundary that all stop at."""

import os
import random
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import results

HERE = Path(__file__).resolve().parent
QUICK = os.environ.get("QUICK", "") not in ("", "0")
GATES_GOAL_MS, AGREEMENT_GOAL_MS = 50, 100
LATE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Shape:
    """A gang, and how often it is told."""

    workers: int
    processes: int
    step_seconds: float
    rounds: int

    @property
    def ranks(self) -> int:
        return self.workers * self.processes

    def __str__(self) -> str:
        return f"{self.ranks} ranks of {self.workers} workers"


SHAPES = (Shape(2, 1, 0.1, 10 if QUICK else 50), Shape(8, 8, 1.0, 5 if QUICK else 30))


@dataclass(frozen=True, slots=True)
class Told:
    """One notice, in milliseconds from just before it is sent to the agent of one worker."""

    worker: int
    has_it: float
    """The agent's answer was there: it has taken the notice in."""
    first_closed: float
    all_closed: float
    """The last rank had closed its gate and voted."""
    all_told: float
    """The last rank knew the boundary."""
    boundary: int


def main() -> None:
    found = {shape: measure(shape) for shape in SHAPES}
    report(found)


def measure(shape: Shape) -> list[Told]:
    from tests.agent.conftest import Gang

    folder = Path(tempfile.mkdtemp(prefix="holdfast-agreement-"))
    times = folder / "times"
    times.touch()
    gang = Gang(
        folder / "gang",
        workers=shape.workers,
        processes=shape.processes,
        trainer=("1000000", "--step-seconds", str(shape.step_seconds)),
        script=str(HERE / "rank.py"),
        config={"every_steps": 1_000_000},
        environ={"BENCHMARK_TIMES": str(times)},
    )
    try:
        print(f"{shape}: {shape.rounds} notices", flush=True)
        gang.start().begin()
        gang.wait_for_boundary(2)
        rng = random.Random(7)
        told = [one(gang, shape, times, rng) for _ in range(shape.rounds)]
    finally:
        gang.close()
        shutil.rmtree(folder, ignore_errors=True)
    return told


def one(gang: Any, shape: Shape, times: Path, rng: random.Random) -> Told:
    """A notice that is heard by one worker, at a random moment; then by all, as the operator tells it, and taken back."""
    from holdfast_api.messages import AgentPhase

    before = {w: p.report().boundary for w, p in gang.pods.items()}
    time.sleep(rng.uniform(0.5, 1.0) + rng.uniform(0, shape.step_seconds))
    worker, position = rng.randrange(shape.workers), times.stat().st_size
    began = time.monotonic()
    gang.notice(worker, to=[gang.pods[worker]], seconds=60.0)
    has_it = time.monotonic()
    lines = heard(times, position, shape.ranks)
    gang.notice(worker, seconds=60.0)
    gang.wait_for_phase(AgentPhase.SEALED)
    gang.notice(worker, seconds=60.0, withdrawn=True)
    gang.wait_for_phase(AgentPhase.TRAINING)
    for w, pod in gang.pods.items():
        wait(lambda p=pod, b=before[w]: p.report().boundary > b, "training goes on")

    def after(at: float) -> float:
        return round((at - began) * 1000, 2)

    closed = [float(x[4]) for x in lines if x[0] == "closed"]
    told = [x for x in lines if x[0] == "told"]
    boundaries = {int(x[3]) for x in told}
    assert len(boundaries) == 1, f"ranks were told {sorted(boundaries)}"
    return Told(
        worker,
        after(has_it),
        after(min(closed)),
        after(max(closed)),
        after(max(float(x[4]) for x in told)),
        *boundaries,
    )


def heard(times: Path, position: int, ranks: int) -> list[list[str]]:
    """What the ranks have noted since, once each has noted both."""
    found: list[list[str]] = []

    def all_have() -> bool:
        with times.open("rb") as file:
            file.seek(position)
            found[:] = [line.split() for line in file.read().decode().splitlines()]
        return all(len({x[1] for x in found if x[0] == what}) == ranks for what in ("closed", "told"))

    wait(all_have, f"all {ranks} ranks are told")
    return found


def wait(condition: Any, what: str) -> None:
    """Looks rarely, so that it takes no processor from what is measured."""
    end = time.monotonic() + LATE_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {LATE_SECONDS} s: {what}")
        time.sleep(0.2)


def report(found: dict[Shape, list[Told]]) -> None:
    rows, data, measures = [], {}, []
    for shape, told in found.items():
        parts = {
            "notice sent to one agent → it has it": [t.has_it for t in told],
            "→ the first gate is closed": [t.first_closed for t in told],
            "**→ all gates are closed**": [t.all_closed for t in told],
            "**→ all ranks know the one boundary**": [t.all_told for t in told],
        }
        spreads = {name: results.spread(values) for name, values in parts.items()}
        rows += [
            (str(shape), name, s["n"], *(f"{s[k]:.1f}" for k in ("median", "p90", "p99", "max")))
            for name, s in spreads.items()
        ]
        data[str(shape)] = {"shape": asdict(shape), "notices": [asdict(t) for t in told], "spreads_ms": spreads}
        closed, agreed = (spreads[n] for n in list(spreads)[2:])
        measures += [
            _measure(f"gates_{shape.ranks}", f"→ the gates of all {shape} are closed", closed, GATES_GOAL_MS),
            _measure(f"agreed_{shape.ranks}", f"→ all {shape} know the boundary", agreed, AGREEMENT_GOAL_MS),
        ]
    table = results.markdown(("gang", "in ms", "n", "p50", "p90", "p99", "max"), rows)
    print(table, flush=True)
    results.write("agreement", data, table, measures)


def _measure(name: str, what: str, spread: dict[str, float], goal: int) -> dict[str, Any]:
    return {
        "id": f"agreement.{name}", "what": f"a notice is sent to one agent {what}, the slowest of {spread['n']}", "unit": "ms", "ours": round(spread["max"], 1),
        **{k: spread[k] for k in ("n", "median", "p90", "p99", "max")}, "goal": goal, "met": spread["max"] <= goal,
    }  # fmt: skip


if __name__ == "__main__":
    main()
