"""The training library: captures a training loop's whole state at a boundary and puts it back bit by bit.

Belongs here: everything that needs torch, and nothing else does. Does not belong here: hashing, NVMe, object stores, other pods: those are the
agent's, another process, reached over one Unix socket and shared memory. docs/library.md is the user's page.
"""

import torch as _torch

_FLOOR = (2, 10)


def _refuse_old_torch(version: str) -> None:
    """S2: older releases have two code-execution holes in their unpicklers."""
    release = tuple(int(n) for n in version.split("+")[0].split(".")[:2])
    if release < _FLOOR:
        raise ImportError(
            f"holdfast needs torch 2.10 or newer, found {version}: older releases execute code from crafted checkpoint files. "
            "Upgrade with: pip install 'torch>=2.10'"
        )


_refuse_old_torch(str(_torch.__version__))

from holdfast.batch_share import BatchShare, batch_share  # noqa: E402  the version is checked first
from holdfast.checkpointer import Checkpointer  # noqa: E402
from holdfast.errors import CheckpointDamaged, HoldfastError, LinkLost, RestoreError, UnsupportedState  # noqa: E402
from holdfast.value import Value  # noqa: E402

__all__ = [
    "BatchShare",
    "CheckpointDamaged",
    "Checkpointer",
    "HoldfastError",
    "LinkLost",
    "RestoreError",
    "UnsupportedState",
    "Value",
    "batch_share",
]
