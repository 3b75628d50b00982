"""K2, E2 with real processes: ranks of a gloo group are stopped by a round at a random moment, killed, and resumed."""

import random
import time
from pathlib import Path
from typing import Any

import pytest
from ddp_ranks import Job, finished, kill, start
from fake_agent import FakeAgent

from tests.matrix.compare import unequal


def stopped_and_resumed(job: Job, directory: Path, seed: int, **changes: Any) -> tuple[list[dict[str, Any]], int]:
    """A job that is stopped by a round at a random moment and killed, then resumed from what was captured."""
    rng = random.Random(seed)
    first = Job(
        **{
            **vars(job),
            **changes,
            "directory": directory / "first",
            "socket": str(directory / "a" / "agent.sock"),
            "step_seconds": 0.02,
        }
    )
    with FakeAgent(directory / "a") as agent:
        ranks = start(first)
        try:
            agent.wait(lambda: len(agent.connections) == job.world, "all ranks to say hello")
            agent.wait(
                lambda: all(any(type(m).__name__ == "Passed" for m in c.messages) for c in agent.connections.values()),
                "steps",
            )
            time.sleep(rng.random() * 0.1)
            target = agent.start_round(1, world=job.world)
            captured = agent.await_round(1, world=job.world)
            assert set(captured.values()) == {target}, "all ranks stop at the same boundary"
            images = {rank: [agent.images[rank][target]] for rank in range(job.world)}
        finally:
            kill(ranks)
    second = Job(
        **{**vars(job), **changes, "directory": directory / "second", "socket": str(directory / "b" / "agent.sock")}
    )
    with FakeAgent(directory / "b") as agent:
        agent.restore_from = images
        results = finished(second, start(second))
    assert {r["first"] for r in results} == {target + 1}
    return results, target


def differences(want: list[dict[str, Any]], got: list[dict[str, Any]]) -> list[str]:
    """What is not bitwise equal, by rank."""
    found = []
    for rank, (a, b) in enumerate(zip(want, got, strict=True)):
        found += [
            f"rank {rank}, loss of step {d}" for d in unequal({n: a["losses"][n] for n in b["losses"]}, b["losses"])
        ]
        last = {"weights": a["weights"], "rng": a["rng"], "samples": a["samples"][-len(b["samples"]) :]}
        found += [f"rank {rank}: {d}" for d in unequal(last, {name: b[name] for name in last})]
    return found


VARIANTS = {
    "small buckets": {"bucket_cap_mb": 0.1},
    "gradients as views of buckets": {"bucket_cap_mb": 0.1, "as_views": True},
    "a round inside an accumulation window": {"accumulate": 3},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_four_ranks_resume_bitwise_after_a_round_at_a_random_moment(name: str, tmp_path: Path) -> None:
    job = Job(world=4, directory=tmp_path / "whole", **VARIANTS[name])  # type: ignore[arg-type]
    want = finished(job, start(job))
    got, target = stopped_and_resumed(job, tmp_path, seed=len(name))
    assert differences(want, got) == [], f"stopped at {target}"


@pytest.mark.parametrize("cap_mb", [0.1, 100], ids=["several buckets", "one bucket"])
def test_without_settled_buckets_four_ranks_do_not_resume_bitwise(cap_mb: float, tmp_path: Path) -> None:
    """K2: the measure is needed, not decoration. One bucket is no way round it: the order inside it changes."""
    job = Job(world=4, directory=tmp_path / "whole", settle=False, bucket_cap_mb=cap_mb)
    want = finished(job, start(job))
    got, _ = stopped_and_resumed(job, tmp_path, seed=1)
    assert any("weights" in d for d in differences(want, got))
