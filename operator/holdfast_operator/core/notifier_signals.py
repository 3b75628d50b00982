"""What the notifier has published about a node (holdfast_api.node_notices), as signals: each announcement of the cloud under a source of its own. Pure."""

from collections.abc import Iterator

from holdfast_api import codec, node_notices
from holdfast_api.errors import ContractError
from holdfast_api.messages import Cause
from holdfast_api.node_notices import NodeNotice, NodeNotices
from holdfast_operator.core.observed import NodeCondition, NodeSeen
from holdfast_operator.core.signal_table import CERTAIN, LIKELY, POSSIBLE, UNKNOWN, Signal, exactly

UNREADABLE = f"condition:{node_notices.CONDITION}"
"""Source of a notice whose content nobody here can read."""


def of_node(node: NodeSeen) -> Iterator[Signal]:
    for condition in node.conditions:
        if condition.type == node_notices.CONDITION and condition.status == "True":
            yield from _of(condition)


def _of(condition: NodeCondition) -> Iterator[Signal]:
    try:
        found = codec.from_json(
            NodeNotices, condition.message.encode(), max_bytes=node_notices.MAX_MESSAGE_BYTES
        ).notices
    except ContractError as e:
        # Something is announced. A notifier of another release is no reason to lose work, and no reason to delete a pod either: revocable.
        yield Signal(
            UNREADABLE, Cause.UNKNOWN, True, True, LIKELY, condition.since, detail=f"{condition.reason}: {e}"[:1024]
        )
        return
    for notice in found[: node_notices.MAX_NOTICES]:
        yield _signal(notice)


def _signal(notice: NodeNotice) -> Signal:
    sure = CERTAIN if not notice.revocable else LIKELY
    return Signal(
        source=node_notices.SOURCE_PREFIX + notice.source,
        cause=notice.cause,
        acting=notice.acting,
        revocable=notice.revocable,
        confidence=sure if notice.acting else POSSIBLE,
        since=notice.noticed_at,
        detail=notice.detail,
        rule=exactly(notice.deadline) if notice.deadline is not None else UNKNOWN,
    )
