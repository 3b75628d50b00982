"""What Azure's Scheduled Events announce about this machine, and the acknowledgement that lets an event begin before its time.

The first call switches the service on and may take minutes. An answer names events of other machines of the same scale set too: only those that name this one
count, unless its own name cannot be learnt. Azure has announced preemptions and then taken them back, so they are revocable until they have started.
"""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from holdfast_api import moments
from holdfast_api.messages import Cause
from holdfast_api.node_notices import MAX_DETAIL, NodeNotice
from holdfast_notifier.errors import MetadataError
from holdfast_notifier.standing import Found
from holdfast_notifier.web import Web

BASE = "http://169.254.169.254"
EVENTS = "/metadata/scheduledevents"
NAME = "/metadata/instance/compute/name"
HEADERS = {"Metadata": "true"}
EVENTS_VERSION = {"api-version": "2020-07-01"}
NAME_VERSION = {"api-version": "2021-02-01", "format": "text"}
SOURCE = "azure/"
STARTED_SECONDS = 10
_KINDS: dict[str, tuple[Cause, bool]] = {
    "Preempt": (Cause.SPOT, True),
    "Terminate": (Cause.SCALE_DOWN, True),
    "Redeploy": (Cause.MAINTENANCE, True),
    "Reboot": (Cause.MAINTENANCE, True),
    "Freeze": (Cause.MAINTENANCE, False),
}
"""Type of event -> (cause, whether the machine goes). A freeze is a pause of seconds."""


class Azure:
    """`look` is called again and again; the caller waits between."""

    name = "azure"
    paths = (EVENTS,)

    def __init__(self, web: Web) -> None:
        self._web = web
        self._name = ""

    async def look(self, clock: Callable[[], datetime]) -> tuple[Found, ...]:
        """Raises MetadataError."""
        answer = await self._web.call("GET", EVENTS, headers=HEADERS, query=EVENTS_VERSION)
        if answer.status != 200:
            raise MetadataError(f"{EVENTS}: HTTP {answer.status}")
        events = read_events(answer.text)
        if events and not self._name:
            self._name = await self._learn_name()
        now = clock()
        return tuple(f for e in events if _is_ours(e, self._name) for f in read_event(e, now))

    async def acknowledge(self, sources: frozenset[str]) -> None:
        """Approves the events of these sources: Azure then need not wait for their time. Raises MetadataError."""
        requests = [{"EventId": s.removeprefix(SOURCE)} for s in sorted(sources) if s.startswith(SOURCE)]
        if not requests:
            return
        body = json.dumps({"StartRequests": requests}).encode()
        headers = {**HEADERS, "Content-Type": "application/json"}
        answer = await self._web.call("POST", EVENTS, headers=headers, query=EVENTS_VERSION, body=body)
        if answer.status != 200:
            raise MetadataError(f"POST {EVENTS}: HTTP {answer.status}: {answer.text[:200]}")

    async def _learn_name(self) -> str:
        try:
            answer = await self._web.call("GET", NAME, headers=HEADERS, query=NAME_VERSION)
        except MetadataError:
            return ""
        return answer.text.strip() if answer.status == 200 and len(answer.text) < 256 else ""


def read_events(text: str) -> tuple[dict[str, Any], ...]:
    """{"DocumentIncarnation": 1, "Events": [{"EventId", "EventType", "Resources", "EventStatus", "NotBefore", …}]}. Raises MetadataError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise MetadataError(f"{EVENTS}: no JSON: {text[:80]!r}") from e
    events = found.get("Events") if isinstance(found, dict) else None
    if not isinstance(events, list) or not all(isinstance(e, dict) for e in events):
        raise MetadataError(f"{EVENTS}: no list of events")
    return tuple(events)


def read_event(event: dict[str, Any], now: datetime) -> Iterator[Found]:
    """Nothing for an event that has passed, or of a type that nobody has described yet and that does not say that the machine goes."""
    kind, state, name = (str(event.get(k, ""))[:64] for k in ("EventType", "EventStatus", "EventId"))
    if state == "Completed" or not name or kind not in _KINDS:
        return
    cause, goes = _KINDS[kind]
    started = state == "Started"
    begins = moments.in_text(str(event.get("NotBefore", "")))
    counted = started or begins is None  # the time is empty once it has started
    if counted:
        begins = now + timedelta(seconds=STARTED_SECONDS)
    notice = NodeNotice(
        source=f"{SOURCE}{name}",
        cause=cause,
        noticed_at=now,
        deadline=begins if goes else None,
        acting=goes,
        revocable=not (started and goes),
        detail=f"{kind} {state}: {event.get('Description', '')}"[:MAX_DETAIL],
    )
    yield Found(notice, counted=counted)


def _is_ours(event: dict[str, Any], name: str) -> bool:
    resources = event.get("Resources")
    if not name or not isinstance(resources, list) or not resources:
        return True
    return any(str(r).lower() == name.lower() for r in resources)
