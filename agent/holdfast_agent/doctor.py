"""`holdfast-agent doctor`: what this machine and this configuration give, before training depends on it (J6, B8).

Each question is one function that returns an `Answer`; nothing is left behind and nothing of a job is changed. Blocking.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from holdfast_agent import forms, memory
from holdfast_agent.errors import MemoryTooSmall
from holdfast_agent.forms import Form
from holdfast_agent.memory import MIB, Room
from holdfast_api.config import AgentConfig, StorageConfig
from holdfast_store import direct
from holdfast_store.errors import StoreError
from holdfast_store.opening import open_bucket

STORE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`ok`: nothing has to be changed for a job to run; `words` say what is and, if not, what to change."""

    name: str
    ok: bool
    words: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def examine(
    config: AgentConfig, environ: Mapping[str, str], image_bytes: int, local: Path | None = None
) -> list[Answer]:
    """`image_bytes` of one rank, 0 where it is not known. `local`: the directory of `run --local`, which that makes where it is missing."""
    return [
        _memory(Path(config.memory_dir), config.processes_per_worker, image_bytes, config.slots),
        _node(config.local_dir),
        to_be_made(local) if local is not None and not os.path.lexists(local) else store(config.storage, environ),
    ]


def arena(room: Room, ranks: int, image_bytes: int, most: int) -> Answer:
    """Which form an image of this size gets, or the largest image for each form. Pure."""
    largest = {form.value: forms.largest(room, form, ranks) for form in Form if form.slots <= most}
    facts = {"ranks": ranks, "imageBytes": image_bytes, "largestImageBytes": largest} | {
        "limitBytes": room.limit,
        "usedBytes": room.used,
        "freeOnVolumeBytes": room.free_on_volume,
        "availableBytes": room.available,
        "inMemory": room.in_memory,
    }
    if not image_bytes:
        sizes = ", ".join(f"{form} up to {size // MIB} MiB" for form, size in largest.items())
        return Answer("arena", True, f"image of each rank: {sizes}, less what training itself still takes", facts)
    try:
        choice = forms.choose(room, 0, {0: image_bytes}, {}, ranks, most)
    except MemoryTooSmall as e:
        return Answer("arena", False, str(e), facts)
    return Answer("arena", True, choice.words, facts | {"form": choice.form.value})


def direct_io(folder: Path) -> Answer:
    """How images are written below `folder` (J5)."""
    facts: dict[str, Any] = {"folder": str(folder)}
    try:
        mode = direct.probe(folder)
    except OSError as e:
        return Answer("node", False, f"{folder} cannot be written: {e.strerror}: no copy is kept on the node", facts)
    facts |= {"fileSystem": mode.file_system, "directIo": mode.direct}
    return Answer("node", True, f"{folder}: {mode}", facts)


def store(config: StorageConfig, environ: Mapping[str, str]) -> Answer:
    """Whether the bucket or directory is there and lets us in."""
    facts = {"uri": config.uri, "endpoint": config.endpoint}
    try:
        open_bucket(config, environ, retry_seconds=STORE_SECONDS).check()
    except StoreError as e:
        return Answer("store", False, f"{config.uri}: {e}", facts)
    return Answer("store", True, f"{config.uri} answers", facts)


def to_be_made(folder: Path) -> Answer:
    """A directory that is not there yet."""
    above = next((p for p in folder.absolute().parents if os.path.lexists(p)), Path("/"))
    if not above.is_dir():
        return Answer("store", False, f"{folder} cannot be made: {above} is no directory")
    if not os.access(above, os.W_OK | os.X_OK):
        return Answer("store", False, f"{folder} cannot be made: {above} cannot be written by this user")
    return Answer("store", True, f"{folder} is not there yet: `run --local` makes it")


def render(answers: list[Answer], output: str) -> str:
    if output == "json":
        return json.dumps({"ok": all(a.ok for a in answers), "checks": [asdict(a) for a in answers]}, indent=2)
    return "\n".join(f"{'ok ' if a.ok else 'BAD'}  {a.name:6} {a.words}" for a in answers)


def _memory(folder: Path, ranks: int, image_bytes: int, most: int) -> Answer:
    there = next((p for p in (folder, *folder.parents) if p.is_dir()), Path("/"))
    return arena(memory.read(there), ranks, image_bytes, most)


def _node(folder: str) -> Answer:
    if not folder:
        return Answer("node", True, "no directory on the node is used: checkpoints go to the store alone")
    if not Path(folder).is_dir():
        return Answer("node", False, f"{folder} does not exist: no copy is kept on the node", {"folder": folder})
    return direct_io(Path(folder))
