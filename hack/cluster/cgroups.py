"""The cgroup (version 1) of each node.

A node's processes join NODE in every hierarchy before they get a cgroup namespace of their own, so the node sees its own
cgroup as the root and the kubelet needs no `cgroupRoot`.
"""

import contextlib
import os
import time
from pathlib import Path

from hack.cluster.errors import ClusterError


def hierarchies(mountinfo: str | None = None) -> list[tuple[str, str]]:
    """(directory, mount options) of every cgroup v1 hierarchy. Pure when the text is given."""
    found = []
    for line in (mountinfo if mountinfo is not None else Path("/proc/self/mountinfo").read_text()).splitlines():
        mount, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split(" ", 2)
        if kind == "cgroup":
            kept = [option for option in options.split(",") if option not in ("rw", "ro")]
            found.append((mount.split()[4], ",".join(kept)))
    return found


def of_node(cluster: str, node: str) -> list[Path]:
    return [Path(directory, cluster, node) for directory, _ in hierarchies()]


def create(cluster: str, node: str) -> None:
    """An empty cgroup in each hierarchy, without what the containers of before a power cut left.

    Each container cgroup left over would cost the kubelet 3 s at start.
    """
    for group in of_node(cluster, node):
        remove(group)
        group.mkdir(parents=True)
        if (group / "cpuset.cpus").exists():
            _fill_cpuset(group)


def remove_cluster(cluster: str) -> None:
    for directory, _ in hierarchies():
        remove(Path(directory, cluster))


def remove(top: Path, patience_seconds: float = 10.0) -> None:
    """Removes a cgroup and all below it; the last processes in it may still be on their way out."""
    deadline = time.monotonic() + patience_seconds
    while top.is_dir():
        for directory, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        if not top.is_dir():
            return
        if time.monotonic() > deadline:
            raise ClusterError(f"cannot remove {top}: processes are still in it")
        time.sleep(0.05)


def _fill_cpuset(group: Path) -> None:
    """A new cpuset is empty, and no process can be put in it."""
    for level in (group.parent, group):
        for resource in ("cpuset.cpus", "cpuset.mems"):
            (level / resource).write_text((level.parent / resource).read_text())
