"""Which kind of file system a directory lies on, and what a storage directory's kind may get wrong, in words. Pure, over the text of /proc/self/mountinfo,
but for `here` and `kind_of`, which read it.

NFS keeps exclusive creation exact, since link(2) is one request to the server. But a client may answer look-ups from what it remembers for up to a minute,
so that a checkpoint which another node has just committed is not seen: the job would then resume from an older one.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_NFS = ("nfs", "nfs4")
_ESCAPED = re.compile(r"\\([0-7]{3})")
CACHED = (
    "the storage directory is on NFS whose client remembers directories, so what another node has just written may not be seen for a minute: "
    "mount it with the options lookupcache=positive,acdirmin=0,acdirmax=0"
)


@dataclass(frozen=True, slots=True)
class Mount:
    point: str
    kind: str
    options: frozenset[str]


def mount_of(path: str, mountinfo: str) -> Mount | None:
    """The mount that an absolute path lies on: the longest mount point, of equal ones the last (it hides the others). None if nothing can be read."""
    found = None
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        parts, after = left.split(), right.split()
        if not separator or len(parts) < 6 or len(after) < 3:
            continue
        point = _ESCAPED.sub(lambda m: chr(int(m[1], 8)), parts[4])
        below = point.rstrip("/") + "/"
        if (path == point or path.startswith(below)) and (found is None or len(point) >= len(found.point)):
            found = Mount(point, after[0], frozenset(after[2].split(",")))
    return found


def here(folder: Path) -> Mount | None:
    """The mount that `folder` lies on; None where the kernel does not say."""
    try:
        return mount_of(os.path.realpath(folder), Path("/proc/self/mountinfo").read_text(errors="replace"))
    except OSError:
        return None


def kind_of(folder: Path) -> str:
    """The type of the file system that holds `folder`, as the kernel names it; "" where it does not say."""
    mount = here(folder)
    return mount.kind if mount is not None else ""


def caveat(mount: Mount | None) -> str:
    """What to tell whoever uses a store on this mount; empty if nothing is known against it."""
    if mount is None or mount.kind not in _NFS or "noac" in mount.options:
        return ""
    fresh = "acdirmax=0" in mount.options and mount.options & {
        "lookupcache=pos",
        "lookupcache=positive",
        "lookupcache=none",
    }
    return "" if fresh else CACHED
