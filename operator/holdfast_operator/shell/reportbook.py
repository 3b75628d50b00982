"""The newest report of each agent, and when the operator last heard from it. In memory only: agents are asked again after a restart."""

from datetime import datetime

from holdfast_api.messages import AgentReport
from holdfast_operator.core.observed import Heard


class ReportBook:
    """Pod uid -> Heard. Older or repeated reports change the time at most."""

    def __init__(self) -> None:
        self._heard: dict[str, Heard] = {}

    def add(self, report: AgentReport, now: datetime) -> bool:
        """True if it says something new."""
        old = self._heard.get(report.pod_uid)
        if old is not None and report.sequence < old.report.sequence:
            return False
        self._heard[report.pod_uid] = Heard(report, now)
        return old is None or report.sequence > old.report.sequence

    def of(self, uids: set[str]) -> dict[str, Heard]:
        return {uid: self._heard[uid] for uid in uids if uid in self._heard}

    def heard_at(self, uid: str) -> datetime | None:
        found = self._heard.get(uid)
        return found.at if found else None

    def forget_all_but(self, uids: set[str]) -> None:
        for uid in self._heard.keys() - uids:
            del self._heard[uid]
