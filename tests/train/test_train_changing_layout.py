"""I9, E4: a loop whose state has another form at every boundary, and rounds that come while a save of the new form waits for the slots of the old one.

The agent keeps what the ranks hold until all have come to the round's boundary: a rank that waits for its slots before it goes there would stand still until
the deadline.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast
from holdfast_rank.gate import GateState, is_awaited
from tests.train.fake_agent import FakeAgent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with FakeAgent(tmp_path, every_steps=1) as running, running.as_environment():
        running.keep_slots = True
        yield running


class Growing:
    """Momentum comes with the first update: the second boundary has tensors that the first had not."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = nn.Linear(4, 4)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.ckpt = holdfast.Checkpointer(model=self.model, optimizer=self.optimizer)
        self.ckpt.restore()

    def iterate(self, *, update: bool = True) -> None:
        if update:
            self.model(torch.ones(1, 4)).sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.ckpt.step()


def test_a_periodic_save_of_another_form_does_not_hold_up_a_round(agent: FakeAgent) -> None:
    loop = Growing()
    loop.ckpt._wanted = True
    loop.iterate(update=False)
    agent.wait(lambda: 1 in agent.images[0], "the first save, whose slot the agent keeps")
    training = threading.Thread(target=lambda: [loop.iterate() for _ in range(2)], daemon=True)
    training.start()  # its save at boundary 2 waits for the slot
    agent.wait(lambda: loop.ckpt.boundary == 2, "the boundary")
    target = agent.start_round(1, world=1)
    assert agent.await_round(1, world=1) == {0: target} == {0: 3}
    agent.open_gates(1)
    training.join(60)
    assert not training.is_alive()
    assert sorted(agent.images[0]) == [1, 3]


def test_a_last_save_of_another_form_is_made_for_the_round_that_waits_for_it(agent: FakeAgent) -> None:
    loop = Growing()
    loop.iterate(update=False)
    agent.wait(lambda: 1 in agent.images[0], "the first save")
    loop.ckpt._every = 0
    loop.iterate()
    ending = threading.Thread(target=loop.ckpt.finish, daemon=True)
    ending.start()
    agent.start_round(1, world=1)
    agent.wait(lambda: 2 in agent.images[0], "the last save")
    agent.open_gates(1)
    ending.join(60)
    assert not ending.is_alive()


@pytest.mark.parametrize(
    ("state", "awaited"),
    [
        (GateState(passed=4), False),
        (GateState(passed=4, closed=True, lease_ends=9), False),
        (GateState(passed=4, closed=True, lease_ends=9, target=5), True),
        (GateState(passed=4, closed=True, lease_ends=9, target=4), True),
        (GateState(passed=4, closed=True, lease_ends=9, target=5, captured=True), False),
        (GateState(passed=4, closed=True, lease_ends=9, target=3), False),
        (GateState(passed=4, closed=True, lease_ends=9, target=3, done=True), True),
        (GateState(passed=4, closed=True, lease_ends=1, target=5), False),
    ],
)
def test_who_is_waited_for(state: GateState, awaited: bool) -> None:
    assert is_awaited(state, 2) is awaited
