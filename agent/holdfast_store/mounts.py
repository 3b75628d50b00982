"""What the kind of file system under a storage directory may get wrong, in words: pure, over the text of /proc/self/mountinfo.

NFS keeps exclusive creation exact, since link(2) is one request to the server. But a client may answer look-ups from what it remembers for up to a minute,
so that a checkpoint which another node has just committed is not seen: the job would then resume from an older one.
"""

import re
from dataclasses import dataclass

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
