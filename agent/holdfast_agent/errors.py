"""Errors of the agent.

AgentError
├── ConfigurationWrong   the environment or the command line; exit code 71, the message names the setting
├── MemoryTooSmall       the arena does not fit; the message names the number to set (G2)
├── ProtocolBroken       a rank sent what it must not; its connection is closed (S27)
├── PeerRefused          another agent is of another attempt or knows a newer round
│   └── PeerAhead        it has joined a later attempt
├── PeerSilent           another agent did not answer before the deadline
├── SaveGivenUp          a save ended without a commit; the previous commit stands
├── NotCovered           a checkpoint of another number of ranks does not hold all that a rank needs
└── CheckpointBad        a checkpoint cannot be used, for a reason that lies in it (C3, C4)
"""

from holdfast_store.errors import StoreError


class AgentError(Exception):
    """Base of everything this package raises."""


class ConfigurationWrong(AgentError):
    """The environment, a mounted file or the command line is wrong. The message names the setting, its value and the remedy."""


class MemoryTooSmall(AgentError):
    """The slots do not fit into the memory limit or the memory volume (G2)."""


class ProtocolBroken(AgentError):
    """A rank sent a line that is malformed, out of order, or of another attempt."""


class PeerRefused(AgentError):
    """Another agent answered, and said no: other attempt, older round, bad signature."""


class PeerAhead(PeerRefused):
    """Another agent has joined a later attempt; the operator will tell this one of it."""


class PeerSilent(AgentError):
    """Another agent could not be reached before the deadline."""


class SaveGivenUp(AgentError):
    """The save ends without a commit record; what was committed before is untouched."""

    def __init__(self, message: str, *, storage: StoreError | None = None, may_pass: bool = False) -> None:
        super().__init__(message)
        self.storage = storage
        """What the store said, if it is the store that does not take the save."""
        self.may_pass = may_pass or storage is not None
        """The same save may succeed later: the fault is not in the state."""


class CheckpointBad(AgentError):
    """Neither source gave bytes that verify, or the content cannot be used."""


class NotCovered(AgentError):
    """What a rank needs is in no image of the checkpoint, or in another form. The message names the tensor and the part of it."""


class NoRoom(AgentError):
    """A prefetch would overwrite what may be worth more."""
