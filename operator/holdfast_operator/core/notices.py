"""One record per worker and source for the current attempt (F1): made when first seen, kept after pod and node are gone, withdrawn when taken back.

What comes late changes only what it can know better. A source may move a moment that it names, whichever way; a moment that was only counted from the
announcement never takes the place of an earlier one of the same source. And a worker that has gone shows that its announcements were true: they stand.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from holdfast_api import sources
from holdfast_operator.core.membership import MemberSeen, members
from holdfast_operator.core.observed import Observed
from holdfast_operator.core.signal_table import Signal, SignalRules
from holdfast_operator.core.signals import node_signals, pod_signals
from holdfast_operator.crd.v1alpha1 import NoticeStatus, TrainingJobStatus

MAX_NOTICES = 256
MAX_DETAIL = 1024
CLOCKS_DIFFER_SECONDS = 5.0
"""Less is what reports take and times are rounded by."""
_API_TIME_STEP = timedelta(seconds=2)
"""API times are whole seconds: what looks this little older than now was announced now."""


def update(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """The records of the members of the current attempt, brought up to date."""
    if status.attempt is None:
        return status.model_copy(update={"notices": ()}) if status.notices else status
    kept = {(n.worker, n.source): n for n in status.notices}
    standing: set[tuple[int, str]] = set()
    whos = {w.member.worker: w for w in members(seen, status.attempt)}
    for who in whos.values():
        for notice in _announced(who, kept, seen.signal_rules, now):
            standing.add((notice.worker, notice.source))
            kept[notice.worker, notice.source] = notice
    for key, notice in kept.items():
        if key not in standing and _taken_back(whos.get(notice.worker), notice):
            kept[key] = notice.model_copy(update={"withdrawn": True})
    notices = _bounded(tuple(kept.values()))
    return status if notices == status.notices else status.model_copy(update={"notices": notices})


def carried_over(status: TrainingJobStatus, survivors: set[int]) -> tuple[NoticeStatus, ...]:
    """Records that go on to the next attempt: those about pods that stay in it."""
    return tuple(n for n in status.notices if n.worker in survivors and not n.withdrawn)


def _announced(
    who: MemberSeen, kept: dict[tuple[int, str], NoticeStatus], rules: SignalRules, now: datetime
) -> Iterator[NoticeStatus]:
    of_pod = pod_signals(who.pod, who.node) if who.pod else ()
    of_node = node_signals(who.node, rules) if who.node else ()
    for signal in (_by_our_clock(who, s) for s in (*of_pod, *of_node)):
        yield _record(who, signal, kept.get((who.member.worker, signal.source)), now)
    for notice in who.report.notices if who.report else ():
        if notice.worker == who.member.worker and not notice.source.startswith(sources.READ_BY_OPERATOR):
            yield NoticeStatus(
                worker=notice.worker,
                source=notice.source[:316],
                cause=notice.cause.value,
                node=who.member.node,
                noticed_at=min(notice.noticed_at, now),
                deadline=notice.deadline,
                acting=notice.acting,
                revocable=notice.revocable,
                withdrawn=notice.withdrawn,
                detail=notice.detail[:MAX_DETAIL],
            )


def _by_our_clock(who: MemberSeen, signal: Signal) -> Signal:
    """A condition is dated by the machine that it is about. By a clock that is an hour off, what is counted from it would be over, or have an hour."""
    if (
        signal.since is None
        or not signal.source.startswith("condition:")
        or abs(who.ahead_seconds) <= CLOCKS_DIFFER_SECONDS
    ):
        return signal
    return replace(signal, since=signal.since - timedelta(seconds=who.ahead_seconds))


def _record(who: MemberSeen, signal: Signal, before: NoticeStatus | None, now: datetime) -> NoticeStatus:
    if before is not None and before.withdrawn:
        before = None  # announced again: a new announcement
    noticed_at = before.noticed_at if before is not None else _noticed_at(signal, now)
    return NoticeStatus(
        worker=who.member.worker,
        source=signal.source[:316],
        cause=signal.cause.value,
        node=who.member.node,
        noticed_at=noticed_at,
        deadline=_deadline(signal, before, noticed_at, now),
        acting=signal.acting,
        revocable=signal.revocable,
        confidence=signal.confidence,
        detail=signal.detail[:MAX_DETAIL],
    )


def _noticed_at(signal: Signal, now: datetime) -> datetime:
    """When it was announced, if the operator comes late; a late operator must not shorten the measured time to resume."""
    return signal.since if signal.since is not None and signal.since < now - _API_TIME_STEP else now


def _deadline(signal: Signal, before: NoticeStatus | None, noticed_at: datetime, now: datetime) -> datetime | None:
    found = signal.deadline(noticed_at)
    if found is None or found.said or before is None or before.deadline is None:
        return found.at if found is not None else None
    # In other words since now (a preemption has started, a redeploy has become a preemption) it is counted from now; in the same ones that is later anyway.
    anew = signal.rule.of(signal.value, now)
    return min(anew.at, before.deadline) if anew is not None else before.deadline


def _taken_back(who: MemberSeen | None, notice: NoticeStatus) -> bool:
    """A source is withdrawn if what announced it is still there and announces it no more, and the worker too: what is gone has withdrawn nothing, and
    where the worker is gone a node of the same name may be another machine."""
    if notice.withdrawn or not notice.source.startswith(sources.READ_BY_OPERATOR):
        return notice.withdrawn
    if notice.source.startswith(("pod:", "event:")):
        return False  # a pod takes nothing back, and an Event is forgotten
    return who is not None and who.node is not None and who.pod is not None and not who.pod.ended


def _bounded(notices: tuple[NoticeStatus, ...]) -> tuple[NoticeStatus, ...]:
    """At most MAX_NOTICES: withdrawn and preparing ones are dropped first, newer before older, so that the same ones stay in every round."""
    if len(notices) <= MAX_NOTICES:
        return notices
    by_worth = sorted(notices, key=lambda n: (n.withdrawn, not n.acting, n.noticed_at))
    keep = {id(n) for n in by_worth[:MAX_NOTICES]}
    return tuple(n for n in notices if id(n) in keep)
