"""How much memory there is for the arena: the cgroup's limit (v1, v2) and the file system below the slots (G2). Read before anything is allocated."""

import os
from dataclasses import dataclass
from pathlib import Path

from holdfast_agent.errors import MemoryTooSmall
from holdfast_store import mounts

CGROUP = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60
"""cgroup v1 writes a number near 2^63 for no limit."""
MIB = 1 << 20
LEFT_ALONE = 10


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes. `limit` and `used` are those of the cgroup, None where there is no limit."""

    limit: int | None
    used: int
    free_on_volume: int
    in_memory: bool
    """The slots lie on tmpfs, so they count against the limit."""
    available: int | None = None
    """What the machine can still give, None where the kernel does not say. A tmpfs may be larger than that."""


def read(folder: Path, cgroup: Path = CGROUP) -> Room:
    """What holds for files below `folder`, which must exist."""
    stat = os.statvfs(folder)
    limit, used = _cgroup_v2(cgroup) or _cgroup_v1(cgroup) or (None, 0)
    available = _statistic(Path("/proc/meminfo"), "MemAvailable:")
    in_memory = mounts.kind_of(folder) in ("tmpfs", "ramfs")
    return Room(limit, used, stat.f_bavail * stat.f_frsize, in_memory, available << 10 or None)


def check(room: Room, new_bytes: int, total_bytes: int) -> None:
    """`new_bytes` are to be allocated now, `total_bytes` is the whole arena. Raises MemoryTooSmall with the number to set."""
    words = missing(room, new_bytes, total_bytes)
    if words:
        raise MemoryTooSmall(words)


def missing(room: Room, new_bytes: int, total_bytes: int, *, spare: int = 0) -> str:
    """What lacks and the number to set, in words; empty if it fits and leaves `spare` bytes of the limit, or of the machine. Pure."""
    if new_bytes > room.free_on_volume:
        lacks = new_bytes - room.free_on_volume
        return (
            f"the slots of this worker need {_mib(total_bytes)} MiB, and the memory volume lacks {_mib(lacks)} MiB: "
            f"set spec.checkpoint.memoryMiB to at least {_mib(total_bytes) + 64} (0 lets the pod's memory limit bound it); "
            "outside Kubernetes the file system of the slots, /dev/shm as a rule, has to be larger"
        )
    if room.limit is not None and room.in_memory and room.used + new_bytes + spare > room.limit:
        # A twentieth of the limit to be set, not of the one that is too small, has to stay free: it is asked for again next time.
        needed = -(-(room.used + new_bytes) * 20 // 19)
        return (
            f"the slots of this worker need {_mib(total_bytes)} MiB in shared memory; {_mib(room.used)} MiB of the memory limit of "
            f"{_mib(room.limit)} MiB are in use: set resources.limits.memory of the trainer container to at least {_mib(needed)}Mi"
        )
    if room.available is not None and room.in_memory and new_bytes + spare > room.available:
        return (
            f"the slots of this worker need {_mib(total_bytes)} MiB in shared memory, {_mib(new_bytes)} MiB of it new, and the machine has "
            f"{_mib(room.available)} MiB available: it takes {_mib(new_bytes + spare - room.available)} MiB more memory, or a smaller state"
        )
    return ""


def left(room: Room) -> int:
    """Bytes that may be taken beside all that is planned: a tenth of the limit, or of the machine or the volume, is left for training. Pure."""
    sizes = [room.free_on_volume]
    if room.in_memory:
        sizes += [n for n in (room.available,) if n is not None]
        if room.limit is not None:
            sizes.append(room.limit - room.used)
    return max(0, min(sizes) - (room.limit or room.available or room.free_on_volume) // LEFT_ALONE)


def _cgroup_v2(root: Path) -> tuple[int | None, int] | None:
    try:
        text = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text()) - _statistic(root / "memory.stat", "inactive_file")
    except (OSError, ValueError):
        return None
    return (None if text == "max" else int(text)), max(0, used)


def _cgroup_v1(root: Path) -> tuple[int | None, int] | None:
    try:
        limit = int((root / "memory" / "memory.limit_in_bytes").read_text())
        used = int((root / "memory" / "memory.usage_in_bytes").read_text())
        used -= _statistic(root / "memory" / "memory.stat", "total_inactive_file")
    except (OSError, ValueError):
        return None
    return (None if limit >= UNLIMITED else limit), max(0, used)


def _statistic(path: Path, name: str) -> int:
    """Page cache that the kernel drops by itself is not use."""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value.split()[0])
    return 0


def _mib(value: int) -> int:
    return -(-value // MIB)
