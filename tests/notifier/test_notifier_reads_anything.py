"""Whatever a metadata service answers: a list of notices, or an error that names what was asked; never anything else."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_notifier import aws, azure, condition, gcp
from holdfast_notifier.errors import MetadataError
from holdfast_notifier.standing import Found
from holdfast_notifier.web import Answer
from tests.notifier.conftest import T0

WORDS = st.text(max_size=60) | st.sampled_from(
    [
        "terminate",
        "active",
        "2026-03-01T12:02:00Z",
        "01 Mar 2026 12:10:00 GMT",
        "Preempt",
        "Started",
        "system-reboot",
        "TRUE",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS
KEYS = WORDS | st.sampled_from(
    [
        "action",
        "time",
        "noticeTime",
        "NotBefore",
        "State",
        "Code",
        "Events",
        "EventId",
        "EventType",
        "EventStatus",
        "Resources",
    ]
)
THINGS = st.recursive(SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(KEYS, x, max_size=6), max_leaves=20)
TEXTS = st.text(max_size=200) | THINGS.map(json.dumps)


def taken(read: Any, *arguments: Any) -> list[Found]:
    try:
        found = list(read(*arguments))
    except MetadataError:
        return []
    for f in found:
        assert f.notice.source
        assert f.notice.deadline is None or f.notice.deadline.tzinfo is not None
    made = condition.make([f.notice for f in found], None, T0)
    assert len(condition.read(made)) == len(found), made
    return found


@given(text=TEXTS, status=st.sampled_from([200, 404]))
@settings(max_examples=500, deadline=None)
def test_ec2(text: str, status: int) -> None:
    answer = Answer(status, text)
    taken(aws.read_spot, answer, T0)
    taken(aws.read_rebalance, answer, T0)
    taken(aws.read_maintenance, answer, T0, 300)
    taken(aws.read_lifecycle, answer, T0)


@given(text=TEXTS)
@settings(max_examples=300, deadline=None)
def test_compute_engine(text: str) -> None:
    taken(gcp.read_preempted, text, T0, 30)
    taken(gcp.read_maintenance, text, T0, 60)


@given(text=TEXTS, event=st.dictionaries(KEYS, THINGS, max_size=8))
@settings(max_examples=500, deadline=None)
def test_azure(text: str, event: dict[str, Any]) -> None:
    try:
        events = azure.read_events(text)
    except MetadataError:
        events = ()
    for found in (*events, event, {**event, "EventId": "A", "EventType": "Preempt", "EventStatus": "Scheduled"}):
        taken(azure.read_event, found, T0)
        assert azure._is_ours(found, "n1") in (True, False)
