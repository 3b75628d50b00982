"""From a stored image to a plain `state_dict` file or a DCP directory. Tensors are views of the image on disk, so nothing is held twice."""

import mmap
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed import checkpoint as dcp

from holdfast import tree
from holdfast.interop import pickles
from holdfast.interop.errors import Refused
from holdfast.load import view_of
from holdfast_api import codec
from holdfast_api.manifest import TensorEntry


def write(request: dict[str, Any], tell: Callable[[int, int], None]) -> dict[str, Any]:
    """`parts` of the document become one file or directory at `to`, which must not exist. Raises Refused, OSError."""
    entries = [codec.from_plain(TensorEntry, e) for e in request["entries"]]
    tensors = views(Path(request["image"]), request["image_bytes"], entries)
    states = {name: harmless(state_of(body, tensors)) for name, body in request["parts"].items()}
    to, total = Path(request["to"]), sum(t.nbytes for t in tensors.values())
    tell(0, total)
    if request["format"] == "dcp":
        _write_dcp(states, to)
    else:
        whole = next(iter(states.values())) if request["flat"] else states
        torch.save(whole, to)
        pickles.read(to, trusted=False)  # as anyone will read it: what that would refuse must not be handed out
    tell(total, total)
    return {"tensors": len(tensors), "bytes": total}


def views(path: Path, image_bytes: int, entries: list[TensorEntry]) -> dict[str, torch.Tensor]:
    """One storage a tensor (torch.save writes storages whole), none twice: names of the same bytes share theirs, as they did in the program."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        memory = mmap.mmap(fd, image_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(fd)
    made: dict[tuple[Any, ...], torch.Tensor] = {}
    found = {}
    for e in entries:
        key = (e.offset_bytes, e.length_bytes, e.dtype, tuple(e.shape))
        if key not in made:
            whole = (
                torch.frombuffer(memory, dtype=torch.uint8, count=e.length_bytes, offset=e.offset_bytes)
                if e.length_bytes
                else torch.empty(0, dtype=torch.uint8)
            )
            made[key] = view_of(whole, replace(e, offset_bytes=0))
        found[e.name] = made[key]
    return found


def state_of(body: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """What the part's `state_dict()` was."""
    if isinstance(body, dict) and "loose" in body:
        return {k: tree.decode(v, tensors, place=False) for k, v in body["state"].items()}
    if isinstance(body, dict) and "orphans" in body:
        return tree.decode(body["state"], tensors, place=False)
    return tree.decode(body, tensors, place=False)


def harmless(value: Any) -> Any:
    """The same with torch's own types for NumPy's, which a restricted reader does not know."""
    if isinstance(value, dict):
        return (
            type(value)((k, harmless(v)) for k, v in value.items())
            if type(value) is not dict
            else {k: harmless(v) for k, v in value.items()}
        )
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(harmless(v) for v in value)
    if type(value).__module__ == "numpy":
        return torch.from_numpy(value.copy()) if getattr(value, "ndim", 0) else value.item()
    return value


def _write_dcp(states: dict[str, Any], to: Path) -> None:
    to.mkdir()
    if distributed.is_available() and distributed.is_initialized():
        raise Refused("a process group is up; an export runs by itself")
    dcp.save(states, checkpoint_id=str(to), no_dist=True)
