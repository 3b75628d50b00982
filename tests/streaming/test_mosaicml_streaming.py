"""The real MosaicML streaming: shards on the disk, read by its own loader, go on from every boundary, twice within an epoch, at its end and at the last step
(K1, K2)."""

import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from fake_agent import FakeAgent
from test_train_stateful_loaders import every_boundary, in_turn

import holdfast

_number = itertools.count()


class Numbers(StreamingDataset):  # type: ignore[misc]
    def __getitem__(self, index: int) -> int:
        return int(super().__getitem__(index)["n"])


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[Path]:
    """Twelve samples in three files."""
    clean_stale_shared_memory()
    with MDSWriter(out=str(tmp_path / "shards"), columns={"n": "int"}, size_limit=240) as out:
        for n in range(12):
            out.write({"n": n})
    assert len(list((tmp_path / "shards").glob("*.mds"))) > 1
    yield tmp_path / "shards"
    clean_stale_shared_memory()


def loader(shards: Path, workers: int, shuffle: bool) -> Any:
    """As a new process would: from a copy of its own, because one process may read a directory through one data set only."""
    copy = shards.with_name(f"copy-{next(_number)}")
    shutil.copytree(shards, copy)
    data = Numbers(local=str(copy), batch_size=3, shuffle=shuffle, shuffle_seed=5, num_canonical_nodes=1)
    return StreamingDataLoader(data, batch_size=3, num_workers=workers)


@pytest.mark.parametrize(("workers", "shuffle"), [(0, True), (0, False), (2, True)])
def test_it_goes_on_from_every_boundary(tmp_path: Path, shards: Path, workers: int, shuffle: bool) -> None:
    with FakeAgent(tmp_path / "agent", every_steps=1) as agent, agent.as_environment():
        every_boundary(agent, partial(loader, shards, workers, shuffle))


def test_one_that_waits_for_its_turn_draws_neither_more_nor_less(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build: Callable[[], Any] = partial(loader, shards, 0, True)
    want = in_turn(build)
    with FakeAgent(tmp_path / "agent", every_steps=1) as agent, agent.as_environment():
        assert in_turn(build) == want
        images = dict(agent.images[0])
        for at in range(1, 12):
            agent.restore_from = {0: [images[at]]}
            assert in_turn(build, seed=50 + at) == want[at:], f"resumed at boundary {at}"


def test_it_must_be_registered(tmp_path: Path, shards: Path) -> None:
    with FakeAgent(tmp_path / "agent") as agent, agent.as_environment():
        ckpt = holdfast.Checkpointer(note=holdfast.Value(1))
        ckpt.restore()
        with pytest.raises(ValueError, match="StreamingDataLoader keeps its place by itself"):
            next(ckpt.batches(loader(shards, 0, True)))
