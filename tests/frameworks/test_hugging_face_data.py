"""The real `datasets`: tables and streams, by torch's loader and by torchdata's, go on from every boundary (K1, K2); what would lose samples is refused."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from fake_agent import FakeAgent

import holdfast


def data(*, stream: bool, shuffled: bool = False) -> Any:
    table = Dataset.from_dict({"n": list(range(12))}).with_format("torch")
    if not stream:
        return table
    found = table.to_iterable_dataset(num_shards=4)
    return found.shuffle(seed=1, buffer_size=3) if shuffled else found


LOADERS: dict[str, Callable[[], Any]] = {
    "table": lambda: DataLoader(data(stream=False), batch_size=3, shuffle=True),
    "table, workers": lambda: DataLoader(data(stream=False), batch_size=3, shuffle=True, num_workers=2),
    "shuffled stream": lambda: DataLoader(data(stream=True, shuffled=True), batch_size=3),
    "shuffled stream, workers": lambda: DataLoader(data(stream=True, shuffled=True), batch_size=3, num_workers=2),
    "table, torchdata": lambda: StatefulDataLoader(data(stream=False), batch_size=3, shuffle=True, num_workers=2),
    "stream, torchdata": lambda: StatefulDataLoader(data(stream=True), batch_size=3),
}


def train(build: Callable[[], Any], seed: int = 1) -> list[str]:
    torch.manual_seed(seed)
    loader, done = build(), []
    ckpt = holdfast.Checkpointer(loader=loader)
    ckpt.restore()
    for batch in ckpt.batches(loader, epochs=2):
        done.append(f"{ckpt.epoch} {batch['n'].tolist()} {torch.rand(()).item()}")
        ckpt.step()
    ckpt.finish()
    return done


@pytest.mark.parametrize("name", LOADERS)
def test_it_goes_on_from_every_boundary(tmp_path: Path, name: str) -> None:
    with FakeAgent(tmp_path / "agent", every_steps=1) as agent, agent.as_environment():
        want = train(LOADERS[name])
        assert len(want) == 8
        images = dict(agent.images[0])
        for at in range(1, 9):
            agent.restore_from = {0: [images[at]]}
            assert train(LOADERS[name], seed=50 + at) == want[at:], f"resumed at boundary {at}"


def test_a_shuffled_stream_whose_place_forgets_its_buffer_is_refused() -> None:
    loader = StatefulDataLoader(data(stream=True, shuffled=True), batch_size=3)
    with pytest.raises(holdfast.UnsupportedState, match=r"shuffled through a buffer: .*plain DataLoader"):
        holdfast.Checkpointer(loader=loader)
