"""Parts of DTensors: where they lie in the whole, what is written down about them, and what is refused by name instead of saved wrongly."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ddp_ranks import Job, finished, start
from fake_agent import FakeAgent
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import holdfast
from holdfast import sharding

PLACED = [
    ((7, 5), (4,), (Shard(0),)),
    ((7, 5), (4,), (Shard(1),)),
    ((3, 5), (4,), (Shard(0),)),
    ((8, 6), (2, 2), (Shard(0), Shard(1))),
    ((8, 6), (2, 2), (Shard(0), Shard(0))),
    ((5, 6), (2, 2), (Replicate(), Shard(0))),
    ((8, 3), (2, 2), (_StridedShard(0, split_factor=2), Shard(0))),
    ((16, 3), (4, 2), (_StridedShard(0, split_factor=2), Shard(0))),
    ((9, 4, 2), (2, 3), (Shard(2), Shard(0))),
]


@pytest.fixture
def lone_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("shape", "mesh", "placements"), PLACED)
def test_the_parts_cover_the_whole_and_lie_where_they_say(
    shape: tuple[int, ...], mesh: tuple[int, ...], placements: tuple[Any, ...]
) -> None:
    """Cut as torch cuts, by its own splitting; put together again by our boxes."""
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    again = torch.full(shape, -1)
    for coordinate in itertools.product(*map(range, mesh)):
        part = whole
        for count, at, placement in zip(mesh, coordinate, placements, strict=True):
            if not placement.is_replicate():
                part = placement._split_tensor(part, count, with_padding=False, contiguous=True)[0][at]
        found = sharding.box_of(shape, mesh, coordinate, placements)
        assert found is not None
        box, lengths = found
        assert lengths == tuple(part.shape)
        again[tuple(slice(a, a + n) for a, n in zip(box.offset, lengths, strict=True))] = part
    assert torch.equal(again, whole)


def test_a_part_of_indices_with_gaps_is_no_box() -> None:
    assert sharding.box_of((8,), (2,), (0,), (_StridedShard(0, split_factor=2),)) is None


def test_ranks_are_written_shortly_and_equal_sets_alike() -> None:
    assert sharding.ranks_text([3, 0, 1, 2, 7]) == sharding.ranks_text([7, 3, 2, 1, 0]) == "0-3,7"


def test_the_manifest_says_where_parts_lie_and_who_holds_the_same(tmp_path: Path) -> None:
    job = Job(world=2, directory=tmp_path / "run", shard="FSDP2", socket=str(tmp_path / "a" / "agent.sock"))
    with FakeAgent(tmp_path / "a", every_steps=12) as agent:
        finished(job, start(job))
        entries = [{e.name: e for e in agent.newest(r).entries} for r in range(2)]
    for name in ("model.4.weight", "optimizer.state.4.exp_avg"):
        first, second = (e[name] for e in entries)
        assert (first.shape, second.shape) == ((167, 64), (166, 64))
        assert first.global_shape == second.global_shape == (333, 64)
        assert (first.global_offset, second.global_offset) == ((0, 0), (167, 0))
        assert first.group == "0-1"
    assert entries[0]["optimizer.state.4.step"].group == "0-1"
    assert entries[0]["optimizer.state.4.step"].global_shape == ()


def part(local: torch.Tensor, shape: tuple[int, ...], *offset: int) -> sharding.Part:
    return sharding.Part(local, sharding.Box(shape, offset), ("S(0)",))


def test_a_part_goes_only_where_it_came_from() -> None:
    saved = part(torch.ones(2, 3), (4, 3), 2, 0)
    assert sharding.differences("model.w", part(torch.zeros(2, 3), (4, 3), 2, 0), saved) == []
    (words,) = sharding.differences("model.w", part(torch.zeros(2, 3), (4, 3), 0, 0), saved)
    assert "model.w: this rank holds [0:2, 0:3] of (4, 3)" in words
    assert "[2:4, 0:3] of (4, 3)" in words
    assert "mesh" in words
    assert sharding.differences("model.w", torch.zeros(4, 3), saved)
    assert sharding.differences("model.w", saved, torch.zeros(4, 3))


class Own:
    """Keeps a DTensor in a state of its own."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.tensor}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def test_a_dtensor_where_it_could_not_be_put_back_is_refused_by_name(lone_group: None, agent: FakeAgent) -> None:
    tensor = distribute_tensor(torch.randn(4), init_device_mesh("cpu", (1,)), [Replicate()])
    with pytest.raises(holdfast.UnsupportedState, match=r"own\.average is a .*DTensor, .*registered module.*to_local"):
        holdfast.Checkpointer(own=Own(tensor)).restore()


def test_a_sum_that_is_not_formed_is_refused_by_name(lone_group: None, agent: FakeAgent) -> None:
    model = nn.Linear(2, 2)
    mesh = init_device_mesh("cpu", (1,))
    model.register_buffer("open", DTensor.from_local(torch.ones(2), mesh, [Partial()], run_check=False))
    with pytest.raises(
        holdfast.UnsupportedState, match=r"model\.open is a DTensor of which every rank holds a summand"
    ):
        holdfast.Checkpointer(model=model).restore()


def test_gradients_that_are_not_reduced_yet_end_saving_by_name(
    lone_group: None, agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    agent.every_steps = 1
    model = fully_shard(nn.Linear(2, 2), mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    ckpt.restore()
    model.set_requires_gradient_sync(False)
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
        ckpt.step()
    ckpt.finish()
    assert not agent.images[0]
    assert any("has not reduced its gradients yet" in r.getMessage() for r in caplog.records)


def test_parameters_that_are_gathered_when_registered_are_found_again(lone_group: None, agent: FakeAgent) -> None:
    """After a forward FSDP2's root keeps whole parameters in its modules; the optimizer's are the parts."""
    model = fully_shard(nn.Linear(2, 2), mesh=init_device_mesh("cpu", (1,)), reshard_after_forward=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2))
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    ckpt.restore()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    model(torch.ones(1, 2))  # an evaluation
    ckpt.step()
    ckpt.finish()
    entries = {e.name: e for e in agent.newest().entries}
    assert entries["model.weight"].global_shape == (2, 2)
    assert not any("orphan" in name for name in entries)
    plan = agent.connections[0].plan
    assert plan is not None
    assert {"model.weight", "optimizer.state.0.exp_avg"} <= {*(plan.must_be_finite or ())}, (
        "parts are looked at as well"
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["without state", "with state"])
def test_a_sharded_loop_is_copied_at_boundaries_only(lone_group: None, agent: FakeAgent, momentum: float) -> None:
    """I6: in the middle of a step FSDP2 has other tensors in its modules than the parts that are saved."""
    model = fully_shard(nn.Linear(64, 64), mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    ckpt.restore()
    for _ in range(40):
        model(torch.ones(1, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ckpt.step()
        if ckpt._mid is not None and ckpt._mid.judgement.final:
            break
        time.sleep(0.01)  # the agent makes the slots meanwhile
    assert (ckpt._run["loop"], ckpt._run["loop_why"]) == ("boundary-only", "model.weight is a DTensor")
    ckpt.finish()


def test_dtensors_on_the_meta_device_are_refused_with_what_to_do(lone_group: None, agent: FakeAgent) -> None:
    def built(memory: bool) -> nn.Module:
        with torch.device("meta"):
            model = nn.Linear(2, 2)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        return model.to_empty(device="cpu") if memory else model

    model = built(memory=True)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    ckpt = holdfast.Checkpointer(model=model)
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    with pytest.raises(holdfast.RestoreError, match=r"model\.\w+ is a DTensor on the meta device; .*to_empty"):
        holdfast.Checkpointer(model=built(memory=False)).restore()
    again = built(memory=True)
    assert holdfast.Checkpointer(model=again).restore() == 1
    assert torch.equal(again.weight.full_tensor(), torch.ones(2, 2))


def parameters(order: str) -> tuple[nn.ParameterDict, torch.optim.Optimizer]:
    model = nn.ParameterDict({name: nn.Parameter(torch.full((3,), float(i))) for i, name in enumerate("abc")})
    return model, torch.optim.AdamW([model[name] for name in order])


def test_optimizer_state_follows_the_names_of_the_parameters(agent: FakeAgent) -> None:
    model, optimizer = parameters("abc")
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    ckpt.restore()
    for name, value in zip("abc", (1.0, 2.0, 3.0), strict=True):
        model[name].grad = torch.full((3,), value)
    optimizer.step()
    optimizer.zero_grad()
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    other, turned = parameters("cab")
    assert holdfast.Checkpointer(model=other, optimizer=turned).restore() == 1
    for name in "abc":
        assert torch.equal(turned.state[other[name]]["exp_avg"], optimizer.state[model[name]]["exp_avg"]), name
    agent.restore_from = {0: [agent.newest()]}
    grown, optimizer = parameters("abc")
    optimizer.param_groups[0]["params"][1] = grown["c"]
    optimizer.param_groups[0]["params"][2] = nn.Parameter(torch.zeros(3))
    with pytest.raises(holdfast.RestoreError, match=r"optimizer: parameter group 0 .* the checkpoint has model\.b"):
        holdfast.Checkpointer(model=grown, optimizer=optimizer).restore()


@pytest.mark.parametrize(("first", "then"), [("abc-", "cab-"), ("abc-", "-abc"), ("a-b-c", "-cb-a")])
def test_state_follows_the_names_beside_parameters_that_have_none(first: str, then: str, agent: FakeAgent) -> None:
    """`-` is a parameter that only the optimizer holds; those stay in their order. Gradients of an open window go with them."""

    def build(order: str) -> tuple[nn.Module, list[nn.Parameter], torch.optim.Optimizer]:
        model = nn.ParameterDict({name: nn.Parameter(torch.zeros(3)) for name in "abc"})
        alone = [nn.Parameter(torch.zeros(3)) for _ in range(order.count("-"))]
        left = iter(alone)
        named = [(f"p.{i}", next(left) if name == "-" else model[name]) for i, name in enumerate(order)]
        return model, alone, torch.optim.AdamW(named)

    model, alone, optimizer = build(first)
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    ckpt.restore()
    for update in (True, False):
        for number, parameter in enumerate([*(model[n] for n in "abc"), *alone]):
            parameter.grad = torch.full((3,), number + 1.0 + 10 * update)
        if update:
            optimizer.step()
        ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    other, lonely, turned = build(then)
    live = [g["param_names"] for g in turned.param_groups]
    assert holdfast.Checkpointer(model=other, optimizer=turned).restore() == 2
    here, there = ([*(m[n] for n in "abc"), *rest] for m, rest in ((other, lonely), (model, alone)))
    for mine, its in zip(here, there, strict=True):
        assert torch.equal(turned.state[mine]["exp_avg"], optimizer.state[its]["exp_avg"])
        assert torch.equal(mine, its)
        assert torch.equal(mine.grad, its.grad)
    assert [g["param_names"] for g in turned.param_groups] == live


def test_a_module_registered_beside_the_one_that_it_is_a_part_of_may_change_places_with_it(agent: FakeAgent) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        return model, torch.optim.Adam(model.parameters())

    model, optimizer = build()
    ckpt = holdfast.Checkpointer(model=model, head=model[1], optimizer=optimizer)
    ckpt.restore()
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    other, restored = build()
    assert holdfast.Checkpointer(head=other[1], model=other, optimizer=restored).restore() == 1
    for mine, its in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(restored.state[mine]["exp_avg"], optimizer.state[its]["exp_avg"])


@pytest.mark.parametrize(("hook", "group"), [("fp16_compress_hook", "0"), ("of_the_script", "")])
def test_only_gradients_that_are_equal_make_copies(hook: str, group: str, lone_group: None, agent: FakeAgent) -> None:
    """Local SGD, for example, lets ranks go apart by intention: that is no damage."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    def of_the_script(state, bucket):
        return default_hooks.noop_hook(None, bucket)

    model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    model.register_comm_hook(None, getattr(default_hooks, hook, of_the_script))
    ckpt = holdfast.Checkpointer(model=model)
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    assert {e.name: e.group for e in agent.newest().entries}["model.weight"] == group
