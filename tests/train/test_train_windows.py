"""The hook before every optimizer step, where Checkpointers come and go (I1)."""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import holdfast
from holdfast.state import Registry
from holdfast.windows import Windows


@pytest.fixture
def in_a_step() -> Iterator[list[Callable[[], None]]]:
    """What is appended is called once, while torch goes through its hooks for a step; it goes on to others after that."""
    due: list[Callable[[], None]] = []

    def hook(*_: object) -> None:
        while due:
            due.pop()()

    handle = register_optimizer_step_pre_hook(hook)
    yield due
    handle.remove()


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.fixture
def registry(optimizer: torch.optim.Optimizer) -> Registry:
    model = nn.Linear(2, 2)
    return holdfast.Checkpointer(model=model, optimizer=optimizer)._registry


@pytest.mark.parametrize("event", ["collected", "made", "closed"])
def test_who_looks_at_steps_may_come_and_go_in_the_middle_of_one(
    event: str, in_a_step: list[Callable[[], None]], optimizer: torch.optim.Optimizer, registry: Registry
) -> None:
    seen: list[str] = []
    mine, others = Windows(registry, lambda: seen.append("mine")), [Windows(registry, lambda: None)]

    def happens() -> None:
        if event == "made":
            others.append(Windows(registry, lambda: None))
        elif event == "closed":
            others[0].close()
        else:
            others.clear()
            gc.collect()

    in_a_step.append(happens)
    optimizer.step()
    assert not in_a_step
    assert seen == ["mine"]
    mine.close()


def test_steps_are_seen_by_those_who_are_there(optimizer: torch.optim.Optimizer, registry: Registry) -> None:
    seen: list[str] = []
    first = Windows(registry, lambda: seen.append("first"))
    second = Windows(registry, lambda: seen.append("second"))
    optimizer.step()
    assert seen == ["first", "second"]
    first.close()
    second.boundary()
    optimizer.step()
    assert seen[2:] == ["second"]
    del second
    third = Windows(registry, lambda: seen.append("third"))
    optimizer.step()
    assert seen[3:] == ["third"]
    third.close()
