"""Ranks that are stopped in the middle of an epoch and gone on with by another number of them, as real processes on gloo.

A process group of N ranks runs every kind and leaves, beside what it captured, torch's own full `state_dict` of the same point. One of M ranks loads what
each of the others captured, and beside it builds a run from the full `state_dict`: both train the rest of the epoch, and are compared bit by bit.
"""

import multiprocessing
import os
import random
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from holdfast_api import names

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "torch._dynamo", "holdfast", "numpy"])
SAMPLES = 101
"""A prime: no number of ranks divides it."""
STEPS = 2
BATCH = 3
KINDS = ("DDP", "FSDP2", "ZeRO-1", "TP", "TP and FSDP2", "copies of shares", "large FSDP2")


@dataclass(frozen=True)
class Case:
    """`socket`: the agent's. `full`: the state_dict that the comparison starts from; of a first run what it leaves."""

    kind: str
    socket: str
    full: Path
    made_by: int = 0
    """0: a first run."""
    at: int = STEPS
    """The boundary that is gone on from."""
    stop: int = 0
    """The boundary at which a later run stops; 0: after the first batch of the next epoch."""
    leaves: Path | None = None
    """A state_dict of that boundary."""


@dataclass(frozen=True)
class Job:
    world: int
    directory: Path
    cases: tuple[Case, ...]


def run(job: Job) -> list[list[dict[str, Any]]]:
    """What each rank found in each case."""
    job.directory.mkdir(parents=True)
    ranks: list[BaseProcess] = [_CONTEXT.Process(target=_main, args=(job, rank)) for rank in range(job.world)]
    for rank in ranks:
        rank.start()
    for number, rank in enumerate(ranks):
        rank.join(240)
        if rank.exitcode != 0:
            for other in ranks:
                other.kill()
            told = job.directory / f"{number}.txt"
            raise AssertionError(f"rank {number}: {told.read_text() if told.exists() else rank.exitcode}")
    return [torch.load(job.directory / f"{r}.pt", weights_only=True) for r in range(job.world)]


def _main(job: Job, rank: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.world)}
    torch.set_num_threads(1)
    try:
        store = torch.distributed.FileStore(str(job.directory / "store"), job.world)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=job.world)
        found = []
        for case in job.cases:
            os.environ[names.ENV_SOCKET] = case.socket
            found.append(_first(case, rank) if not case.made_by else _goes_on(case, rank))
            torch.distributed.barrier()
        torch.save(found, job.directory / f"{rank}.pt")
        torch.distributed.destroy_process_group()
    except BaseException:
        (job.directory / f"{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)


class Setup:
    """One rank's objects of one kind."""

    def __init__(self, kind: str, seed: int) -> None:
        world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        torch.manual_seed(seed)
        self.replicas, self.replica = world, rank
        self.model: Any = _large_layers() if kind == "large FSDP2" else _layers()
        match kind:
            case "DDP" | "ZeRO-1":
                # J4: other statistics on every rank. Over two values of each sample, because what is left of an epoch may end with a batch of one.
                self.model.extend([nn.Unflatten(1, (4, 2)), nn.BatchNorm1d(4), nn.Flatten()])
                self.model = nn.parallel.DistributedDataParallel(self.model, broadcast_buffers=False)
            case "FSDP2" | "large FSDP2":
                _fsdp(self.model, mesh=_mesh((world,), "shares"))  # of the CPU, also where there is a GPU
            case "TP":
                _tensor_parallel(self.model, _mesh((world,), "model"))
                self.replicas, self.replica = 1, 0
            case "TP and FSDP2":
                shape = (world // 2, 2) if world % 2 == 0 else (world, 1)
                mesh = _mesh(shape, "data", "model")
                _tensor_parallel(self.model, mesh["model"])
                _fsdp(self.model, mesh=mesh["data"])
                self.replicas, self.replica = shape[0], mesh["data"].get_local_rank()
            case "copies of shares":
                _fsdp(self.model, mesh=_mesh((world // 2, 2) if world % 2 == 0 else (1, world), "copies", "shares"))
        self.optimizer = self._optimizer(kind)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        data = TensorDataset(torch.arange(SAMPLES), _data())
        self.data = data
        sampler = DistributedSampler(data, num_replicas=self.replicas, rank=self.replica, seed=5)
        self.loader = DataLoader(data, batch_size=BATCH, sampler=sampler)

    def _optimizer(self, kind: str) -> Any:
        if kind != "ZeRO-1":
            return torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return ZeroRedundancyOptimizer(self.model.parameters(), optimizer_class=torch.optim.AdamW, lr=3e-3)

    def train(self, x: torch.Tensor) -> None:
        (self.model(x) - x).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that this rank holds, by name."""
        found = {n: _local(t) for n, t in self.model.state_dict().items() if isinstance(t, torch.Tensor)}
        called = {id(p): n for n, p in self.model.named_parameters()}
        inner = getattr(self.optimizer, "optim", self.optimizer)
        for parameter, values in inner.state.items():
            found |= {f"{called[id(parameter)]}/{k}": _local(v) for k, v in values.items()}
        return found | {"lr": torch.tensor(self.optimizer.param_groups[0]["lr"], dtype=torch.float64)}


def _first(case: Case, rank: int) -> dict[str, Any]:
    """Trains a few steps, leaves the full state_dict, captures."""
    import holdfast

    setup = Setup(case.kind, seed=11)
    torch.manual_seed(100 + rank)
    random.seed(100 + rank)
    numpy.random.seed(100 + rank)
    own = torch.Generator().manual_seed(rank)
    alike = torch.Generator().manual_seed(77)
    ckpt = _checkpointer(holdfast, setup, own, alike)
    ckpt.restore()
    samples = []
    for index, x in ckpt.batches(setup.loader, epochs=1):
        samples += index.tolist()
        setup.train(x)
        ckpt.step()
        if ckpt.boundary == STEPS:
            break
    _save_full(case.kind, case.full, setup, rank)
    ckpt.finish()
    state = rng_state()
    return {"samples": samples, "replica": setup.replica, "rng": state, "buffers": _buffers(setup)}


def _goes_on(case: Case, rank: int) -> dict[str, Any]:
    import holdfast
    from holdfast.ddp import settle_buckets

    setup, twin = Setup(case.kind, seed=12), Setup(case.kind, seed=13)
    settle_buckets({"model": twin.model})
    own, alike = torch.Generator().manual_seed(5), torch.Generator().manual_seed(6)
    ckpt = _checkpointer(holdfast, setup, own, alike)
    assert ckpt.restore() == case.at
    _load_full(case, twin, rank)
    problems = [f"restored: {d}" for d in _differences(setup, twin, buffers=False)]
    buffers = _buffers(setup)
    for name, value in buffers.items():
        twin.model.get_buffer(name).copy_(value)
    samples: list[int] = []
    state, after = rng_state(), []
    for index, x in ckpt.batches(setup.loader, epochs=2):
        if not samples:
            state = rng_state()
        setup.train(x)
        twin.train(x)
        if ckpt.epoch == 0:
            samples += index.tolist()
        else:
            after = index.tolist()
        ckpt.step()
        if after or ckpt.boundary == case.stop:
            break
    if case.leaves is not None:
        _save_full(case.kind, case.leaves, setup, rank)
    problems += [f"at the end: {d}" for d in _differences(setup, twin, buffers=True)]
    ckpt.finish()
    return {
        "problems": problems,
        "samples": samples,
        "after": after,
        "replica": setup.replica,
        "replicas": setup.replicas,
        "rng": state,
        "own": own.get_state(),
        "alike": alike.get_state(),
        "buffers": buffers,
    }


def _checkpointer(holdfast: Any, setup: Setup, own: torch.Generator, alike: torch.Generator) -> Any:
    return holdfast.Checkpointer(
        model=setup.model,
        optimizer=setup.optimizer,
        scheduler=setup.scheduler,
        loader=setup.loader,
        own=own,
        alike=alike,
    )


def _save_full(kind: str, to: Path, setup: Setup, rank: int) -> None:
    """As torch gathers it, on rank 0."""
    from torch.distributed.checkpoint import state_dict as torch_state

    whole = torch_state.StateDictOptions(full_state_dict=True, cpu_offload=True)
    if kind == "ZeRO-1":
        setup.optimizer.consolidate_state_dict(to=0)
        optimizer = setup.optimizer.state_dict() if rank == 0 else {}
    else:
        optimizer = torch_state.get_optimizer_state_dict(setup.model, setup.optimizer, options=whole)
    model = torch_state.get_model_state_dict(setup.model, options=whole)
    if rank == 0:
        torch.save({"model": model, "optimizer": optimizer, "scheduler": setup.scheduler.state_dict()}, to)


def _load_full(case: Case, setup: Setup, rank: int) -> None:
    from torch.distributed.checkpoint import state_dict as torch_state

    whole = torch_state.StateDictOptions(full_state_dict=True, cpu_offload=True)
    saved = torch.load(case.full, weights_only=False)
    torch_state.set_model_state_dict(setup.model, saved["model"], options=whole)
    if case.kind == "ZeRO-1":
        setup.optimizer.load_state_dict(saved["optimizer"])
    else:
        torch_state.set_optimizer_state_dict(setup.model, setup.optimizer, saved["optimizer"], options=whole)
    setup.scheduler.load_state_dict(saved["scheduler"])


def _differences(one: Setup, other: Setup, *, buffers: bool) -> Iterator[str]:
    mine, want = one.state(), other.state()
    skip = set() if buffers else {f"module.{n}" for n, _ in getattr(one.model, "module", one.model).named_buffers()}
    if mine.keys() != want.keys():
        yield f"only here {sorted(mine.keys() - want.keys())}, only there {sorted(want.keys() - mine.keys())}"
    for name in sorted((mine.keys() & want.keys()) - skip):
        a, b = mine[name], want[name]
        if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(_bits(a), _bits(b)):
            yield f"{name} {tuple(a.shape)} {a.dtype}, {tuple(b.shape)} {b.dtype}"


def rng_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "python": random.Random.getstate(random._inst)[1][:8],  # type: ignore[attr-defined]
        "numpy": numpy.random.get_state()[1][:8].tolist(),
    }


def _buffers(setup: Setup) -> dict[str, torch.Tensor]:
    return {n: b.clone() for n, b in setup.model.named_buffers()}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    here: torch.Tensor = getattr(tensor.detach(), "_local_tensor", tensor.detach())
    return here


def _data() -> torch.Tensor:
    return torch.arange(SAMPLES * 8, dtype=torch.float32).reshape(SAMPLES, 8).sin()


def _layers() -> nn.Sequential:
    """37 rows go into no even shares, and a bias of 3 leaves ranks without any. 240 goes into shares of 1, 2, 3, 4 and 8."""
    return nn.Sequential(
        nn.Linear(8, 240), nn.Tanh(), nn.Linear(240, 8), nn.Linear(8, 37), nn.Tanh(), nn.Linear(37, 3), nn.Linear(3, 8)
    )


def _large_layers() -> nn.Sequential:
    """Of many chunks: what is read of them can be told from what is there."""
    return nn.Sequential(nn.Linear(8, 4096), nn.Tanh(), nn.Linear(4096, 64), nn.Linear(64, 37), nn.Linear(37, 8))


def _fsdp(model: nn.Sequential, **options: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    for layer in (model[0], model[3]):
        fully_shard(layer, **options)
    fully_shard(model, **options)


def _mesh(shape: tuple[int, ...], *called: str) -> Any:
    return torch.distributed.device_mesh.init_device_mesh("cpu", shape, mesh_dim_names=called)


def _tensor_parallel(model: nn.Sequential, mesh: Any) -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
