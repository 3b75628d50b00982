"""Whose fault a crash is. Ranks of a gang hold connections to each other: when a machine goes without a word, the ranks that stay crash first, and the
operator hears of their crash long before it can know of the loss. So a crash of training code is a failure only when every other worker has been heard
of since, has ended, or has stayed silent for longer than a lost machine can go undetected.
"""

from datetime import datetime, timedelta

from holdfast_api.messages import AgentPhase
from holdfast_operator.core.failures import Failure
from holdfast_operator.core.membership import MemberSeen, exit_of
from holdfast_operator.core.observed import Observed

UNDETECTED = timedelta(seconds=60)
"""How long a lost machine stays Ready for the API server: the node monitor's grace period is 40 to 50 s by default, and the kubelet's lease adds to it."""


def decided_at(seen: Observed, failure: Failure) -> datetime:
    """When the crash counts as a failure at the latest, whoever is silent."""
    return failure.at + UNDETECTED + timedelta(seconds=seen.spec.notices.node_lost_seconds)


def awaited(seen: Observed, failure: Failure, whos: tuple[MemberSeen, ...], now: datetime) -> tuple[MemberSeen, ...]:
    """The workers whose word the verdict waits for; none where it is a failure."""
    if not failure.may_be_an_echo or now >= decided_at(seen, failure):
        return ()
    return tuple(w for w in whos if w.member.worker != failure.worker and not _has_spoken(w, failure.at))


def _has_spoken(who: MemberSeen, since: datetime) -> bool:
    if exit_of(who) is not None or (who.pod is not None and who.pod.ended):
        return True
    if who.report is not None and who.report.phase is AgentPhase.FAILED:
        return True
    return who.last_heard is not None and who.last_heard >= since
