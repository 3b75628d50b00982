"""Objects of other libraries' kinds: metrics, averages of weights, and what has a state that cannot be saved. Each comes back or is refused by name."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import holdfast


class MetricLikeTorchmetrics(nn.Module):
    """Not torchmetrics': its form alone (tests/frameworks has the real ones). States lie in plain attributes and are not in `state_dict` unless `persistent`;
    loading hands them over as they are."""

    def __init__(self, persistent: bool = False) -> None:
        super().__init__()
        self._defaults: dict[str, Any] = {"total": torch.zeros(()), "seen": []}
        self._persistent = dict.fromkeys(self._defaults, persistent)
        self._update_count, self._computed = 0, None
        self.total, self.seen = torch.zeros(()), []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def update(self, value: torch.Tensor) -> None:
        self.total = self.total + value
        self.seen.append(value)
        self._update_count += 1

    def state_dict(self, *args: Any, prefix: str = "", **more: Any) -> Any:
        state = super().state_dict(*args, prefix=prefix, **more)
        state.update({prefix + n: getattr(self, n) for n in self._defaults if self._persistent[n]})
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in self._defaults:
            if prefix + name in state_dict:
                setattr(self, name, state_dict.pop(prefix + name))
        super()._load_from_state_dict(state_dict, prefix, *args)


class WithMetric(nn.Module):
    def __init__(self, persistent: bool = False) -> None:
        super().__init__()
        self.layer, self.metric = nn.Linear(3, 3), MetricLikeTorchmetrics(persistent)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("alone", [True, False])
def test_a_metric_goes_on_counting(agent: FakeAgent, alone: bool, persistent: bool) -> None:
    agent.every_steps = 2

    def life(steps: int) -> MetricLikeTorchmetrics:
        whole = WithMetric(persistent)
        metric = whole.metric
        ckpt = holdfast.Checkpointer(metric=metric) if alone else holdfast.Checkpointer(model=whole)
        ckpt.restore()
        for n in range(ckpt.boundary, steps):
            metric.update(torch.tensor(n / 3))
            ckpt.step()
        ckpt.finish()
        return metric

    want = life(6)
    for boundary in (2, 4):
        agent.restore_from = {0: [agent.images[0][boundary]]}
        got = life(6)
        assert torch.equal(got.total, want.total)
        assert torch.equal(torch.stack(got.seen), torch.stack(want.seen))
        assert persistent or got._update_count == 6


@pytest.mark.parametrize("persistent", [False, True])
def test_what_a_metric_was_given_is_its_own_and_no_view_of_a_slot(agent: FakeAgent, persistent: bool) -> None:
    """The image it came from is overwritten by the saves that follow."""
    metric = MetricLikeTorchmetrics(persistent)
    metric.update(torch.tensor(5.0))
    ckpt = holdfast.Checkpointer(metric=metric)
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    image = agent.newest()
    agent.restore_from = {0: [image]}
    again = MetricLikeTorchmetrics(persistent)
    holdfast.Checkpointer(metric=again).restore()
    with image.path.open("r+b") as file:
        file.write(b"\xff" * image.path.stat().st_size)
    assert (again.total.item(), [v.item() for v in again.seen]) == (5.0, [5.0])


def test_a_copy_in_the_middle_of_a_step_holds_a_metric_as_it_was_at_the_boundary(agent: FakeAgent) -> None:
    """Updates of a metric come between two boundaries, where only parameters stand still."""
    registry = holdfast.Checkpointer(model=(whole := WithMetric()))._registry
    progress = holdfast.Checkpointer()._progress
    whole.metric.update(torch.tensor(1.0))
    template = registry.capture(progress, window_open=False).document
    whole.metric.update(torch.tensor(2.0))
    small = registry.snapshot(progress, window_open=False)  # the boundary
    whole.metric.update(torch.tensor(4.0))
    rendered = registry.render(small, template, {})
    states = rendered.document["parts"]["model"]["metrics"]["metric"]
    assert states["updates"] == 2
    assert rendered.leaves.tensors[states["states"]["total"]["$tensor"]].item() == 3.0


# ---- averages of weights


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


class HandMade:
    """An average as people write it themselves: no module, a dictionary of shadows."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.shadow, self.updates = model, {n: p.detach().clone() for n, p in model.named_parameters()}, 0

    def update(self) -> None:
        self.updates += 1
        for name, parameter in self.model.named_parameters():
            self.shadow[name].lerp_(parameter.detach(), 0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shadow, self.updates = state["shadow"], state["updates"]


def mean(model: nn.Module) -> Any:
    average = AveragedModel(model)
    return average, lambda: average.update_parameters(model)


def exponential(model: nn.Module) -> Any:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    return average, lambda: average.update_parameters(model)


def by_hand(model: nn.Module) -> Any:
    average = HandMade(model)
    return average, average.update


@pytest.mark.parametrize("make", [mean, exponential, by_hand])
def test_an_average_of_weights_goes_on_bit_by_bit(agent: FakeAgent, make: Callable[[nn.Module], Any]) -> None:
    agent.every_steps = 1

    def life(seed: int) -> list[torch.Tensor]:
        model = network(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        average, update = make(model)
        ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, average=average)
        ckpt.restore()
        for n in range(ckpt.boundary, 8):
            model(torch.randn(6, 4, generator=torch.Generator().manual_seed(n))).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if n >= 2:  # the usual warm-up
                update()
            ckpt.step()
        ckpt.finish()
        state = average.state_dict()
        return [*(state.get("shadow", state)).values(), *model.state_dict().values()]

    want = life(1)
    images = dict(agent.images[0])
    for boundary in (1, 2, 3, 5, 7):
        agent.restore_from = {0: [images[boundary]]}
        got = life(50)
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True)), boundary


# ---- what cannot be saved


class Holding:
    """Something with a state that holds `what`."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def state_dict(self) -> dict[str, Any]:
        return {"count": 1, "inner": [self.what]}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "an object": (lambda: Holding(1), r"thing\.inner\.0 is a .*\.Holding, which cannot be saved"),
    "a lambda": (lambda: lambda: 1, r"thing\.inner\.0 is a builtins\.function, which cannot be saved"),
    "an open file": (lambda: Path(__file__).open(), r"thing\.inner\.0 is a _io\.TextIOWrapper, which cannot be saved"),  # noqa: SIM115
    "a lock": (threading.Lock, r"thing\.inner\.0 is a _thread\.lock, which cannot be saved"),
    "a generator": (lambda: (n for n in ()), r"thing\.inner\.0 is a builtins\.generator, which cannot be saved"),
    "a class": (lambda: int, r"thing\.inner\.0 is a builtins\.type, which cannot be saved"),
    "a path": (lambda: Path("/data"), r"thing\.inner\.0 is a pathlib\..*Path, which cannot be saved"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_state_that_holds_more_than_values_is_refused_by_name_before_training(agent: FakeAgent, name: str) -> None:
    make, words = BAD[name]
    with pytest.raises(holdfast.UnsupportedState, match=words) as caught:
        holdfast.Checkpointer(thing=Holding(make())).restore()
    assert "Leave it out of the state_dict, or turn it into tensors, numbers, text, lists and dicts" in str(
        caught.value
    )


def test_what_becomes_such_in_training_ends_saving_by_name_and_training_goes_on(
    agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    agent.every_steps = 1
    thing = Holding(1)
    ckpt = holdfast.Checkpointer(thing=thing)
    ckpt.restore()
    for n in range(5):
        if n == 2:
            thing.what = lambda: 1
        ckpt.step()
    ckpt.finish()
    assert sorted(agent.images[0]) == [1, 2]
    assert sum("thing.inner.0 is a builtins.function" in r.getMessage() for r in caplog.records) == 1


class Failing(Holding):
    def state_dict(self) -> dict[str, Any]:
        raise ZeroDivisionError("no steps yet")


def test_a_state_that_cannot_be_asked_is_named_with_what_to_do(agent: FakeAgent) -> None:
    with pytest.raises(
        holdfast.UnsupportedState,
        match=r"thing\.state_dict\(\) of a Failing fails: ZeroDivisionError: no steps yet\. .*leave thing out",
    ):
        holdfast.Checkpointer(thing=Failing(1)).restore()


class Stubborn(Holding):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise KeyError("decay")


def test_an_object_that_does_not_take_its_state_back_is_named_with_what_to_do(agent: FakeAgent) -> None:
    ckpt = holdfast.Checkpointer(thing=Holding(1))
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    with pytest.raises(
        holdfast.RestoreError,
        match=r"thing \(Stubborn\) does not take its state back: KeyError: 'decay'\. .*allow=\(\"extra:thing\"",
    ):
        holdfast.Checkpointer(thing=Stubborn(1)).restore()
