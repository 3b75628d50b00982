"""K2 for state of which each rank holds a part: FSDP2, tensor parallel and both, as real processes on gloo, stopped by a round, killed and resumed."""

from pathlib import Path

import pytest
from ddp_ranks import SHARDED, Job, finished, start
from test_train_ddp_resume import differences, stopped_and_resumed


@pytest.mark.parametrize(
    ("shard", "world"),
    [("FSDP2", 2), *((name, 4) for name in SHARDED)],
)
def test_ranks_resume_bitwise(shard: str, world: int, tmp_path: Path) -> None:
    job = Job(world=world, directory=tmp_path / "whole", shard=shard)
    want = finished(job, start(job))
    got, target = stopped_and_resumed(job, tmp_path, seed=len(shard))
    assert differences(want, got) == [], f"stopped at {target}"
    parts = [r["weights"] for r in got]
    assert parts[0] != parts[-1], "each rank holds a part of its own"


def test_gradients_of_an_open_window_are_kept_as_parts(tmp_path: Path) -> None:
    job = Job(world=2, directory=tmp_path / "whole", shard="FSDP2", accumulate=3)
    want = finished(job, start(job))
    got, target = stopped_and_resumed(job, tmp_path, seed=3)
    assert differences(want, got) == [], f"stopped at {target}"
