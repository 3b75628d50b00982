"""Errors of the library, split by who is at fault.

HoldfastError
├── RestoreError        the state could not be restored; training must not start (raised by `restore`, and by `batches` when the order of samples differs)
│   └── CheckpointDamaged   the checkpoint itself is at fault: undecodable or not finite (C4); an older one is tried
├── UnsupportedState    something registered holds a value that cannot be saved; the message names it (I9)
└── LinkLost            the agent is gone; never leaves the library except out of `restore`, as RestoreError
"""

from holdfast_rank.errors import HoldfastError, LinkLost

__all__ = ["CheckpointDamaged", "HoldfastError", "LinkLost", "RestoreError", "UnsupportedState"]


class RestoreError(HoldfastError):
    """The state could not be restored. Training must not start: it would start from something else than was asked for."""


class CheckpointDamaged(RestoreError):
    """The content of a checkpoint is at fault, not this program (C4)."""


class UnsupportedState(HoldfastError):
    """A value that cannot be saved. The message names where it lies and what to do."""
