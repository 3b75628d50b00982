"""From the image into the live objects: every byte copied once, by several threads, whatever the form; models without memory get theirs then."""

import threading
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent
from torch import nn

import holdfast
from holdfast import copying, filling
from holdfast.errors import RestoreError
from holdfast.module_part import ModulePart, plain_targets

BIG = (3, 1 << 20)


def test_targets_become_equal_to_their_sources_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "THREADED_BYTES", 1)
    big, strided = torch.rand(BIG), torch.zeros(6, 4).t()
    pairs = [
        (torch.zeros(BIG), big),
        (strided, torch.rand(4, 6)),
        (torch.zeros(5, dtype=torch.bool), torch.tensor([True, False, True, True, False])),
        (torch.zeros(()), torch.tensor(3.5)),
        (torch.zeros(0), torch.zeros(0)),
        (torch.zeros(7, dtype=torch.bfloat16), torch.rand(7).bfloat16()),
        (torch.zeros(3, dtype=torch.complex64), torch.rand(3, dtype=torch.complex64).conj()),
        (torch.zeros(1).expand(4), torch.ones(4)),
    ]
    filling.fill(pairs)
    assert all(torch.equal(target, source) for target, source in pairs)
    assert pairs[0][0].data_ptr() != big.data_ptr()


def test_tied_targets_are_written_once() -> None:
    whole, source = torch.zeros(BIG), torch.rand(BIG)
    filling.fill([(whole, source), (whole.view(BIG), source)])
    assert torch.equal(whole, source)


def test_large_tensors_are_copied_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "thread_count", lambda: 3)
    monkeypatch.setattr(copying, "MOST_THREADS", 3)
    together, names = threading.Barrier(3, timeout=30), set()
    real = copying._work

    def work(waiting: Any) -> None:
        together.wait()
        names.add(threading.current_thread().name)
        real(waiting)

    monkeypatch.setattr(copying, "_work", work)
    filling.fill([(torch.zeros(4 << 20), torch.rand(4 << 20))])
    assert len(names) == 3


def test_a_cloned_tree_shares_no_memory() -> None:
    tree = {"a": [torch.rand(BIG), (torch.rand(2), 3)], "b": torch.rand(2 << 20).bfloat16()}
    copy = filling.cloned(tree)
    assert torch.equal(copy["a"][0], tree["a"][0])
    assert torch.equal(copy["b"], tree["b"])
    assert copy["a"][1][1] == 3
    tree["a"][0].zero_()  # type: ignore[union-attr]
    tree["a"][1][0].zero_()  # type: ignore[index]
    assert copy["a"][0].any()
    assert copy["a"][1][0].any()


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, -1])
def test_one_value_that_is_not_finite_is_found_and_the_first_tensor_named(
    bad: float, at: int, threaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "THREADED_BYTES", 0 if threaded else 1 << 40)
    monkeypatch.setattr(filling, "CHECKED_ELEMENTS", 1000)
    good, damaged = torch.rand(5000), torch.rand(70, 70)
    named = [
        ("integers", torch.ones(3, dtype=torch.int64)),
        ("empty", torch.zeros(0)),
        ("good", good),
        ("x", damaged),
        ("y", damaged),
    ]
    assert filling.first_not_finite(named) is None
    damaged.view(-1)[at] = bad
    assert filling.first_not_finite(named) == "x"


class OwnWay(nn.Linear):
    def _load_from_state_dict(self, *args: Any, **named: Any) -> None:
        super()._load_from_state_dict(*args, **named)


def test_modules_with_a_way_of_their_own_are_loaded_that_way() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), OwnWay(2, 2))
    assert plain_targets(model).keys() == {"0.weight", "0.bias"}
    model[0].register_load_state_dict_pre_hook(lambda *_: None)
    assert plain_targets(model) == {}


def test_a_hook_of_the_users_still_sees_what_is_loaded(agent: FakeAgent) -> None:
    before = nn.Linear(3, 3)
    ckpt = holdfast.Checkpointer(model=before)
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    after, seen = nn.Linear(3, 3), []
    after.register_load_state_dict_pre_hook(lambda module, state, *_: seen.append(sorted(state)))
    holdfast.Checkpointer(model=after).restore()
    assert seen == [["bias", "weight"]]
    assert torch.equal(after.weight, before.weight)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 32)
        self.middle = nn.Linear(32, 32)
        self.norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("cache", torch.arange(8.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.middle(self.embedding(x))))


def trained(agent: FakeAgent) -> tuple[Net, torch.optim.Optimizer]:
    net = Net()
    net.cache.mul_(3)
    optimizer = torch.optim.AdamW(net.parameters())
    ckpt = holdfast.Checkpointer(model=net, optimizer=optimizer)
    ckpt.restore()
    for _ in range(2):
        net(torch.arange(16)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    return net, optimizer


def test_a_model_on_the_meta_device_gets_memory_and_content_and_its_optimizer_goes_on_with_it(agent: FakeAgent) -> None:
    before, _ = trained(agent)
    with torch.device("meta"):
        net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    held = {id(p) for p in net.parameters()}
    assert holdfast.Checkpointer(model=net, optimizer=optimizer).restore() == 2
    for name, value in before.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    assert torch.equal(net.cache, before.cache)
    assert net.head.weight is net.embedding.weight
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == held
    net(torch.arange(16)).sum().backward()
    old = net.middle.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(net.middle.weight, old), "the optimizer steps the parameters that the model has"


def test_a_first_start_with_nothing_in_the_model_is_refused_with_the_remedy(agent: FakeAgent) -> None:
    with torch.device("meta"):
        net = Net()
    with pytest.raises(RestoreError, match=r"model\.embedding\.weight.*to_empty"):
        holdfast.Checkpointer(model=net).restore()


def test_a_buffer_that_no_checkpoint_holds_is_named_before_anything_is_touched() -> None:
    with torch.device("meta"):
        net = Net()
    part = ModulePart("model", net)
    problems = list(part.compare({"state": dict.fromkeys(net.state_dict()), "loose": {}}, {}))
    assert any("model.cache is on the meta device" in p for p in problems)
    assert all(t.is_meta for t in net.state_dict().values())


def test_memory_that_something_else_refers_to_is_refused_in_words(agent: FakeAgent) -> None:
    trained(agent)
    with torch.device("meta"):
        net = Net()
    kept = net.embedding.weight.expand_as(net.embedding.weight)  # an autograd node holds the parameter
    with pytest.raises(RestoreError, match="meta device"):
        holdfast.Checkpointer(model=net, optimizer=torch.optim.AdamW(net.parameters())).restore()
    assert kept.is_meta


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("side", ["on", "off"])
def test_on_a_gpu_what_follows_sees_every_byte(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SIDE_STREAM", side)
    source = torch.rand(32 << 20)
    pairs = [(torch.zeros(32 << 20, device="cuda"), source), (torch.zeros(3, device="cuda"), torch.ones(3))]
    filling.fill(pairs)
    assert torch.equal(pairs[0][0].cpu(), source)
    assert pairs[1][0].sum() == 3
