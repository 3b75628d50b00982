"""K2, I2: under Accelerate a run goes on bit by bit from every boundary, also inside an accumulation window, which the accelerator counts by itself."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from fake_agent import FakeAgent

from holdfast.integrations.accelerate import Checkpointer


def train(seed: int, accumulate: int) -> list[str]:
    """Loss and learning rate of each batch, then the weights."""
    AcceleratorState._reset_state(True)  # a new process has none
    GradientState._reset_state()
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    model: Any = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler: Any = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.9)
    loader: Any = DataLoader(TensorDataset(x), batch_size=3, shuffle=True)  # seven batches: no whole number of windows
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    ckpt, done = Checkpointer(accelerator, model=model, optimizer=optimizer, scheduler=scheduler, loader=loader), []
    ckpt.restore()
    for (batch,) in ckpt.batches(loader, epochs=3):
        with accelerator.accumulate(model):
            loss = model(batch).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        done.append(f"{loss.item().hex()} {scheduler.get_last_lr()}")
        ckpt.step()
    ckpt.finish()
    return [*done, *(t.numpy().tobytes().hex() for t in model.state_dict().values())]


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_it_goes_on_from_every_boundary(tmp_path: Path, accumulate: int) -> None:
    with FakeAgent(tmp_path / "agent", every_steps=1) as agent, agent.as_environment():
        want = train(1, accumulate)
        images = dict(agent.images[0])
        assert sorted(images) == list(range(1, 22))
        for at in images:
            agent.restore_from = {0: [images[at]]}
            assert train(random.randrange(2, 1000), accumulate) == want[at:], f"resumed at boundary {at}"
