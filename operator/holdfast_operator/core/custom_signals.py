"""The cluster owner's own rows of the table, as the chart hands them over (`notices.signals`): read, checked, named by place. Pure."""

from typing import Any

from holdfast_api import codec, moments
from holdfast_api.errors import ContractError
from holdfast_api.messages import Cause
from holdfast_operator.core.signal_table import DeadlineRule, Row
from holdfast_operator.crd.v1alpha1 import Confidence

MAX_ROWS = 64
MAX_BYTES = 64 << 10
MAX_SECONDS = 7 * 86_400
KINDS = ("taint", "condition", "label", "annotation", "event")
CAUSES = (
    Cause.SPOT, Cause.REBALANCE, Cause.MAINTENANCE, Cause.SCALE_DOWN, Cause.DRAIN, Cause.CORDON, Cause.EVICTION, Cause.PRIORITY,
    Cause.NODE_PRESSURE, Cause.NODE_SHUTDOWN, Cause.UNKNOWN,
)  # fmt: skip
"""What a node can announce."""
_FIELDS = {
    "kind": str, "name": str, "value": str, "cause": str, "acting": bool, "revocable": bool, "confidence": str, "deadlineSeconds": int,
    "deadlineInValue": bool,
}  # fmt: skip


class BadSignals(ValueError):
    """Names the row, the field, the value and what it may be."""


def parse(text: str) -> tuple[Row, ...]:
    """JSON list of objects; empty text: none. Raises BadSignals."""
    if not text.strip():
        return ()
    try:
        found = codec.parse(text.encode(), max_bytes=MAX_BYTES)
    except ContractError as e:
        raise BadSignals(f"signals: {e}") from e
    if not isinstance(found, list) or len(found) > MAX_ROWS:
        raise BadSignals(f"signals: a list of at most {MAX_ROWS} objects is needed")
    return tuple(_row(item, f"signals[{i}]") for i, item in enumerate(found))


def _row(item: Any, where: str) -> Row:
    if not isinstance(item, dict):
        raise BadSignals(f"{where} is {item!r}; it must be an object")
    for key, value in item.items():
        wanted = _FIELDS.get(key)
        if wanted is None:
            raise BadSignals(f"{where}.{key} is not known; the fields are {', '.join(_FIELDS)}")
        if type(value) is not wanted:
            raise BadSignals(f"{where}.{key} is {value!r}; it must be of type {wanted.__name__}")
    kind = _one_of(item, "kind", KINDS, where)
    name = item.get("name", "")
    if not 0 < len(name) <= 316:
        raise BadSignals(f"{where}.name is {name!r}; 1 to 316 characters are needed")
    acting = item.get("acting", True)
    return Row(
        kind=kind,
        name=name,
        cause=Cause(_one_of(item, "cause", tuple(c.value for c in CAUSES), where)),
        acting=acting,
        confidence=Confidence(_one_of({"confidence": _usual(acting)} | item, "confidence", tuple(Confidence), where)),
        revocable=item.get("revocable", not acting),
        deadline=_rule(item, where),
        value=item.get("value", ""),
    )


def _usual(acting: bool) -> str:
    return Confidence.LIKELY if acting else Confidence.POSSIBLE


def _rule(item: dict[str, Any], where: str) -> DeadlineRule:
    seconds = item.get("deadlineSeconds")
    if seconds is not None and not 0 <= seconds <= MAX_SECONDS:
        raise BadSignals(f"{where}.deadlineSeconds is {seconds}; it must be between 0 and {MAX_SECONDS}")
    if item.get("deadlineInValue", False):
        return DeadlineRule(moments.in_text, plus_seconds=0, otherwise_seconds=seconds)
    return DeadlineRule(otherwise_seconds=seconds)


def _one_of(item: dict[str, Any], key: str, allowed: tuple[str, ...], where: str) -> str:
    value = item.get(key, "")
    if value not in allowed:
        raise BadSignals(f"{where}.{key} is {value!r}; it must be one of {', '.join(allowed)}")
    return str(value)
