"""What the notifier says about its node, and the operator reads: the message of one Node condition.

The condition `HoldfastDisruption` is True while the cloud announces anything, and its message is `NodeNotices` as JSON. Every announcement keeps a source of
its own, so that each can be withdrawn by itself (F1). A node whose cloud announces nothing has the condition with status False.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from holdfast_api.messages import Cause

CONDITION = "HoldfastDisruption"
REASON_NONE = "NothingAnnounced"
SOURCE_PREFIX = "notifier:"
"""Of `Notice.source`; the rest is `NodeNotice.source`."""
MAX_NOTICES = 16
MAX_MESSAGE_BYTES = 16 << 10
MAX_DETAIL = 256


@dataclass(frozen=True, slots=True)
class NodeNotice:
    """One announcement of the cloud about this machine."""

    source: str
    """`aws/spot-instance-action`, `gcp/preempted`, `azure/EVENT-ID`."""
    cause: Cause
    noticed_at: datetime
    deadline: datetime | None = None
    """When pods here end at the latest, as far as the cloud and the notifier's settings say; None: nobody says."""
    acting: bool = True
    """False is preparing (F2)."""
    revocable: bool = False
    detail: str = ""
    """What the cloud said, in its words."""


@dataclass(frozen=True, slots=True)
class NodeNotices:
    """Everything that is announced about a node now."""

    SCHEMA: ClassVar[int] = 1
    notices: tuple[NodeNotice, ...] = ()
    schema: int = 1
