"""K1, K2, K4 for one rank: a run that is killed and resumed equals, bit by bit, one that never was."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from fake_agent import FakeAgent
from train_loops import Interrupted, Recipe, Result, same, train


def uninterrupted(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.delenv("HOLDFAST_SOCKET", raising=False)
    return train(recipe)


def with_kills(recipe: Recipe, kills: list[int], directory: Path) -> Result:
    """Starts again after each kill, from the boundary of the kill, and puts the pieces together."""
    whole, images = Result(), []
    for n, kill in enumerate([*kills, None]):
        with FakeAgent(directory / f"start{n}", every_steps=1) as agent, agent.as_environment():
            agent.restore_from = {0: images[-1:]}
            try:
                piece = train(
                    recipe, kill_after=kill, seed=7 if n == 0 else 1000 + n
                )  # a resumed start owes nothing to its own seed
            except Interrupted as stopped:
                piece = stopped.result
                agent.wait(lambda a=agent, k=kill: k in a.images[0], "the image")  # type: ignore[misc]
                images.append(agent.images[0][kill or 0])
        whole.losses += piece.losses
        whole.samples += piece.samples
        whole.digest = piece.digest
    return whole


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, nesterov=True)  # type: ignore[arg-type]


RECIPES = {
    "a plain loop with dropout, batch norm and a shuffling loader": Recipe(),
    "two worker processes": Recipe(workers=2, epochs=2),
    "worker processes that stay over epochs": Recipe(workers=2, persistent=True),
    "accumulation over three batches": Recipe(accumulate=3),
    "a boundary after each micro-batch of an accumulation window": Recipe(accumulate=3, micro_boundaries=True),
    "a gradient scaler": Recipe(scaler=True),
    "accumulation with a scaler and micro-batch boundaries": Recipe(accumulate=2, micro_boundaries=True, scaler=True),
    "a loader with a generator of its own": Recipe(explicit_generator=True),
    "a loader with a generator of its own and workers": Recipe(explicit_generator=True, workers=1, epochs=2),
    "a last batch that is not full": Recipe(samples=45),
    "momentum and a plateau of one-cycle learning rates": Recipe(
        optimizer=sgd, scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=40)
    ),
    "an LBFGS-like list state": Recipe(
        optimizer=lambda p: torch.optim.Adagrad(p, lr=1e-2),
        scheduler=lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.LinearLR(o, total_iters=3), torch.optim.lr_scheduler.MultiStepLR(o, [2, 4])],
            milestones=[3],
        ),
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_is_bitwise_equal_also_when_killed_twice_within_an_epoch(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPES[name]
    want = uninterrupted(recipe, monkeypatch)
    last = max(want.batches_by_boundary)
    rng = random.Random(name)
    kills = sorted(rng.sample(range(1, last + 1), 3))
    if kills[1] != kills[0] + 1 and kills[0] + 1 < last:
        kills = sorted({*kills, kills[0] + 1})  # within one epoch, and the very next boundary
    got = with_kills(recipe, kills, tmp_path)
    assert got.losses == want.losses, f"killed after {kills}"
    assert got.samples == want.samples
    assert same(got.digest, want.digest), f"killed after {kills}"


def test_every_boundary_of_two_epochs_resumes_bitwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(epochs=2, samples=24)
    want = uninterrupted(recipe, monkeypatch)
    for kill in want.batches_by_boundary:
        got = with_kills(recipe, [kill], tmp_path / str(kill))
        assert got.losses == want.losses, f"killed after {kill}"
        assert same(got.digest, want.digest), f"killed after {kill}"


def test_no_sample_is_lost_or_repeated_over_many_random_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K1, as a multiset per epoch, over loops that differ in batch size, window and workers."""
    rng = random.Random(5)
    for trial in range(12):
        batch = rng.randrange(2, 9)
        recipe = Recipe(
            samples=batch * rng.randrange(4, 8) + rng.choice([0, 2]), batch=batch, epochs=rng.randrange(1, 4), noise=False,
            workers=rng.choice([0, 0, 0, 1]), explicit_generator=rng.random() < 0.3,
        )  # fmt: skip
        last = max(uninterrupted(recipe, monkeypatch).batches_by_boundary)
        kills = sorted(rng.sample(range(1, last + 1), min(last, rng.randrange(1, 5))))
        got = with_kills(recipe, kills, tmp_path / str(trial))
        want = Counter(dict.fromkeys(range(recipe.samples), recipe.epochs))
        assert Counter(got.samples) == want, f"trial {trial}: {recipe}, killed after {kills}"


def test_without_the_generators_of_the_epoch_s_start_the_order_would_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measure is what makes the difference (K4): without it the walk meets another order, and that is refused."""
    import holdfast
    from holdfast.loader import Position

    monkeypatch.setattr(Position, "_put_start_back", lambda self, start: None)
    with pytest.raises(holdfast.RestoreError, match="order of samples"):
        with_kills(Recipe(), [2], tmp_path)
