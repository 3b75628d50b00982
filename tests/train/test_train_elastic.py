"""A job that goes on with fewer workers, and then with more, under real agents: what is exact and what is not (docs/exactness.md)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from elastic_script import BATCH, SAMPLES, STANDS_AT, data, model_and_optimizer
from torch.utils.data import DistributedSampler

from holdfast.batch_share import BatchShare, batch_share, share_of
from holdfast_api import names, sources
from holdfast_api.messages import AgentPhase
from tests.agent.conftest import Gang, eventually

SCRIPT = Path(__file__).with_name("elastic_script.py")


@pytest.mark.parametrize(
    ("samples", "ranks", "at_most", "share"),
    [
        (16, 2, None, BatchShare(8, 1, 2)),
        (16, 1, None, BatchShare(16, 1, 1)),
        (16, 2, 3, BatchShare(2, 4, 2)),
        (16, 1, 8, BatchShare(8, 2, 1)),
        (30, 3, 100, BatchShare(10, 1, 3)),
        (7, 7, 1, BatchShare(1, 1, 7)),
    ],
)
def test_a_ranks_share_of_the_global_batch(samples: int, ranks: int, at_most: int | None, share: BatchShare) -> None:
    assert share_of(samples, ranks, at_most) == share
    assert share.batch * share.accumulate * ranks == samples


def test_what_cannot_be_shared_is_refused_with_the_numbers_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"16 samples has no equal shares for 3 ranks; numbers that have: 1, 2, 4, 8, 16"
    ):
        share_of(16, 3)
    with pytest.raises(ValueError, match="at least 1"):
        share_of(0, 1)
    monkeypatch.delenv(names.ENV_GLOBAL_BATCH, raising=False)
    with pytest.raises(ValueError, match=r"spec\.elastic\.globalBatch"):
        batch_share()
    monkeypatch.setenv(names.ENV_GLOBAL_BATCH, "32")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert batch_share() == BatchShare(8, 1, 4)
    with pytest.raises(ValueError, match=r"batch_share\(16\), and spec\.elastic\.globalBatch of the job is 32"):
        batch_share(16)


def test_two_one_and_two_workers_are_one_run(tmp_path: Path) -> None:
    """Every update has the samples that it has in a run that nobody disturbed, each sample comes once, and the weights differ by rounding alone."""
    gang = Gang(
        tmp_path / "job",
        script=str(SCRIPT),
        trainer=(str(tmp_path),),
        config={"every_steps": 1000},
        global_batch=BATCH,
        environ={"OMP_NUM_THREADS": "1"},
    )
    try:
        gang.start().begin()
        gang.wait_for_boundary(STANDS_AT[1])
        gang.notice(0)
        gang.wait_for_phase(AgentPhase.SEALED)
        gang.pods.pop(0).kill()
        gang.begin()
        survivor = gang.pods[1]
        assert survivor.serial == 1
        gang.wait_for_boundary(STANDS_AT[2])
        gang.new_pod(0)
        gang.notice(sources.NOBODY, source=sources.RESIZE, seconds=3600, to=[survivor])
        gang.wait_for_phase(AgentPhase.SEALED, survivor)
        assert survivor.process is not None
        assert survivor.process.poll() is None, "nobody goes"
        gang.begin()
        eventually(lambda: all(p.process.poll() is not None for p in gang.pods.values()), "all end", 120)
        assert [p.wait() for p in gang.pods.values()] == [0, 0], gang.pods[0].words()
        assert "a batch of all ranks together had" not in survivor.words(), "it has not changed"
    finally:
        gang.close()

    lives = [_updates(tmp_path, attempt) for attempt in (1, 2, 3)]
    assert [[line["world"] for line in life[0]] for life in lives] == [
        [2] * len(lives[0][0]),
        [1] * len(lives[1][0]),
        [2] * len(lives[2][0]),
    ]
    assert [life[0][0]["batch"] for life in lives] == [2, 2, 2]
    firsts = [life[0][0]["first"] for life in lives]
    assert firsts == [0, STANDS_AT[1], STANDS_AT[2]], "no update is done again"
    order = list(DistributedSampler(data(), num_replicas=1, rank=0, seed=1))
    for life, end in zip(lives, [*firsts[1:], SAMPLES // BATCH], strict=True):
        assert [line["boundary"] for line in life[0]] == list(range(life[0][0]["first"] + 1, end + 1))
        for lines in zip(*life, strict=True):
            boundary = lines[0]["boundary"]
            trained = sorted(i for line in lines for i in line["samples"])
            assert trained == sorted(order[(boundary - 1) * BATCH : boundary * BATCH]), boundary
    _assert_close(torch.load(tmp_path / "weights.pt", weights_only=True), _undisturbed(order))


def _updates(root: Path, attempt: int) -> list[list[dict[str, Any]]]:
    """Of each rank, in order."""
    pages = sorted(root.glob(f"updates-{attempt}-*.jsonl"))
    return [[json.loads(line) for line in page.read_text().splitlines()] for page in pages]


def _undisturbed(order: list[int]) -> dict[str, torch.Tensor]:
    """One process that takes each global batch at once."""
    model, optimizer = model_and_optimizer()
    rows = data().tensors[1]
    for begin in range(0, SAMPLES, BATCH):
        x = rows[order[begin : begin + BATCH]]
        (model(x) - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def _assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=0, atol=1e-9), (name, (found[name] - tensor).abs().max())
