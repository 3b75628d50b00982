"""The newest report of each agent, and when the operator last heard from it. In memory only: agents are asked again after a restart."""

from collections import deque
from dataclasses import replace
from datetime import UTC, datetime

from holdfast_api.messages import AgentReport
from holdfast_operator.core.observed import Heard

KEPT = 8
"""Reports of which the fastest shows how clocks differ."""
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


class ReportBook:
    """Pod uid -> Heard. Older or repeated reports change the time at most."""

    def __init__(self) -> None:
        self._heard: dict[str, Heard] = {}
        self._ahead: dict[str, deque[float]] = {}

    def add(self, report: AgentReport, now: datetime) -> bool:
        """True if it says something that may change a decision; how far the training is does not (it is read at the next look)."""
        old = self._heard.get(report.pod_uid)
        if old is not None and report.sequence < old.report.sequence:
            return False
        ahead = self._ahead.setdefault(report.pod_uid, deque(maxlen=KEPT))
        ahead.append((report.sent_at - now).total_seconds())
        self._heard[report.pod_uid] = Heard(report, now, max(ahead))
        return old is None or _essence(report) != _essence(old.report)

    def of(self, uids: set[str]) -> dict[str, Heard]:
        return {uid: self._heard[uid] for uid in uids if uid in self._heard}

    def heard_at(self, uid: str) -> datetime | None:
        found = self._heard.get(uid)
        return found.at if found else None

    def forget_all_but(self, uids: set[str]) -> None:
        for uid in self._heard.keys() - uids:
            del self._heard[uid]
            self._ahead.pop(uid, None)


def _essence(report: AgentReport) -> AgentReport:
    """Agents report several times a second how far they are; a round of the job for each would be most of the operator's work."""
    return replace(report, sequence=0, sent_at=_NEVER, boundary=0, step_seconds=0.0)
