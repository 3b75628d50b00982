"""K2: settling the buckets changes nothing that training sees, and says when it cannot."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from holdfast import rng
from holdfast.ddp import settle_buckets


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))


def test_parameters_buffers_gradients_generators_and_the_module_stay_as_they_were() -> None:
    inner = model().eval()
    ddp = DistributedDataParallel(inner)
    before, generators = {k: v.clone() for k, v in inner.state_dict().items()}, rng.capture()
    assert settle_buckets({"model": ddp}) == []
    assert ddp.module is inner
    assert not inner.training
    assert all(torch.equal(v, before[k]) for k, v in inner.state_dict().items())
    assert all(p.grad is None for p in inner.parameters())
    assert rng.capture() == generators
    assert ddp.require_forward_param_sync, "buffers are broadcast before the first real forward, as ever"
    assert not ddp.reducer._rebuild_buckets(), "nothing is left to rebuild"
    ddp.train()(torch.ones(3, 4)).sum().backward()
    assert all(p.grad is not None for p in inner.parameters())


def test_an_infinite_parameter_does_not_matter() -> None:
    inner = model()
    with torch.no_grad():
        inner[0].weight.fill_(float("nan"))
    assert settle_buckets({"model": DistributedDataParallel(inner)}) == []


def hooked() -> DistributedDataParallel:
    inner = model()
    inner[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    return DistributedDataParallel(inner)


def with_comm_hook() -> DistributedDataParallel:
    ddp = DistributedDataParallel(model())
    ddp.register_comm_hook(None, lambda state, bucket: torch.futures.Future())
    return ddp


def after_backward() -> DistributedDataParallel:
    ddp = DistributedDataParallel(model())
    ddp(torch.ones(3, 4)).sum().backward()
    return ddp


OBSTACLES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "static graph": (lambda: DistributedDataParallel(model(), static_graph=True), "static_graph"),
    "hooks on parameters": (hooked, "hooks on parameters"),
    "a communication hook": (with_comm_hook, "communication hook"),
    "sparse gradients": (lambda: DistributedDataParallel(nn.Embedding(3, 3, sparse=True)), "sparse"),
    "restore after a backward": (after_backward, "call it before"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_settled_is_left_alone_and_said(name: str, caplog: pytest.LogCaptureFixture) -> None:
    build, reason = OBSTACLES[name]
    (found,) = settle_buckets({"net": build()})
    assert found.startswith("net: ")
    assert reason in found
    assert "K2" in caplog.text


def test_a_model_that_ddp_never_rebuilds_needs_nothing() -> None:
    assert settle_buckets({"model": DistributedDataParallel(model(), find_unused_parameters=True)}) == []
    assert settle_buckets({"model": model(), "absent": None}) == []
