"""What is captured and how it comes back: every kind of part, what is refused, and what must not fit (I9, C4)."""

import collections
import json
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from fake_agent import FakeAgent, Image
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import holdfast
from holdfast import tree
from holdfast.module_part import ModulePart
from holdfast.part import Leaves
from holdfast_api import ranks
from holdfast_rank.image import Tier


def saved(agent: FakeAgent, **parts: Any) -> Image:
    ckpt = holdfast.Checkpointer(**parts)
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    image = agent.newest()
    agent.restore_from = {0: [image]}
    return image


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=5)
)
keys = st.integers() | st.text(max_size=4) | st.tuples(st.integers(), st.text(max_size=2))
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3).map(collections.OrderedDict)
    ),
    max_leaves=12,
)


@given(trees)
def test_any_tree_survives_json(value: Any) -> None:
    text = json.dumps(tree.encode(value, "x", {}), allow_nan=False)
    back = tree.decode(json.loads(text), {})
    assert back == value
    assert repr(back) == repr(value), "types included: tuple and list, 1 and 1.0 and True, 0.0 and -0.0"


def test_special_values_survive_json() -> None:
    value = {
        "floats": [math.inf, -math.inf], "sizes": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cpu"),
        "counter": collections.Counter({3: 2, 7: 1}), "set": {1, 2}, "complex": complex(1, -2), "np": np.float32(1.5), "$odd": 1,
    }  # fmt: skip
    back = tree.decode(json.loads(json.dumps(tree.encode(value, "x", {}))), {})
    assert back == value
    assert type(back["counter"]) is collections.Counter
    assert type(back["np"]) is np.float32
    assert math.isnan(tree.decode(tree.encode(math.nan, "x", {}), {}))


def test_tensors_and_arrays_are_named_by_where_they_lie() -> None:
    tensors: tree.Tensors = {}
    value = {"a": {"b": torch.ones(2)}, "a.b": torch.zeros(3), "list": [np.arange(3)]}
    body = json.loads(json.dumps(tree.encode(value, "part", tensors)))
    assert sorted(tensors) == ["part.a.b", "part.a.b~2", "part.list.0"]
    back = tree.decode(body, tensors)
    assert torch.equal(back["a"]["b"], torch.ones(2))
    assert torch.equal(back["a.b"], torch.zeros(3))
    assert back["list"][0].tolist() == [0, 1, 2]


class Odd:
    pass


class Subclass(torch.Tensor):
    pass


REFUSED = {
    "an object": (Odd(), r"value\.here is a .*Odd"),
    "a function": (len, r"value\.here is a builtins\.builtin_function"),
    "an unknown tensor subclass": (
        torch.ones(1).as_subclass(Subclass),
        r"value\.here is a .*Subclass, a tensor subclass",
    ),
    "a meta tensor": (torch.ones(1, device="meta"), r"value\.here is on the meta device"),
    "a sparse tensor": (torch.eye(2).to_sparse(), r"value\.here is a torch\.sparse_coo tensor"),
    "an array of objects": (np.array([Odd()]), r"value\.here is a numpy\.ndarray"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_saved_is_refused_by_name(name: str) -> None:
    value, message = REFUSED[name]
    with pytest.raises(holdfast.UnsupportedState, match=message):
        holdfast.Value({"here": value})


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(holdfast.UnsupportedState, match="contains itself"):
        holdfast.Value(loop)


def test_a_model_that_cannot_be_saved_is_refused_before_training(agent: FakeAgent) -> None:
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.ones(2, 2).to_sparse())
    with pytest.raises(holdfast.UnsupportedState, match=r"model\.weight is a torch.sparse_coo tensor"):
        holdfast.Checkpointer(model=model).restore()


@pytest.mark.parametrize("bad", [3, "text", {"a": 1}, [1]])
def test_a_plain_value_must_be_wrapped(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"best=holdfast\.Value"):
        holdfast.Checkpointer(best=bad)


@pytest.mark.parametrize("name", ["holdfast", "batches"])
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="reserved"):
        holdfast.Checkpointer(**{name: holdfast.Value(1)})


def test_generators_values_and_numpy_state_come_back(agent: FakeAgent) -> None:
    def build(seed: int) -> dict[str, Any]:
        return {
            "own": torch.Generator().manual_seed(seed),
            "python": random.Random(seed),
            "array": np.random.default_rng(seed),
            "note": holdfast.Value({"best": seed, "history": [(1, 2.5)]}),
            "absent": None,
        }

    parts = build(1)
    saved(agent, **parts)
    want = (
        torch.rand(3, generator=parts["own"]).tolist(),
        parts["python"].random(),
        parts["array"].random(),
        parts["note"].value,
    )
    parts = build(2)
    holdfast.Checkpointer(**parts).restore()
    got = (
        torch.rand(3, generator=parts["own"]).tolist(),
        parts["python"].random(),
        parts["array"].random(),
        parts["note"].value,
    )
    assert got == want


def test_missing_and_extra_keys_are_one_error_that_lists_both_sides(agent: FakeAgent) -> None:
    saved(agent, model=nn.ModuleDict({"old": nn.Linear(2, 2), "both": nn.Linear(2, 3)}), gone=holdfast.Value(1))
    model = nn.ModuleDict({"new": nn.Linear(2, 2), "both": nn.Linear(2, 4)})
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(holdfast.RestoreError) as caught:
        holdfast.Checkpointer(model=model, fresh=holdfast.Value(2)).restore()
    text = str(caught.value)
    for part in ("new.weight", "old.weight", "model.both.weight: (4, 2)", "(3, 2)", "['fresh']", "['gone']"):
        assert part in text
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "nothing was touched"
    agent.wait(lambda: bool(agent.heard(ranks.LoadFailed)), "the report")
    (failed,) = agent.heard(ranks.LoadFailed)
    assert not failed.of_checkpoint, "the program is at fault, not the checkpoint (C4)"


def test_an_optimizer_with_other_groups_is_refused_before_the_model_is_touched(agent: FakeAgent) -> None:
    model = nn.Linear(2, 2)
    saved(agent, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    other = nn.Linear(2, 2)
    before = other.weight.clone()
    optimizer = torch.optim.SGD([{"params": [other.weight]}, {"params": [other.bias]}], lr=1.0)
    with pytest.raises(holdfast.RestoreError, match=r"groups of \[1, 1\] tensors, the checkpoint of \[2\]"):
        holdfast.Checkpointer(model=other, optimizer=optimizer).restore()
    assert torch.equal(before, other.weight)


@pytest.mark.parametrize("place", ["model.weight", "optimizer.state.0.momentum_buffer"])
def test_a_checkpoint_with_nan_is_refused_and_the_next_older_one_is_loaded(agent: FakeAgent, place: str) -> None:
    model = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    ckpt.restore()
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    ckpt.step()
    ckpt.finish()
    good = agent.newest()
    bad = Image(good.path.with_name("bad"), good.boundary, good.kind, good.entries, good.message)
    data = bytearray(good.path.read_bytes())
    at = next(e.offset_bytes for e in good.entries if e.name == place)
    data[at + 40 : at + 44] = np.float32(np.nan).tobytes()
    bad.path.write_bytes(data)
    agent.restore_from = {0: [bad, good]}
    again = nn.Linear(64, 64)
    ckpt = holdfast.Checkpointer(model=again, optimizer=torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9))
    assert ckpt.restore() == 1
    assert torch.equal(again.weight, model.weight)
    (failed,) = agent.heard(ranks.LoadFailed)
    assert failed.of_checkpoint
    assert place in failed.message


@pytest.mark.parametrize("seen", [True, False])
def test_what_was_seen_to_be_finite_at_the_save_is_not_read_once_more(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    """C4: the agent looked at these very bytes, and each chunk has been verified; a look of the library is for what nobody has looked at."""
    model = nn.Linear(64, 64)
    ckpt = holdfast.Checkpointer(model=model)
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    agent.seen_finite = seen
    looks: list[object] = []
    monkeypatch.setattr("holdfast.load.check_finite", lambda *a: looks.append(a))
    again = nn.Linear(64, 64)
    assert holdfast.Checkpointer(model=again).restore() == 1
    assert torch.equal(again.weight, model.weight)
    assert len(looks) == (0 if seen else 1)


def test_a_frozen_parameter_may_be_infinite(agent: FakeAgent) -> None:
    """An additive mask, say. It is saved as it is, so it must be possible to go on with it."""

    def masked() -> nn.Linear:
        model = nn.Linear(4, 4)
        model.mask = nn.Parameter(torch.full((4, 4), -torch.inf).triu(1), requires_grad=False)
        return model

    model = masked()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    ckpt.restore()
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    again = masked()
    ckpt = holdfast.Checkpointer(
        model=again, optimizer=torch.optim.SGD([p for p in again.parameters() if p.requires_grad], lr=0.1)
    )
    assert ckpt.restore() == 1
    assert torch.equal(again.weight, model.weight)
    assert torch.equal(again.mask, model.mask)
    assert not agent.heard(ranks.LoadFailed)


def test_a_trained_parameter_that_no_start_would_load_is_refused_before_training(agent: FakeAgent) -> None:
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.bias[2] = torch.nan
    ckpt = holdfast.Checkpointer(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(holdfast.UnsupportedState, match=r"model\.bias is trained and holds NaN or infinite values"):
        ckpt.restore()


def test_infinite_gradients_of_a_skipped_step_do_not_condemn_a_checkpoint(agent: FakeAgent) -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    ckpt.restore()
    model.weight.grad = torch.full((4, 4), math.inf)
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    again = nn.Linear(4, 4)
    holdfast.Checkpointer(model=again, optimizer=torch.optim.SGD(again.parameters(), lr=0.1)).restore()
    assert again.weight.grad is not None
    assert again.weight.grad.isinf().all()


DAMAGE = {
    "a state that is no JSON": lambda d, e: d.__setitem__(
        slice(e["holdfast.state.json"], e["holdfast.state.json"] + 9), b"not json!"
    ),
    "a file that is too short": lambda d, e: d.__delitem__(slice(len(d) - 4096, len(d))),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_an_image_that_cannot_be_read_is_reported_as_the_checkpoint_s_fault(agent: FakeAgent, name: str) -> None:
    good = saved(agent, model=nn.Linear(2, 2))
    data = bytearray(good.path.read_bytes())
    DAMAGE[name](data, {e.name: e.offset_bytes for e in good.entries})
    bad = Image(good.path.with_name("bad"), 1, "final", good.entries, good.message)
    bad.path.write_bytes(data)
    agent.restore_from = {0: [bad, good]}
    assert holdfast.Checkpointer(model=nn.Linear(2, 2)).restore() == 1
    assert agent.heard(ranks.LoadFailed)[0].of_checkpoint


def test_state_of_another_precision_than_its_parameter_keeps_its_bits(agent: FakeAgent) -> None:
    """torch's own load_state_dict casts it to the parameter's dtype."""

    def build() -> tuple[nn.Linear, torch.optim.Optimizer]:
        model = nn.Linear(64, 64, dtype=torch.bfloat16)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    model, optimizer = build()
    optimizer.state[model.weight]["master"] = torch.randn(64, 64)
    saved(agent, model=model, optimizer=optimizer)
    again, other = build()
    holdfast.Checkpointer(model=again, optimizer=other).restore()
    assert torch.equal(other.state[again.weight]["master"], optimizer.state[model.weight]["master"])
    assert torch.equal(again.weight, model.weight)


def test_parameters_that_only_the_optimizer_holds_are_saved_too(agent: FakeAgent) -> None:
    temperature = nn.Parameter(torch.tensor([2.5]))
    model = nn.Linear(2, 2)
    saved(agent, model=model, optimizer=torch.optim.SGD([*model.parameters(), temperature], lr=0.1))
    other = nn.Parameter(torch.zeros(1))
    model = nn.Linear(2, 2)
    holdfast.Checkpointer(model=model, optimizer=torch.optim.SGD([*model.parameters(), other], lr=0.1)).restore()
    assert other.item() == 2.5


SCHEDULERS = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o),
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1),
    "chained": lambda o: torch.optim.lr_scheduler.ChainedScheduler(
        [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on_where_they_were(agent: FakeAgent, name: str) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, SCHEDULERS[name](optimizer)

    def rates(optimizer: torch.optim.Optimizer, scheduler: Any, count: int) -> list[float]:
        found = []
        for _ in range(count):
            optimizer.step()
            scheduler.step(*([1.0] if name == "plateau" else []))
            found.append(optimizer.param_groups[0]["lr"])
        return found

    model, optimizer, scheduler = build()
    rates(optimizer, scheduler, 7)
    saved(agent, model=model, optimizer=optimizer, scheduler=scheduler)
    want = rates(optimizer, scheduler, 12)
    model, optimizer, scheduler = build()
    holdfast.Checkpointer(model=model, optimizer=optimizer, scheduler=scheduler).restore()
    assert rates(optimizer, scheduler, 12) == want


def test_names_are_the_same_with_and_without_compile_and_data_parallel(agent: FakeAgent) -> None:
    model = nn.Linear(2, 2)
    saved(agent, model=nn.DataParallel(model))
    other = nn.Linear(2, 2)
    holdfast.Checkpointer(model=torch.compile(other)).restore()
    assert torch.equal(model.weight.cpu(), other.weight)  # DataParallel moves it where there is a GPU


def test_a_module_that_only_follows_another_lies_with_what_changes() -> None:
    """I8: no gradient does not mean constant. An EMA among what is frozen would have its chunks sent again with it."""
    model, ema = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), nn.Linear(64, 64)
    model[0].requires_grad_(False)
    ema.requires_grad_(False)
    leaves = Leaves()
    ModulePart("model", model).capture(leaves)
    ModulePart("ema", ema).capture(leaves)
    assert {name: leaves.tiers[name] for name in ("model.0.weight", "model.1.weight", "ema.weight")} == {
        "model.0.weight": Tier.FROZEN,
        "model.1.weight": Tier.TRAINABLE,
        "ema.weight": Tier.OPTIMIZER,
    }
