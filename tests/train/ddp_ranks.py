"""Ranks of a DistributedDataParallel job as real processes: started from a server that has torch imported, so that four of them start in a second."""

import json
import multiprocessing
import os
import random
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from holdfast_api import names

_CONTEXT = multiprocessing.get_context("forkserver")
# The first optimizer step imports torch._dynamo: seconds, unless it is there already.
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "torch._dynamo", "holdfast", "numpy"])


@dataclass(frozen=True)
class Job:
    """`socket` empty: no agent. `settle` False: DDP builds its buckets as it likes."""

    world: int
    directory: Path
    socket: str = ""
    settle: bool = True
    steps: int = 12
    accumulate: int = 1
    step_seconds: float = 0.0
    bucket_cap_mb: float | None = None
    as_views: bool = False
    zero: bool = False
    """ZeRO-1, with a scheduler."""
    shard: str = ""
    """Not DDP: a key of `SHARDED`."""
    pipeline: bool = False
    """Not DDP: two stages that hand on activations and gradients, of different sizes, the second with two optimizers."""
    stall_at: int = 0
    """The last rank never gets the batch of this iteration."""
    pauses: tuple[float, ...] = ()
    """Seconds that a rank stands still between backward and update, by rank and in turn: peers wait for it in collectives."""


def start(job: Job) -> list[BaseProcess]:
    """The ranks, started. They write `<directory>/<rank>.json` at the end."""
    job.directory.mkdir(parents=True)
    ranks = [_CONTEXT.Process(target=_rank_main, args=(job, rank)) for rank in range(job.world)]
    for rank in ranks:
        rank.start()
    return ranks


def finished(job: Job, ranks: list[BaseProcess]) -> list[dict[str, Any]]:
    """Waits for the end; what each rank wrote."""
    for rank in ranks:
        rank.join(120)
        assert rank.exitcode == 0, f"exit code {rank.exitcode}"
    return [json.loads((job.directory / f"{r}.json").read_text()) for r in range(job.world)]


def kill(ranks: list[BaseProcess]) -> None:
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.join(60)


def _rank_main(job: Job, rank: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.world)}
    if job.socket:
        os.environ[names.ENV_SOCKET] = job.socket
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(job.directory / "store"), job.world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=job.world)
    import holdfast
    import holdfast.checkpointer

    if not job.settle:
        holdfast.checkpointer.settle_buckets = lambda targets: []  # type: ignore[assignment]
    train = _train_stage if job.pipeline else _train
    (job.directory / f"{rank}.json").write_text(json.dumps(train(job, rank, holdfast)))
    torch.distributed.destroy_process_group()


def _seed(rank: int) -> None:
    """All generators are part of the state; what a server was started with is not the same in every run of the tests."""
    torch.manual_seed(11)
    random.seed(11 + rank)
    numpy.random.seed(11 + rank)


def _train(job: Job, rank: int, holdfast: Any) -> dict[str, Any]:
    _seed(rank)
    layers = [
        nn.Linear(64, 256),
        nn.BatchNorm1d(256),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Linear(256, 333),
        nn.Linear(333, 64),
    ]
    model: Any
    if job.shard:
        model = SHARDED[job.shard]()
    else:
        model = nn.parallel.DistributedDataParallel(
            nn.Sequential(*layers), bucket_cap_mb=job.bucket_cap_mb, gradient_as_bucket_view=job.as_views
        )
    torch.manual_seed(100 + rank)
    if job.zero:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optimizer: torch.optim.Optimizer = ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=torch.optim.AdamW, lr=3e-3
        )
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97) if job.zero else None
    data = torch.utils.data.TensorDataset(torch.arange(24 * job.world), torch.randn(24 * job.world, 64).sin())
    sampler = torch.utils.data.DistributedSampler(data, seed=5)
    loader = torch.utils.data.DataLoader(data, batch_size=4, sampler=sampler)
    ckpt = holdfast.Checkpointer(
        model=model, optimizer=optimizer, scheduler=scheduler, loader=loader, data=torch.Generator().manual_seed(rank)
    )
    first = ckpt.restore() + 1
    losses, samples = {}, []
    for index, x in ckpt.batches(loader, epochs=None):
        number = ckpt.boundary + 1
        samples += index.tolist()
        if number == job.stall_at and rank == job.world - 1:
            time.sleep(600)
        step_now = number % job.accumulate == 0
        if not job.shard:
            model.require_backward_grad_sync = step_now  # what no_sync() sets
        loss = (model(x + 0.1 * torch.randn(x.shape)) - x).square().mean()
        loss.backward()
        if job.pauses:
            time.sleep(job.pauses[(number * (rank + 1)) % len(job.pauses)])
        if step_now:
            optimizer.step()
            optimizer.zero_grad()
            if scheduler is not None:
                scheduler.step()
        losses[number] = loss.item().hex()
        time.sleep(job.step_seconds)
        ckpt.step(loss=loss)
        if ckpt.boundary == job.steps:
            break
    ckpt.finish()
    weights = [_bytes(t) for t in model.state_dict().values() if t.ndim]
    weights += [_bytes(t) for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    return {"first": first, "losses": losses, "samples": samples, "weights": weights, "rng": torch.rand(4).tolist()}


def _train_stage(job: Job, rank: int, holdfast: Any) -> dict[str, Any]:
    """One of two stages of a pipeline. Each rank's update comes when its own part of the backward is done, so windows of one step lie at different times, and
    whoever stands still has the other wait in a send or a receive."""
    _seed(rank)
    first_stage = rank == 0
    stage = (
        nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Dropout(0.2))
        if first_stage
        else nn.Sequential(nn.Linear(256, 333), nn.Tanh(), nn.Linear(333, 64))
    )
    torch.manual_seed(100 + rank)
    optimizer = torch.optim.AdamW(stage[0].parameters(), lr=3e-3)
    more = {} if first_stage else {"second": torch.optim.SGD(stage[2].parameters(), lr=1e-2, momentum=0.9)}
    data = torch.utils.data.TensorDataset(
        torch.arange(48), torch.randn(48, 64, generator=torch.Generator().manual_seed(3))
    )
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    ckpt = holdfast.Checkpointer(model=stage, optimizer=optimizer, loader=loader, **more)
    first = ckpt.restore() + 1
    losses, samples = {}, []
    for index, x in ckpt.batches(loader, epochs=None):
        number = ckpt.boundary + 1
        samples += index.tolist()
        loss = _micro_batches(stage, x, first_stage)
        if job.pauses:
            time.sleep(job.pauses[(number * (rank + 1)) % len(job.pauses)])
        for o in (optimizer, *more.values()):
            o.step()
            o.zero_grad()
        losses[number] = loss.hex()
        time.sleep(job.step_seconds)
        ckpt.step(loss=loss)
        if ckpt.boundary == job.steps:
            break
    ckpt.finish()
    weights = [_bytes(t) for t in stage.state_dict().values()]
    return {"first": first, "losses": losses, "samples": samples, "weights": weights, "rng": torch.rand(4).tolist()}


def _micro_batches(stage: nn.Sequential, x: torch.Tensor, first_stage: bool) -> float:
    """Forward of all micro-batches, then backward of all (the stage's loss, or how large what it handed on was)."""
    distributed = torch.distributed
    if first_stage:
        handed_on = [stage(part) for part in x.chunk(2)]
        for activation in handed_on:
            distributed.send(activation.detach(), 1)
        for activation in handed_on:
            gradient = torch.empty_like(activation)
            distributed.recv(gradient, 1)
            activation.backward(gradient)
        return float(sum(a.detach().abs().mean().item() for a in handed_on))
    taken = []
    total = 0.0
    for part in x.chunk(2):
        activation = torch.empty(len(part), 256)
        distributed.recv(activation, 0)
        activation.requires_grad_()
        loss = (stage(activation) - part).square().mean()
        total += loss.item()
        taken.append((activation, loss))
    for activation, loss in taken:
        loss.backward()
        distributed.send(activation.grad, 0)
    return total


def _bytes(tensor: Any) -> str:
    here = getattr(tensor.detach(), "_local_tensor", tensor.detach())
    return here.contiguous().view(-1).view(torch.uint8).numpy().tobytes().hex() if here.numel() else ""


def _layers() -> nn.Sequential:
    """333 rows go into no even shares, and a bias of 3 leaves a rank of four without any."""
    return nn.Sequential(
        nn.Linear(64, 256),
        nn.Tanh(),
        nn.Linear(256, 64),
        nn.Dropout(0.2),
        nn.Linear(64, 333),
        nn.Linear(333, 3),
        nn.Linear(3, 64),
    )


def _fsdp(model: nn.Sequential, **options: Any) -> nn.Sequential:
    from torch.distributed.fsdp import fully_shard

    options.setdefault("mesh", _mesh("shares"))  # without one, fully_shard takes the GPU of a machine that has one
    for layer in (model[0], model[4]):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    return model


def _mesh(*names_of: str) -> Any:
    world = torch.distributed.get_world_size()
    shape = (world,) if len(names_of) == 1 else (world // 2, 2)
    return torch.distributed.device_mesh.init_device_mesh("cpu", shape, mesh_dim_names=names_of)


def _tensor_parallel(model: nn.Sequential, mesh: Any) -> nn.Sequential:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return model


def _on_both() -> nn.Sequential:
    mesh = _mesh("data", "model")
    return _fsdp(_tensor_parallel(_layers(), mesh["model"]), mesh=mesh["data"])


def _hybrid() -> nn.Sequential:
    return _fsdp(_layers(), mesh=_mesh("copies", "shares"))


SHARDED = {
    "FSDP2": lambda: _fsdp(_layers()),
    "FSDP2 that keeps what it gathers": lambda: _fsdp(_layers(), reshard_after_forward=False),
    "tensor parallel": lambda: _tensor_parallel(_layers(), _mesh("model")),
    "tensor parallel and FSDP2": _on_both,
    "copies of shares": _hybrid,
}
