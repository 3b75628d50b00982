"""What EC2's instance metadata service (IMDSv2) announces: spot interruption, rebalance recommendation, scheduled events, the auto scaling group's target.

404 means that nothing is announced. Every call carries a session token, which is renewed when it is used up or refused.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from holdfast_api import moments
from holdfast_api.messages import Cause
from holdfast_api.node_notices import MAX_DETAIL, NodeNotice
from holdfast_notifier.errors import MetadataError
from holdfast_notifier.standing import Found
from holdfast_notifier.web import Answer, Web

log = logging.getLogger("holdfast.notifier")
BASE = "http://169.254.169.254"
TOKEN_SECONDS = 21_600
NOTICE_SECONDS = 120
TOKEN_HEADER = "X-aws-ec2-metadata-token"  # noqa: S105  a name, not a secret
SPOT = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
MAINTENANCE = "/latest/meta-data/events/maintenance/scheduled"
LIFECYCLE = "/latest/meta-data/autoscaling/target-lifecycle-state"
_ENDS = ("system-reboot", "instance-reboot", "instance-retirement", "instance-stop", "system-maintenance")
"""Codes of events that take the instance away, or stop it for a while."""


class Aws:
    """`look` is called again and again; the caller waits between."""

    name = "aws"
    paths = (SPOT, REBALANCE, MAINTENANCE, LIFECYCLE)

    def __init__(self, web: Web, *, ahead_seconds: int) -> None:
        """`ahead_seconds`: so long before it a scheduled event is acted on; until then it only prepares."""
        self._web = web
        self._ahead_seconds = ahead_seconds
        self._token = ""
        self._token_until = 0.0
        self._said: dict[str, tuple[Found, ...]] = {}

    async def look(self, clock: Callable[[], datetime]) -> tuple[Found, ...]:
        """Everything that is announced. Raises MetadataError."""
        failed: list[MetadataError] = []
        for path in self.paths:
            try:
                answer = await self._get(path)
                self._said[path] = tuple(self._read(path, answer, clock()))
            except MetadataError as e:
                failed.append(e)  # what it said before stands, and the others are asked all the same
        if len(failed) == len(self.paths):
            raise failed[0]
        for problem in failed:
            log.warning("the metadata service: %s", problem)
        return tuple(found for path in self.paths for found in self._said.get(path, ()))

    async def acknowledge(self, sources: frozenset[str]) -> None:
        """EC2 takes no acknowledgements."""

    def _read(self, path: str, answer: Answer, now: datetime) -> Iterator[Found]:
        if path == MAINTENANCE:
            return read_maintenance(answer, now, self._ahead_seconds)
        return {SPOT: read_spot, REBALANCE: read_rebalance, LIFECYCLE: read_lifecycle}[path](answer, now)

    async def _get(self, path: str) -> Answer:
        answer = await self._web.call("GET", path, headers={TOKEN_HEADER: await self._valid_token()})
        if answer.status == 401:
            # Refused before its time: the instance was stopped and started, or its options were changed.
            self._token = ""
            answer = await self._web.call("GET", path, headers={TOKEN_HEADER: await self._valid_token()})
        if answer.status not in (200, 404):
            raise MetadataError(f"{path}: HTTP {answer.status}")
        return answer

    async def _valid_token(self) -> str:
        if not self._token or time.monotonic() >= self._token_until:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
            answer = await self._web.call("PUT", "/latest/api/token", headers=headers)
            if answer.status != 200 or not re.fullmatch(r"[\x21-\x7e]{1,1024}", answer.text):
                raise MetadataError(f"PUT /latest/api/token: HTTP {answer.status} gives no token")
            given = answer.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
            seconds = int(given) if given.isdigit() else TOKEN_SECONDS
            self._token, self._token_until = answer.text, time.monotonic() + 0.9 * min(seconds, TOKEN_SECONDS)
        return self._token


def read_spot(answer: Answer, now: datetime) -> Iterator[Found]:
    """{"action": "terminate", "time": "2026-03-01T12:02:00Z"}. Hibernation begins at once."""
    if answer.status == 404:
        return
    found = _object(answer, SPOT)
    action = str(found.get("action", ""))[:32]
    named = moments.in_text(str(found.get("time", "")))
    if named is None and not action:
        raise MetadataError(f"{SPOT}: neither an action nor a time")
    at_once = action == "hibernate"
    counted = now if at_once else now + timedelta(seconds=NOTICE_SECONDS)
    notice = NodeNotice(
        source="aws/spot-instance-action",
        cause=Cause.SPOT,
        noticed_at=now,
        deadline=counted if at_once or named is None else named,
        detail=f"spot instance action {action} at {named.isoformat() if named else 'an unknown time'}",
    )
    yield Found(notice, counted=at_once or named is None)


def read_rebalance(answer: Answer, now: datetime) -> Iterator[Found]:
    """{"noticeTime": "2026-03-01T12:00:00Z"}: a greater risk of interruption, without a deadline."""
    if answer.status == 404:
        return
    named = moments.in_text(str(_object(answer, REBALANCE).get("noticeTime", "")))
    yield Found(
        NodeNotice(
            source="aws/rebalance-recommendation",
            cause=Cause.REBALANCE,
            noticed_at=min(named, now) if named is not None else now,
            acting=False,
            revocable=True,
            detail="rebalance recommendation",
        )
    )


def read_maintenance(answer: Answer, now: datetime, ahead_seconds: int) -> Iterator[Found]:
    """A list of events with Code, State, NotBefore ("21 Jan 2026 09:00:43 GMT"), EventId; empty or 404 where none is scheduled."""
    if answer.status == 404 or not answer.text.strip():
        return
    events = _json(answer, MAINTENANCE)
    if not isinstance(events, list):
        raise MetadataError(f"{MAINTENANCE}: no list")
    for event in events:
        if not isinstance(event, dict) or event.get("State") != "active":
            continue
        begins = moments.in_text(str(event.get("NotBefore", "")))
        code, name = str(event.get("Code", ""))[:64], str(event.get("EventId", ""))[:64]
        soon = begins is not None and begins - now <= timedelta(seconds=ahead_seconds)
        yield Found(
            NodeNotice(
                source=f"aws/maintenance/{name}",
                cause=Cause.MAINTENANCE,
                noticed_at=now,
                deadline=begins,
                acting=soon and code in _ENDS,
                revocable=True,
                detail=f"{code}: {event.get('Description', '')}"[:MAX_DETAIL],
            )
        )


def read_lifecycle(answer: Answer, now: datetime) -> Iterator[Found]:
    """The group's target state of this instance as bare text; only Terminated takes it away. How long hooks hold it is not said."""
    if answer.status == 200 and answer.text.strip() == "Terminated":
        yield Found(
            NodeNotice(
                source="aws/autoscaling-target-lifecycle-state",
                cause=Cause.SCALE_DOWN,
                noticed_at=now,
                detail="the auto scaling group is about to terminate this instance",
            )
        )


def _object(answer: Answer, path: str) -> dict[str, Any]:
    found = _json(answer, path)
    if not isinstance(found, dict):
        raise MetadataError(f"{path}: no JSON object")
    return found


def _json(answer: Answer, path: str) -> Any:
    try:
        return json.loads(answer.text)
    except (ValueError, RecursionError) as e:
        raise MetadataError(f"{path}: no JSON: {answer.text[:80]!r}") from e
