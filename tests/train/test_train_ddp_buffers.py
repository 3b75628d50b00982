"""K2, J4: whether DistributedDataParallel hands out the first rank's buffers in its next forward is part of the state: it does not after a forward without
gradient synchronisation or without gradients, and a resumed run that did would give the other ranks statistics that they had not."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from fake_agent import FakeAgent
from torch import nn

import holdfast


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def start() -> tuple[nn.parallel.DistributedDataParallel, torch.optim.Optimizer, holdfast.Checkpointer]:
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    ckpt.restore()
    return model, optimizer, ckpt


@pytest.mark.parametrize("synchronised", [True, False])
def test_a_resumed_run_hands_buffers_out_when_the_other_would_have(
    alone: None, agent: FakeAgent, synchronised: bool
) -> None:
    model, optimizer, ckpt = start()
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    ckpt.step()
    with nullcontext() if synchronised else model.no_sync():
        model(torch.ones(3, 2)).sum().backward()
    ckpt.step()
    ckpt.finish()
    assert model.require_forward_param_sync is synchronised
    agent.restore_from = {0: [agent.newest()]}
    again, _, resumed = start()
    assert resumed.boundary == 2
    assert again.require_forward_param_sync is synchronised
