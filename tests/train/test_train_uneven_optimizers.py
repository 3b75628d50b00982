"""I2, K1: two optimizers that do not step equally often, as in a GAN. Gradients that one of them still waits for are part of a boundary's state."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_agent import FakeAgent, Image
from test_train_midstep import captured_in_round, one_round
from torch import nn

import holdfast


class Gan:
    def __init__(self) -> None:
        torch.manual_seed(1)
        self.generator, self.critic = nn.Linear(4, 4), nn.Linear(4, 1)
        self.generating = torch.optim.SGD(self.generator.parameters(), lr=0.1, momentum=0.9)
        self.judging = torch.optim.Adam(self.critic.parameters(), lr=0.01)
        self.ckpt = holdfast.Checkpointer(
            generator=self.generator, critic=self.critic, generating=self.generating, judging=self.judging
        )
        self.ckpt.restore()

    def judge(self) -> None:
        self.judging.zero_grad()
        self.critic(self.generator(torch.randn(8, 4)).detach()).mean().backward()
        self.judging.step()

    def generate(self) -> None:
        (-self.critic(self.generator(torch.randn(8, 4))).square().mean()).backward()


def accumulating(gan: Gan, number: int) -> None:
    gan.judge()
    gan.generate()
    if number % 3 == 0:
        gan.generating.step()
        gan.generating.zero_grad()


def accumulating_in_place(gan: Gan, number: int) -> None:
    gan.judge()
    gan.generate()
    if number % 3 == 0:
        gan.generating.step()
        gan.generating.zero_grad(set_to_none=False)


def alternating(gan: Gan, number: int) -> None:
    """What each leaves in the other's gradients is thrown away."""
    if number % 2:
        gan.judge()
    else:
        gan.generating.zero_grad()
        gan.generate()
        gan.generating.step()


def even(gan: Gan, number: int) -> None:
    gan.judge()
    gan.generating.zero_grad()
    gan.generate()
    gan.generating.step()


def train(
    directory: Path, iterate: Callable[[Gan, int], None], start: Image | None = None
) -> tuple[dict[int, float], dict[int, Image]]:
    seen = {}
    with FakeAgent(directory, every_steps=1) as agent, agent.as_environment():
        agent.restore_from = {0: [start] if start else []}
        gan = Gan()
        while gan.ckpt.boundary < 14:
            iterate(gan, gan.ckpt.boundary + 1)
            gan.ckpt.step()
            seen[gan.ckpt.boundary] = float(gan.generator.weight.sum() + gan.critic.weight.sum())
        gan.ckpt.finish()
        return seen, dict(agent.images[0])


@pytest.mark.parametrize(
    ("iterate", "with_gradients"),
    [
        (accumulating, [1, 2, 4, 5, 7, 8, 10, 11, 13, 14]),
        (accumulating_in_place, [1, 2, 4, 5, 7, 8, 10, 11, 13, 14]),
        (alternating, [2]),  # until the critic's next step has shown that it throws them away
        (even, []),
    ],
)
def test_a_resumed_run_goes_on_with_the_gradients_that_were_waiting(
    tmp_path: Path, iterate: Callable[[Gan, int], None], with_gradients: list[int]
) -> None:
    want, images = train(tmp_path / "whole", iterate)
    assert with_gradients == [b for b, i in images.items() if any(e.name.startswith("gradient.") for e in i.entries)]
    for boundary, image in images.items():
        got, _ = train(tmp_path / f"from{boundary}", iterate, image)
        assert got == {b: v for b, v in want.items() if b > boundary}, f"from boundary {boundary}"


def test_a_boundary_with_waiting_gradients_is_not_copied_in_the_middle_of_a_step(agent: FakeAgent) -> None:
    gan = Gan()
    for number in range(1, 200):
        accumulating(gan, number)
        gan.ckpt.step()
        time.sleep(0.01)  # the agent makes the slots meanwhile
        if gan.ckpt._run["loop"] == "mid-step" and number % 3 == 1:
            break
    assert gan.ckpt._run["loop"] == "mid-step"
    assert not gan.ckpt._mid.ready()  # type: ignore[union-attr]
    at = gan.ckpt.boundary
    with one_round(agent, 1) as result:
        agent.wait(lambda: (0, 1) in agent.votes, "the vote")
        assert not captured_in_round(agent)()
        accumulating(gan, at + 1)
        gan.ckpt.step()
    assert result == [at + 1, at + 1]
    assert any(e.name.startswith("gradient.generator") for e in agent.images[0][at + 1].entries)
    for number in range(at + 2, at + 8):  # no update is taken for one past the gate
        accumulating(gan, number)
        gan.ckpt.step()
    assert gan.ckpt._run["loop"] == "mid-step"
