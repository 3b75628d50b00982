"""Where things lie: the checkout, the cache outside of it, and the state of each cluster.

The cache is outside the checkout because it holds root-owned files and gigabytes that no clean checkout should inherit.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from hack.cluster.errors import ClusterError

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

#: A node mounts its own file systems here, so nothing the node must see may lie below.
HIDDEN_FROM_NODES = ("var", "run", "mnt", "proc", "sys")

DEFAULT_NAME = "holdfast"


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """$HOLDFAST_CACHE, else `holdfast` in the user's cache directory."""
    named = environment.get("HOLDFAST_CACHE")
    if named:
        return Path(named).expanduser().resolve()
    base = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(base).expanduser() / "holdfast").resolve()


def state_directory(name: str = DEFAULT_NAME, environment: Mapping[str, str] = os.environ) -> Path:
    """$HOLDFAST_CLUSTER_STATE for the default cluster, else a directory of the cache."""
    named = environment.get("HOLDFAST_CLUSTER_STATE")
    if named and name == DEFAULT_NAME:
        return Path(named).expanduser().resolve()
    return cache_directory(environment) / "clusters" / name


def refuse_hidden(directory: Path) -> None:
    """Raises if a node could not see the directory, because it has a file system of its own there."""
    if len(directory.parts) > 1 and directory.parts[1] in HIDDEN_FROM_NODES:
        raise ClusterError(f"{directory}: a node has its own /{directory.parts[1]}; choose a place elsewhere")
