"""The condition on the Node object, from what stands and back. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from holdfast_api import codec, node_notices
from holdfast_api.errors import ContractError
from holdfast_api.node_notices import CONDITION, MAX_MESSAGE_BYTES, NodeNotice, NodeNotices

Object = dict[str, Any]


def make(notices: Sequence[NodeNotice], before: Object | None, now: datetime) -> Object:
    """`before`: the condition that the node has. Its transition time stays while its status does."""
    status = "True" if notices else "False"
    changed = before is None or before.get("status") != status
    return {
        "type": CONDITION,
        "status": status,
        "reason": _reason(notices),
        "message": _message(notices),
        "lastHeartbeatTime": _time(now),
        "lastTransitionTime": _time(now) if changed or before is None else before.get("lastTransitionTime", _time(now)),
    }


def of(node: Object) -> Object | None:
    """Of a Node object; None if it has none yet."""
    conditions = (node.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if isinstance(c, dict) and c.get("type") == CONDITION), None)


def read(condition: Object | None) -> tuple[NodeNotice, ...]:
    """What a process before this one has published; nothing if that cannot be read."""
    if condition is None or condition.get("status") != "True":
        return ()
    try:
        text = str(condition.get("message", "")).encode()
        return codec.from_json(NodeNotices, text, max_bytes=MAX_MESSAGE_BYTES).notices
    except ContractError:
        return ()


def _reason(notices: Sequence[NodeNotice]) -> str:
    """A word for people and other tools: the cause of the most urgent one."""
    if not notices:
        return node_notices.REASON_NONE
    return "".join(word.capitalize() for word in notices[0].cause.value.split("-"))


def _message(notices: Sequence[NodeNotice]) -> str:
    text = codec.to_json(NodeNotices(tuple(notices)))
    if len(text) > MAX_MESSAGE_BYTES:
        text = codec.to_json(NodeNotices(tuple(replace(n, detail="") for n in notices)))
    return text.decode()


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
