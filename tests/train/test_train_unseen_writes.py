"""I5, I6, I8: states that an audit by samples, or a list of addresses, would take for a boundary's and that are not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent
from test_train_midstep import (
    Convolution,
    Loop,
    Net,
    caught_in_the_middle,
    left_for_the_boundary,
    reference,
    same_content,
)
from torch import nn


class Average:
    """An EMA of the kind that is no module: its tensors are in its `state_dict`."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = [p.detach().clone() for p in model.parameters()]

    def update(self, model: nn.Module) -> None:
        for mine, theirs in zip(self.shadow, model.parameters(), strict=True):
            mine.mul_(0.9).add_(theirs.detach(), alpha=0.1)

    def update_anew(self, model: nn.Module) -> None:
        self.shadow = [s * 0.9 + p.detach() * 0.1 for s, p in zip(self.shadow, model.parameters(), strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shadow = state["shadow"]


class Queue(nn.Module):
    """A few rows of a large buffer are written by each forward, far from its ends."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 64)
        self.register_buffer("queue", torch.zeros(100_000, 64))
        self.register_buffer("at", torch.tensor(30_000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        with torch.no_grad():
            self.queue[int(self.at) : int(self.at) + len(out)] = out  # type: ignore[index, operator]
            self.at.add_(len(out))  # type: ignore[operator]
        return out


class Table(nn.Module):
    """Rows that are looked up are normalized by the forward, in the weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100_000, 64, max_norm=0.5)
        self.last = nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.table(torch.randint(40_000, 60_000, (len(x),))))
        return out


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4000), nn.ReLU(), nn.Linear(4000, 8))


def with_copying_state_dict() -> Loop:
    net = Net()
    net.register_state_dict_post_hook(lambda module, state, *_: state.update({k: v.clone() for k, v in state.items()}))
    return Loop(model=net)


def with_copying_optimizer() -> Loop:
    def copied(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        return state | {"state": {p: {k: v.clone() for k, v in s.items()} for p, s in state["state"].items()}}

    loop = Loop()
    loop.optimizer.register_state_dict_post_hook(copied)
    return loop


def with_counter(where: str) -> Loop:
    """An optimizer that counts its steps outside the state of its parameters."""

    class Counting(torch.optim.SGD):
        count = 0

        def step(self, *arguments: Any) -> None:  # type: ignore[override]
            super().step(*arguments)
            self.count += 1
            if where == "state":
                self.state["count"] = self.count  # type: ignore[index, assignment]

        def state_dict(self) -> dict[str, Any]:
            return super().state_dict() | ({"count": self.count} if where == "beside" else {})

    return Loop(lambda p: Counting(p, lr=0.1, momentum=0.9))


def with_average(update: Callable[[Average, nn.Module], None]) -> Loop:
    model = wide()
    average = Average(model)
    loop = Loop(model=model, average=average)
    loop.start = lambda: update(average, model)
    return loop


LOOPS: dict[str, tuple[Callable[[], Loop], str]] = {
    "a module whose state_dict gives copies": (with_copying_state_dict, "state_dict() gives a copy of model."),
    "an optimizer whose state_dict gives copies": (with_copying_optimizer, "state_dict() gives a copy of optimizer."),
    "a number in an optimizer's state": (lambda: with_counter("state"), "keeps 'count' in its state"),
    "a number beside an optimizer's state": (lambda: with_counter("beside"), "state_dict() has count"),
    "an average updated after the boundary": (lambda: with_average(Average.update), "average.shadow.0 changes between"),
    "an average replaced after the boundary": (lambda: with_average(Average.update_anew), "average.shadow.0 lies elsewhere"),
    "rows of a large buffer": (lambda: Loop(model=Queue()), "model.queue the largest"),
    "rows of a table": (lambda: Loop(lambda p: torch.optim.SGD(p, lr=0.1), model=Table()), "model.table.weight the largest"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_what_would_be_torn_in_the_middle_of_a_step_is_left_for_the_boundary(agent: FakeAgent, name: str) -> None:
    make, why = LOOPS[name]
    loop = make().audited(agent)
    loop.iterate(5)
    assert (loop.kind, why in loop.ckpt._run["loop_why"]) == ("boundary-only", True), loop.ckpt._run
    left_for_the_boundary(agent, loop)


def test_an_average_updated_before_the_boundary_is_copied_with_it(agent: FakeAgent) -> None:
    """I8: also where it is an object of its own."""
    model = wide()
    average = Average(model)
    loop = Loop(model=model, average=average)

    def update() -> None:
        Loop.update(loop)
        average.update(model)

    loop.update = update  # type: ignore[method-assign]
    loop.audited(agent)
    assert loop.kind == "mid-step", loop.ckpt._run
    want = reference(agent, loop)
    assert same_content(caught_in_the_middle(agent, loop), want)
    with torch.no_grad():
        average.shadow[0][17] += 1.0
    assert not loop.ckpt._mid.ready()  # type: ignore[union-attr]


def test_a_row_that_is_written_once_is_noticed_at_the_copy(agent: FakeAgent) -> None:
    """I5: long after the audits, in a part of the weights at which no fingerprint looks."""
    loop = Loop(model=wide()).audited(agent)
    assert loop.kind == "mid-step", loop.ckpt._run
    with torch.no_grad():
        loop.model[0].weight[3].mul_(0.5)
    assert not loop.ckpt._mid.ready()  # type: ignore[union-attr]
    left_for_the_boundary(agent, loop)


def test_weights_in_another_order_are_no_change_at_a_periodic_save(agent: FakeAgent) -> None:
    """I5: a slot holds them in the order of their dimensions."""
    agent.every_steps = 5
    loop = Loop(model=Convolution()).audited(agent)
    loop.iterate(20)
    assert (loop.kind, loop.ckpt._run["loop_why"]) == ("mid-step", "")
