"""K1, K2: a run that had ended well and goes on for more epochs equals, bit by bit, one that was never stopped, whatever the script did before `finish()`."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_agent import FakeAgent, Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import holdfast


@dataclass
class Run:
    losses: dict[int, tuple[str, str]]
    """By boundary: the loss, and the learning rate of the next step."""
    weights: list[torch.Tensor]
    tails: int
    draws: list[float]
    image: Image


def evaluate(model: nn.Module, noise: torch.Generator) -> None:
    """With dropout, and with every generator there is."""
    with torch.no_grad():
        model(torch.randn(6, 4) + torch.randn(1, generator=noise) + random.random() + float(np.random.rand()))


def train(
    folder: Path,
    epochs: int,
    start: Image | None = None,
    *,
    way: str = "one call",
    seed: int = 1,
    optimizer: Any = None,
) -> Run:
    """`way`: one call of `batches`, with a tail after it; a loop of one's own, with a tail after each epoch; a `break` after so many steps."""
    with FakeAgent(folder) as agent, agent.as_environment():
        agent.restore_from = {0: [start] if start else []}
        for use in (torch.manual_seed, random.seed, np.random.seed):
            use(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = (optimizer or (lambda p: torch.optim.AdamW(p, lr=0.1)))(model.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        noise, tails = torch.Generator().manual_seed(5), holdfast.Value(0)
        data = TensorDataset(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)))
        loader = DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(seed))
        ckpt = holdfast.Checkpointer(
            model=model, optimizer=optimizer, schedule=schedule, loader=loader, noise=noise, tails=tails
        )
        ckpt.restore()
        losses = {}

        def step(x: torch.Tensor) -> None:
            loss = model(x + torch.randn(1, generator=noise) + random.random()).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            ckpt.step()
            losses[ckpt.boundary] = loss.item().hex(), repr(optimizer.param_groups[0]["lr"])

        def tail() -> None:
            evaluate(model, noise)
            tails.value += 1
            schedule.step()

        if way == "own loop":
            for _ in range(epochs):
                for (x,) in ckpt.batches(loader):
                    step(x)
                tail()
        elif way == "break":
            for (x,) in ckpt.batches(loader, epochs=None):
                step(x)
                if ckpt.boundary == 2 * epochs:
                    break
            tail()
        else:
            for (x,) in ckpt.batches(loader, epochs=epochs):
                step(x)
            tail()
        ckpt.finish()
        kept = [t.clone() for t in model.state_dict().values()]
        draws = [torch.rand(1).item(), random.random(), float(np.random.rand()), torch.rand(1, generator=noise).item()]
        return Run(losses, kept, tails.value, draws, agent.newest())


def a_rate_that_is_a_tensor(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=torch.tensor(0.1))


@pytest.mark.parametrize("optimizer", [None, a_rate_that_is_a_tensor])
@pytest.mark.parametrize("way", ["one call", "own loop", "break"])
def test_two_epochs_that_become_three_are_three(tmp_path: Path, way: str, optimizer: Any) -> None:
    whole = train(tmp_path / "whole", 3, way=way, optimizer=optimizer)
    two = train(tmp_path / "two", 2, way=way, optimizer=optimizer)
    assert two.losses == {b: v for b, v in whole.losses.items() if b in two.losses}
    assert two.image.kind == "final"
    more = train(tmp_path / "more", 3, two.image, way=way, seed=1000, optimizer=optimizer)
    assert more.losses == {b: v for b, v in whole.losses.items() if b > max(two.losses)}
    assert all(torch.equal(a, b) for a, b in zip(more.weights, whole.weights, strict=True))
    assert (more.tails, more.draws) == (whole.tails, whole.draws)


def test_what_was_noted_at_an_end_is_not_used_for_a_later_boundary(tmp_path: Path) -> None:
    """The loop goes on outside `batches`: the state at `finish` is the only one that there is."""
    with FakeAgent(tmp_path / "first") as agent, agent.as_environment():
        model, tails = nn.Linear(4, 1), holdfast.Value(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4)
        ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, loader=loader, tails=tails)
        ckpt.restore()
        for (x,) in ckpt.batches(loader):
            model(x).mean().backward()
            optimizer.step()
            ckpt.step()
        tails.value = 7
        optimizer.step()
        ckpt.step()
        ckpt.finish()
        image = agent.newest()
    with FakeAgent(tmp_path / "second") as agent, agent.as_environment():
        agent.restore_from = {0: [image]}
        again = holdfast.Value(0)
        other = nn.Linear(4, 1)
        ckpt = holdfast.Checkpointer(
            model=other, optimizer=torch.optim.SGD(other.parameters(), lr=0.1), loader=DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4), tails=again,
        )  # fmt: skip
        assert ckpt.restore() == 3
        assert again.value == 7
        ckpt.finish()


class Average:
    """Of weights, with a count of its updates: an object of its own ways with tensors that are too large to be kept at each boundary."""

    def __init__(self) -> None:
        self.count, self.shadow = 0, torch.zeros(40_000)

    def update(self) -> None:
        self.count += 1
        self.shadow += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.shadow.copy_(state["shadow"])


def test_what_changes_after_a_pass_and_is_large_is_not_mixed_with_what_it_was(tmp_path: Path) -> None:
    def ends(average: Average, epochs: int) -> None:
        loader = DataLoader(TensorDataset(torch.randn(4, 2)), batch_size=2)
        ckpt = holdfast.Checkpointer(average=average, loader=loader)
        ckpt.restore()
        for _ in range(epochs):
            for _ in ckpt.batches(loader):
                ckpt.step()
            average.update()
        ckpt.finish()

    with FakeAgent(tmp_path / "first") as agent, agent.as_environment():
        ends(Average(), 2)
        image = agent.newest()
    with FakeAgent(tmp_path / "second") as agent, agent.as_environment():
        agent.restore_from = {0: [image]}
        again = Average()
        ends(again, 0)
    assert (again.count, again.shadow[0].item()) == (2, 2.0)


# ---- gradients of parameters that only an optimizer holds


class Actor:
    """As of SAC: a temperature that no module holds, updated by an optimizer of its own."""

    def __init__(self, seed: int, *, alone: bool) -> None:
        torch.manual_seed(seed)
        self.net = nn.Linear(4, 2)
        self.log_alpha = torch.zeros((), requires_grad=True)
        rest = [] if alone else [self.log_alpha]
        self.optimizer = torch.optim.Adam([*self.net.parameters(), *rest], lr=0.1)
        parts: dict[str, Any] = {"net": self.net, "optimizer": self.optimizer}
        self.optimizers = [self.optimizer]
        if alone:
            self.temperature = torch.optim.Adam([self.log_alpha], lr=0.1)
            parts["temperature"] = self.temperature
            self.optimizers.append(self.temperature)
        self.ckpt = holdfast.Checkpointer(**parts)
        self.ckpt.restore()
        self.ckpt._every = 1

    def train(self, until: int) -> None:
        """A boundary after each micro-batch, an update after every third."""
        while self.ckpt.boundary < until:
            x = torch.randn(8, 4)
            (self.net(x).square().mean() * self.log_alpha.exp() + self.log_alpha * 0.3).backward()
            if (self.ckpt.boundary + 1) % 3 == 0:
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            self.ckpt.step()


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("stop", [4, 5, 6])
def test_the_gradient_of_a_parameter_that_no_module_holds_is_part_of_an_open_window(
    tmp_path: Path, alone: bool, stop: int
) -> None:
    with FakeAgent(tmp_path / "whole") as agent, agent.as_environment():
        whole = Actor(1, alone=alone)
        whole.train(9)
        agent.wait(lambda: stop in agent.images[0], "the image")
        image = agent.images[0][stop]
        whole.ckpt.finish()
    with FakeAgent(tmp_path / "again") as agent, agent.as_environment():
        agent.restore_from = {0: [image]}
        again = Actor(1000, alone=alone)
        assert again.ckpt.boundary == stop
        again.train(9)
        again.ckpt.finish()
    assert torch.equal(again.log_alpha, whole.log_alpha)
    assert torch.equal(again.net.weight, whole.net.weight)
