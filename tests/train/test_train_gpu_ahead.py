"""C3, J5 over CUDA: the image is page-locked while it is being fetched, and the GPU is filled straight out of it. What test_train_ahead.py does with a fake."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_ahead import BeginsFirst, Image, begun, bits, fetch, made, ready, slot, until_prepared
from torch import nn

import holdfast
from holdfast import ahead, mapped, upload
from holdfast_api import ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
__all__ = ["made"]  # a fixture


@pytest.fixture
def memory() -> Iterator[Path]:
    """The kernel lets nobody lock pages of a disk's file."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def agent(memory: Path) -> Iterator[BeginsFirst]:
    with BeginsFirst(memory / "agent") as running, running.as_environment():
        yield running


class Run:
    """A model on the GPU with tensors larger and smaller than a range, and the state of its optimizer."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(700, 1100), nn.Linear(1100, 300).bfloat16(), nn.BatchNorm1d(300)
        ).cuda()  # fmt: skip
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.ckpt = holdfast.Checkpointer(model=self.model, optimizer=self.optimizer)

    def step(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ckpt.step()

    def state(self) -> dict[str, torch.Tensor]:
        found = {f"model.{k}": bits(t).cpu() for k, t in self.model.state_dict().items()}
        for i, state in enumerate(self.optimizer.state.values()):
            found |= {f"state.{i}.{k}": bits(t).cpu() for k, t in state.items()}
        return found


def saved(agent: BeginsFirst, seed: int) -> tuple[dict[str, torch.Tensor], Image]:
    run = Run(seed)
    run.ckpt.restore()
    run.step()
    run.ckpt.finish()
    image = agent.newest()
    kept = image.path.with_name(f"kept-{seed}")
    shutil.copyfile(image.path, kept)
    return run.state(), Image(kept, image.boundary, "", image.entries, image.message)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[k]) for k, t in one.items())


@pytest.mark.parametrize("range_bytes", [1 << 20, 128 << 20])
def test_what_is_fetched_after_it_was_locked_is_what_the_gpu_gets(
    agent: BeginsFirst, made: list[ahead.Ahead], memory: Path, range_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two checkpoints one after the other in the same slot, the second: another worker has rejected the first."""
    monkeypatch.setattr(mapped, "RANGE_BYTES", range_bytes)
    _, rejected = saved(agent, 1)
    state, image = saved(agent, 2)
    path, run, locked, small, real = slot(memory, image), Run(3), list[int](), list[int](), upload._load
    before = run.state()

    def load(buffer: torch.Tensor, batch: Any, pool: Any) -> None:
        small.extend(t.numel() for t, _ in batch)
        real(buffer, batch, pool)

    def first(connection: Any) -> ranks.FromAgent:
        connection.send(begun(path))
        until_prepared(made, 1)
        twin = made[0]._twin
        assert twin is not None
        assert twin.trouble == ""
        locked.append(twin.locked_bytes)
        fetch(rejected, path)
        assert equal(run.state(), before), "nothing has reached a tensor"
        connection.send(begun(path))
        fetch(image, path)
        return ready(path, image, finite=True)

    monkeypatch.setattr(upload, "_load", load)
    agent.first = first
    run.ckpt.restore()
    assert equal(run.state(), state)
    assert locked == [path.stat().st_size]
    assert max(small) <= upload.SMALL_BYTES, "the large ones go straight"
    assert len(made) == 1
    run.step()
    run.ckpt.finish()


def test_nothing_stays_locked_after_the_load(agent: BeginsFirst, made: list[ahead.Ahead], memory: Path) -> None:
    _, image = saved(agent, 4)
    path, run = slot(memory, image), Run(5)

    def first(connection: Any) -> ranks.FromAgent:
        connection.send(begun(path))
        until_prepared(made, 1)
        fetch(image, path)
        return ready(path, image, finite=True)

    agent.first = first
    run.ckpt.restore()
    address = made[0]._twin.bytes.data_ptr()  # type: ignore[union-attr]
    answers: list[int] = []
    again = threading.Thread(target=lambda: answers.append(int(torch.cuda.cudart().cudaHostUnregister(address))))
    again.start()  # an error of CUDA stays with its thread
    again.join()
    assert answers[0] != 0, "it is not registered any more"
    assert not mapped._twins
    run.ckpt.finish()
    assert os.stat(path).st_size == image.path.stat().st_size
