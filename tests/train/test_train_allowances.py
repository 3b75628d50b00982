"""Missing and extra keys are one error that lists both sides, unless exactly those were allowed (design.md section 4); what is allowed is done."""

from typing import Any

import pytest
import torch
from fake_agent import FakeAgent
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import holdfast
from holdfast.allowed import Allowed, Apart


class Net(nn.Module):
    """`head` says what the second layer is called."""

    def __init__(self, seed: int, head: str = "head", size: int = 2) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head_name = nn.Linear(4, 4), head
        self.add_module(head, nn.Linear(4, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(self.head_name)(self.body(x))


def trained(ckpt: holdfast.Checkpointer, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for n in range(steps):
        model(torch.full((3, 4), float(n))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ckpt.step()


def first_life(agent: FakeAgent) -> tuple[Net, torch.optim.AdamW]:
    model = Net(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, note=holdfast.Value("first"))
    ckpt.restore()
    trained(ckpt, model, optimizer, 3)
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    return model, optimizer


RENAMED = ("missing:model.new.weight", "missing:model.new.bias", "extra:model.head.weight", "extra:model.head.bias")


def test_the_error_prints_the_line_that_accepts_exactly_this_and_the_line_works(agent: FakeAgent) -> None:
    first_life(agent)

    def second(**options: Any) -> tuple[Net, torch.optim.AdamW, holdfast.Checkpointer]:
        model = Net(2, "new")
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
        ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, tally=holdfast.Value(7))
        ckpt.restore(**options)
        return model, optimizer, ckpt

    with pytest.raises(holdfast.RestoreError) as caught:
        second()
    said = str(caught.value)
    line = said[said.index("ckpt.restore(allow=") + len("ckpt.restore(allow=") :].rpartition(")")[0]
    allow = eval(line)
    assert set(allow) == {*RENAMED, "missing:tally", "extra:note"}
    assert "['tally']" in said
    assert "['note']" in said
    second(allow=allow)
    for left_out in allow:
        with pytest.raises(holdfast.RestoreError, match=left_out.partition(":")[2]):
            second(allow=[a for a in allow if a != left_out])


def test_what_is_missing_stays_as_the_script_made_it_and_the_rest_is_restored(
    agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    before, optimizer_before = first_life(agent)
    model = Net(2, "new")
    fresh = model.new.weight.clone()  # type: ignore[operator, union-attr]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, note=holdfast.Value(""))
    assert ckpt.restore(allow=RENAMED) == 3
    assert torch.equal(model.body.weight, before.body.weight)
    assert torch.equal(model.new.weight, fresh)  # type: ignore[arg-type, union-attr]
    state, there = optimizer.state[model.body.weight], optimizer_before.state[before.body.weight]
    assert torch.equal(state["exp_avg"], there["exp_avg"])
    assert model.new.weight not in optimizer.state, "it begins like one that has never been stepped"  # type: ignore[union-attr, operator]
    assert optimizer.param_groups[0]["lr"] == 0.01
    (said,) = [r.getMessage() for r in caplog.records if "as was allowed" in r.getMessage()]
    assert "model.new.weight" in said
    # It trains on, and the next checkpoint needs no allowance; nor does one that is there do harm.
    agent.restore_from = {}
    trained(ckpt, model, optimizer, 2)
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    for allow in ((), RENAMED):
        again = Net(3, "new")
        opt = torch.optim.AdamW(again.parameters(), lr=0.5)
        assert holdfast.Checkpointer(model=again, optimizer=opt, note=holdfast.Value("")).restore(allow=allow) == 5
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
        assert opt.state[again.new.weight]["step"] == 2  # type: ignore[index, union-attr]


def test_a_run_that_dropped_a_part_goes_on_bit_by_bit(agent: FakeAgent) -> None:
    """Half a model is thrown away: what is left trains as if the rest had never been."""
    agent.every_steps = 1

    def life(extra: bool, steps: int, **options: Any) -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = nn.ModuleDict({"a": nn.Linear(4, 4)} | ({"b": nn.Linear(4, 4)} if extra else {}))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
        ckpt.restore(**options)
        for n in range(ckpt.boundary, steps):
            sum(m(torch.full((2, 4), n / 7)).square().mean() for m in model.values()).backward()  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()
            ckpt.step()
        ckpt.finish()
        return [p.detach().clone() for p in model["a"].parameters()]

    want = life(True, 6)
    agent.restore_from = {0: [agent.images[0][3]]}
    got = life(False, 6, allow=("extra:model.b.weight", "extra:model.b.bias"))
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_nothing_beyond_the_exact_name_is_allowed(agent: FakeAgent) -> None:
    first_life(agent)
    for allow in (
        ("missing:model", "extra:model"),
        ("missing:model.new", "extra:model.head"),
        tuple(r.swapcase() for r in ()),
    ):
        model = Net(2, "new")
        with pytest.raises(holdfast.RestoreError, match=r"model\.new\.weight"):
            holdfast.Checkpointer(
                model=model, optimizer=torch.optim.AdamW(model.parameters()), note=holdfast.Value("")
            ).restore(allow=allow)
    swapped = [r.replace("missing", "x").replace("extra", "missing").replace("x:", "extra:") for r in RENAMED]
    model = Net(2, "new")
    with pytest.raises(holdfast.RestoreError, match=r"model\.new\.weight"):
        holdfast.Checkpointer(
            model=model, optimizer=torch.optim.AdamW(model.parameters()), note=holdfast.Value("")
        ).restore(allow=swapped)


def test_a_changed_shape_is_not_a_missing_key(agent: FakeAgent) -> None:
    first_life(agent)
    model = Net(2, size=5)
    allow = ("missing:model.head.weight", "extra:model.head.weight", "missing:model.head.bias", "extra:model.head.bias")
    with pytest.raises(holdfast.RestoreError, match=r"model\.head\.weight: \(5, 4\) torch\.float32 here, \(2, 4\)"):
        holdfast.Checkpointer(
            model=model, optimizer=torch.optim.AdamW(model.parameters()), note=holdfast.Value("")
        ).restore(allow=allow)


@pytest.mark.parametrize("word", ["sample_order", "missing", "missing:", "model.head", "Missing:model", ""])
def test_a_word_that_says_nothing_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="is unknown; known are"):
        holdfast.Checkpointer(note=holdfast.Value(1)).restore(allow=(word,))


def test_one_word_need_not_be_in_a_list() -> None:
    assert "data-files" in Allowed.of("data-files")
    assert Allowed.of("missing:a.b").missing == {"a.b"}


def test_a_thousand_names_are_shown_in_part() -> None:
    text = Apart(frozenset(f"m.{n}" for n in range(1000))).remedy()
    assert text.count("missing:") == 50
    assert text.endswith("and 950 more")


def test_a_missing_parameter_on_the_meta_device_has_nothing_to_start_from(agent: FakeAgent) -> None:
    first_life(agent)
    with torch.device("meta"):
        model = Net(2, "new")
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(holdfast.RestoreError, match=r"model\.new\.weight is on the meta device"):
        holdfast.Checkpointer(model=model, optimizer=optimizer, note=holdfast.Value("")).restore(allow=RENAMED)


# ---- another class under the same name

KINDS: dict[str, tuple[Any, Any, str]] = {
    "another optimizer": (
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1),
        "thing is SGD here, and was AdamW",
    ),
    "a near relation": (
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1),
        "thing is Adam here, and was AdamW",
    ),
    "another scheduler": (
        lambda p: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(p), 1),
        lambda p: torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD(p), 5),
        "thing is CosineAnnealingLR here, and was StepLR",
    ),
    "another generator": (
        lambda p: torch.Generator(),
        lambda p: __import__("random").Random(1),
        r"thing is random\.Random here, and was torch\.Generator",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_another_class_is_refused_before_anything_is_touched(agent: FakeAgent, name: str) -> None:
    one, other, words = KINDS[name]
    model = nn.Linear(2, 2)
    ckpt = holdfast.Checkpointer(model=model, thing=one(model.parameters()))
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    again = nn.Linear(2, 2)
    before = again.weight.clone()
    with pytest.raises(holdfast.RestoreError, match=words):
        holdfast.Checkpointer(model=again, thing=other(again.parameters())).restore()
    assert torch.equal(again.weight, before)
    # What the message says to do.
    ckpt = holdfast.Checkpointer(model=again, new=other(again.parameters()))
    assert ckpt.restore(allow=("extra:thing", "missing:new")) == 1
    assert torch.equal(again.weight, model.weight)


# ---- loaders whose place is counted


def test_a_loader_under_another_name_does_not_begin_again_without_a_word(agent: FakeAgent) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.arange(8)), batch_size=2)

    train = loader()
    ckpt = holdfast.Checkpointer(train=train)
    ckpt.restore()
    for _ in ckpt.batches(train):
        ckpt.step()
        if ckpt.boundary == 2:
            break
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    with pytest.raises(
        holdfast.RestoreError, match=r"not in the checkpoint: \['data'\]; .* not registered: \['train'\]"
    ):
        holdfast.Checkpointer(data=loader()).restore()
    with pytest.raises(holdfast.RestoreError, match=r"not registered: \['train'\]"):
        holdfast.Checkpointer(note=holdfast.Value(1)).restore(allow=("missing:note",))
    data = loader()
    ckpt = holdfast.Checkpointer(data=data)
    ckpt.restore(allow=("missing:data", "extra:train"))
    assert [b[0].tolist() for b in ckpt.batches(data)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    assert holdfast.Checkpointer(data=loader()).restore() == 3, "what was left out is not carried on"
