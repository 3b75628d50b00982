"""A loop of the user's own over epochs, with something after each: a resumed run goes on as one that was never stopped (K1, K2)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent, Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import holdfast

Loss = dict[int, tuple[float, float]]


def train(
    directory: Path, epochs: int, start: Image | None = None, *, head: bool = False, tail: bool = False, lr: float = 0.0
) -> tuple[Loss, dict[int, Image], Any]:
    """Loss and learning rate by boundary. `tail`: a scheduler is stepped after each epoch; `head`: the rate is set before each."""
    seen: Loss = {}
    with FakeAgent(directory, every_steps=1) as agent, agent.as_environment():
        agent.restore_from = {0: [start] if start else []}
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        noise, tails = torch.Generator().manual_seed(5), holdfast.Value(0)
        data = TensorDataset(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)))
        loader, test = DataLoader(data, batch_size=4, shuffle=True), DataLoader(data, batch_size=6)
        ckpt = holdfast.Checkpointer(
            model=model, optimizer=optimizer, schedule=schedule, loader=loader, noise=noise, tails=tails
        )
        ckpt.restore()
        if lr:
            optimizer.param_groups[0]["lr"] = lr
        for epoch in range(epochs):
            if head:
                optimizer.param_groups[0]["lr"] = 0.1 / (1 + epoch)
            runs = epoch >= ckpt.epoch
            for (x,) in ckpt.batches(loader, epochs=1):
                loss = model(x + torch.randn(1, generator=noise)).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                ckpt.step()
                seen[ckpt.boundary] = loss.item(), optimizer.param_groups[0]["lr"]
            for (x,) in test:
                model(x + torch.randn(1, generator=noise))
            tails.value += 1
            with torch.no_grad():
                if runs:
                    model[0].weight.mul_(0.9)
            if tail:
                schedule.step()
        ckpt.finish()
        return seen, dict(agent.images[0]), tails.value


@pytest.mark.parametrize("way", [{}, {"tail": True}, {"head": True}])
def test_what_follows_an_epoch_is_done_once_however_often_training_resumes(
    tmp_path: Path, way: dict[str, bool]
) -> None:
    want, images, tails = train(tmp_path / "whole", 4, **way)  # type: ignore[arg-type]
    assert sorted(images) == list(range(1, 13))
    for boundary, image in images.items():
        got, _, after = train(tmp_path / f"from{boundary}", 4, image, **way)  # type: ignore[arg-type]
        assert got == {b: v for b, v in want.items() if b > boundary}, f"from boundary {boundary}"
        assert after == tails or boundary == 12


def test_a_rate_that_the_script_sets_after_the_restore_is_left_alone(tmp_path: Path) -> None:
    _, images, _ = train(tmp_path / "whole", 3)
    got, _, _ = train(tmp_path / "again", 4, images[8], lr=0.5)
    assert {rate for _, rate in got.values()} == {0.5}


def test_a_rate_that_is_a_tensor_stays_the_same_tensor(tmp_path: Path) -> None:
    part: Callable[[], Any] = lambda: torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=torch.tensor(0.1))  # noqa: E731
    optimizer = part()
    registry = holdfast.Checkpointer(optimizer=optimizer)._registry
    rate, settings = optimizer.param_groups[0]["lr"], registry.settings()
    rate.mul_(0.5)
    assert registry.put_settings_back(settings) == ["optimizer"]
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.1)
