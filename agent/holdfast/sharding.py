"""Tensors of which a rank holds a part (DTensor: FSDP2, tensor parallel, meshes of several dimensions), as plain values: the part's own bytes, and
where they lie in the whole.

A part is a box: along each axis one run of consecutive indices. Whatever FSDP2 and `parallelize_module` make is one; a part that is not is refused.
Nothing here communicates.
"""

import functools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from holdfast.errors import RestoreError, UnsupportedState


@dataclass(frozen=True, slots=True)
class Box:
    """Where a part lies in the whole tensor."""

    global_shape: tuple[int, ...]
    offset: tuple[int, ...]

    def words(self, shape: Sequence[int]) -> str:
        runs = ", ".join(f"{at}:{at + n}" for at, n in zip(self.offset, shape, strict=True))
        return f"[{runs}] of {tuple(self.global_shape)}"


@dataclass(frozen=True, slots=True)
class Part:
    """A DTensor as this rank holds it. `placements` are torch's words for them, one for each dimension of the mesh."""

    local: torch.Tensor
    box: Box
    placements: tuple[str, ...]

    @property
    def words(self) -> str:
        return f"{self.box.words(self.local.shape)} {self.local.dtype}"


def is_sharded(value: Any) -> bool:
    """A DTensor, also one that is whole on every rank."""
    tensor: Any = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(value, tensor.DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of it; shares its memory."""
    return tensor.detach()._local_tensor if is_sharded(tensor) else tensor


def part_of(tensor: torch.Tensor, path: str) -> Part:
    """Raises UnsupportedState naming `path`."""
    mesh, placements = tensor.device_mesh, tuple(tensor.placements)
    here = local(tensor)
    for placement in placements:
        if placement.is_partial():
            raise UnsupportedState(
                f"{path} is a DTensor of which every rank holds a summand ({placement}); redistribute it to Shard or Replicate before the boundary"
            )
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise UnsupportedState(
            f"{path} is a DTensor on a mesh that this rank is no part of; register it on the ranks of the mesh only"
        )
    found = box_of(tuple(tensor.shape), tuple(mesh.shape), tuple(coordinate), placements)
    if found is None or found[1] != tuple(here.shape):
        raise UnsupportedState(
            f"{path} is a DTensor of shape {tuple(tensor.shape)} placed {_words(placements)} on a mesh of {tuple(mesh.shape)}, and this rank's part of it "
            f"({tuple(here.shape)}) is no box of consecutive indices; use Shard and Replicate, or fully_shard and parallelize_module"
        )
    return Part(here, found[0], tuple(map(str, placements)))


def group_of(tensor: torch.Tensor) -> str:
    """The ranks of a DTensor's mesh, as `ranks_text` writes them."""
    return ranks_text(tensor.device_mesh.mesh.flatten().tolist())


@functools.lru_cache(maxsize=1 << 16)
def box_of(
    shape: tuple[int, ...], mesh: tuple[int, ...], coordinate: tuple[int, ...], placements: tuple[Any, ...]
) -> tuple[Box, tuple[int, ...]] | None:
    """The box of the rank at `coordinate`, and its shape; None if its part is no box. Pure."""
    runs = [torch.arange(n) for n in shape]
    for count, at, placement in zip(mesh, coordinate, placements, strict=True):
        if placement.is_replicate():
            continue
        dim = getattr(placement, "dim", None)
        if dim is None:
            return None
        # A strided shard takes the same share of each of `split_factor` pieces: torch's order when a later mesh dimension shards the same axis.
        pieces = _chunks(runs[dim], getattr(placement, "split_factor", 1))
        runs[dim] = torch.cat([_chunks(piece, count)[at] for piece in pieces])
    if any(len(run) and int(run[-1] - run[0]) != len(run) - 1 for run in runs):
        return None
    lengths = tuple(len(run) for run in runs)
    offset = tuple(int(run[0]) if len(run) else n for run, n in zip(runs, shape, strict=True))
    return Box(shape, offset), lengths


def whole(part: Part, like: torch.Tensor, path: str) -> torch.Tensor:
    """A DTensor of `part.local`, placed as `like` is, which has the same shape; of another shape, as it was when it was saved. Raises RestoreError."""
    from torch.distributed.tensor import DTensor

    placements = like.placements if tuple(like.shape) == part.box.global_shape else _placements(part, path)
    stride = torch.empty(part.box.global_shape, device="meta").stride()
    made: torch.Tensor = DTensor.from_local(
        part.local.to(local(like).device),
        like.device_mesh,
        placements,
        run_check=False,
        shape=torch.Size(part.box.global_shape),
        stride=stride,
    )
    return made


def box_for(
    shape: tuple[int, ...], placed: Sequence[str], like: torch.Tensor, path: str
) -> tuple[Box, tuple[int, ...], tuple[str, ...]]:
    """Where this rank's part of a tensor lies that was placed so and is to lie on the mesh of `like` now, its shape, and how it is placed there. Raises
    RestoreError."""
    mesh = like.device_mesh
    if len(placed) != mesh.ndim and len({*placed}) == 1 and not placed[0].startswith("S"):
        placed = [placed[0]] * mesh.ndim
    if len(placed) != mesh.ndim:
        raise RestoreError(
            f"{path} was placed {tuple(placed)}, has another shape than its parameter, and the mesh has {mesh.ndim} dimensions now: it cannot be placed again; "
            "use a mesh of as many dimensions"
        )
    placements = _placements(Part(local(like), Box(shape, (0,) * len(shape)), tuple(placed)), path)
    found = box_of(shape, tuple(mesh.shape), tuple(mesh.get_coordinate() or ()), tuple(placements))
    assert found is not None  # Shard and Replicate alone
    return *found, tuple(map(str, placements))


def check_placeable(part: Part, parameter: torch.Tensor, path: str) -> None:
    """Optimizer state that a later start could not make again is refused now. Raises UnsupportedState."""
    if is_sharded(parameter) and tuple(parameter.shape) == part.box.global_shape:
        if part_of(parameter, path).box == part.box:
            return
        raise UnsupportedState(f"{path} is placed otherwise than its parameter, which this release cannot save")
    try:
        _placements(part, path)
    except RestoreError as e:
        raise UnsupportedState(str(e)) from e


def differences(path: str, live: Any, saved: Any) -> list[str]:
    """In words, none if a saved value of this rank is what `live` holds here. At least one of the two is a Part."""
    if isinstance(live, Part) and isinstance(saved, Part):
        same = (live.box, live.local.shape, live.local.dtype) == (saved.box, saved.local.shape, saved.local.dtype)
        return [] if same else [f"{path}: this rank holds {live.words} here, {saved.words} in the checkpoint; {REMEDY}"]
    here, there = (_whole_or_part(v) for v in (live, saved))
    return [f"{path}: {here} here, {there} in the checkpoint; {REMEDY}"]


REMEDY = "use the mesh and the placements that the checkpoint was made with"


def settle(module: nn.Module) -> None:
    """Between iterations: parameters that FSDP2 has gathered are again what the optimizer holds."""
    for part in module.modules():
        if hasattr(part, "reshard") and hasattr(part, "set_requires_gradient_sync"):
            part.reshard()


def unreduced(module: nn.Module) -> bool:
    """FSDP2 holds gradients of an accumulation window whole, on each rank its own: `set_requires_gradient_sync(False)`."""
    for part in module.modules():
        if not hasattr(part, "set_requires_gradient_sync"):
            continue
        state = part._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        for group in groups:
            if getattr(group, "_partial_reduce_output", None) is not None:
                return True
            for param in group.fsdp_params if group is not None else ():
                gathered = getattr(param, "_unsharded_param", None)
                kept = getattr(param, "unsharded_accumulated_grad", None)
                if kept is not None or (gathered is not None and gathered.grad is not None):
                    return True
    return False


def ranks_text(ranks: Iterable[int]) -> str:
    """`0-3`, `0,2,4-7`: short, and equal for equal sets."""
    runs: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs)


def _chunks(run: torch.Tensor, count: int) -> list[torch.Tensor]:
    """As torch.chunk, but always so many; the last ones may be empty."""
    pieces = list(torch.chunk(run, count))
    return pieces + [run[len(run) :]] * (count - len(pieces))


def _placements(part: Part, path: str) -> list[Any]:
    from torch.distributed.tensor import Replicate, Shard

    known: dict[str, Any] = {str(Replicate()): Replicate()}
    known |= {str(Shard(d)): Shard(d) for d in range(len(part.box.global_shape))}
    unknown = [p for p in part.placements if p not in known]
    if unknown:
        raise RestoreError(
            f"{path} was placed {unknown[0]} and has another shape than its parameter: it cannot be placed again"
        )
    return [known[p] for p in part.placements]


def _whole_or_part(value: Any) -> str:
    return f"the part {value.words}" if isinstance(value, Part) else "a whole tensor"


def _words(placements: Iterable[Any]) -> str:
    return "(" + ", ".join(map(str, placements)) + ")"
