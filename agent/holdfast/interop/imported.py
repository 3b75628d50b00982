"""From what was found in another tool's files to an image that a rank can resume from.

The image is what a Checkpointer with the same parts would have captured, with random generators of a given seed and loaders at their beginning. What
the files lack and the program registers must be named (`anew`): it keeps what the script gives it.
"""

import mmap
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import torch

from holdfast import rng, tree
from holdfast.filling import first_not_finite
from holdfast.interop import readers
from holdfast.interop.errors import Refused
from holdfast.interop.found import Found
from holdfast.part import Leaves
from holdfast.snapshot import SlotWriter, SnapshotPlan, document_bytes
from holdfast.state import SCHEMA, Captured
from holdfast_api import codec
from holdfast_rank.image import Tier


def convert(request: dict[str, Any], tell: Callable[[int, int], None]) -> dict[str, Any]:
    """Writes `image` below `scratch`. Raises Refused, UnsupportedState, OSError."""
    found = readers.read(Path(request["source"]), name=request["name"], trusted=request["trusted"])
    found.leave_out(request["leave_out"])
    found.rename(request["renames"])
    anew = sorted(set(request["anew"]))
    if both := sorted(set(anew) & set(found.names())):
        raise Refused(
            f"--anew names {', '.join(both)}, which the files hold: leave it out with --leave-out as well, or drop --anew"
        )
    if not found.names():
        raise Refused("nothing is left to import")
    if request["boundary"] is not None:
        found.boundary = request["boundary"]
    states = [document_of(found, anew, seed=request["seed"] + rank) for rank in range(request["ranks"])]
    captured = states[0]
    plan = SnapshotPlan.of(1, captured, request["chunk_bytes"])
    image = Path(request["scratch"]) / "image"
    total = sum(t.nbytes for t in captured.leaves.tensors.values())
    tell(0, total)
    _write(image, plan, captured)
    tell(total, total)
    return {
        "format": found.format,
        "image": str(image),
        "image_bytes": plan.layout.image_bytes,
        "chunk_bytes": request["chunk_bytes"],
        "tensors": [codec.to_plain(e) for e in plan.layout.entries],
        "state_offset": plan.layout.state_offset,
        "states": [document_bytes(s.document).ljust(plan.layout.state_bytes).decode() for s in states],
        "boundary": found.boundary,
        "epoch": found.epoch,
        "parts": found.names(),
        "anew": anew,
        "dropped": found.dropped,
    }


def document_of(found: Found, anew: list[str], *, seed: int) -> Captured:
    """As `Registry.capture` would have made it. Raises UnsupportedState, Refused for values that no start would load (C4)."""
    leaves = Leaves()
    parts: dict[str, Any] = {name: _module(leaves, name, state) for name, state in found.modules.items()}
    for name, state in found.optimizers.items():
        body = {"state": leaves.put(state, name, Tier.OPTIMIZER), "orphans": []}
        # By name, as a checkpoint of ours: the script may list its parameters in another order.
        parameters = [f"{module}.{key}" for module, key in found.named.get(name, ())]
        parts[name] = body | ({"names": parameters} if parameters else {})
    for name, state in found.others.items():
        parts[name] = leaves.put(state, name, Tier.OPTIMIZER)
    bad = first_not_finite([(n, t) for n, t in leaves.tensors.items() if leaves.tiers[n] is Tier.OPTIMIZER])
    if bad is not None:
        raise Refused(
            f"{bad} holds NaN or infinite values, and no start loads an optimizer with such: --leave-out it, or import an older checkpoint"
        )
    document = {
        "schema": SCHEMA,
        "progress": {"boundary": found.boundary, "updates": found.boundary},
        "parts": parts,
        "gradients": {},
        "rng": tree.encode(_generators(seed), "rng", leaves.tensors),
        "positions": {},
        "anew": anew,
    }
    return Captured(document, leaves)


def _module(leaves: Leaves, name: str, state: dict[str, Any]) -> dict[str, Any]:
    body = {key: leaves.put(value, f"{name}.{key}", Tier.TRAINABLE) for key, value in state.items()}
    # Which of them are trained is not known; those that are finite now must be so when they are loaded.
    floats = [k for k, v in state.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    return {"state": body, "loose": {}, "parameters": [k for k in floats if first_not_finite([(k, state[k])]) is None]}


def _generators(seed: int) -> dict[str, Any]:
    random.seed(seed)
    numpy.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)
    return rng.capture()


def _write(path: Path, plan: SnapshotPlan, captured: Captured) -> None:
    with path.open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, plan.layout.image_bytes)  # a full disk is an error here, below it kills
        with ThreadPoolExecutor(max_workers=2) as pool:
            memory = mmap.mmap(file.fileno(), plan.layout.image_bytes)
            SlotWriter(plan, memory).write(captured.leaves.tensors, document_bytes(captured.document), pool)
            memory.flush()
