"""Which checkpoints are given up (D1, D3), and the order to delete them.

Kept are the newest `keep.last` that are not known to hold NaN or infinite values, always the newest one that is known to be finite, always the newest one
with which nothing is known to be wrong (not finite, or copies of one state that differed: J4), and the newest one from which a start has succeeded (C5): the
parent of the attempt that trains now. Nothing is given up unless the current attempt has taken a step, so never between the creation of an attempt and its
claim (D1).
"""

from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import CollectOrder, OfJob, RestoreOrder
from holdfast_operator.core import suspicion
from holdfast_operator.core.actions import SendCollect
from holdfast_operator.core.membership import members
from holdfast_operator.core.observed import Observed
from holdfast_operator.core.progress import FRESH, ref_of, start_order
from holdfast_operator.crd.v1alpha1 import CheckpointStatus, TrainingJobStatus

MAX_EXPIRING = 256
AT_LEAST = 2
"""The store never deletes the newest two (D5): ordering it to would leave one that nobody counts and nobody may restore."""
COLLECT_AT_ONCE = 16
"""Deletions in one order: the lead is training meanwhile."""


def update(seen: Observed, status: TrainingJobStatus) -> TrainingJobStatus:
    """Gives up what is too much. Call it only while the attempt runs undisturbed."""
    attempt = status.attempt
    if attempt is None or attempt.claimed_at is None or attempt.first_step_at is None:
        return status
    status = _with_strays(seen, status)
    doomed = surplus(status.checkpoints, seen.spec.checkpoint.keep.last, proven=proven(status))
    doomed = doomed[: MAX_EXPIRING - len(status.expiring)]
    if not doomed:
        return status
    horizon = max([ref_of(n) for n in (*doomed, *((status.horizon,) if status.horizon else ()))])
    return status.model_copy(
        update={
            "checkpoints": tuple(c for c in status.checkpoints if c.name not in doomed),
            "expiring": (*status.expiring, *doomed),
            "horizon": str(horizon),
        }
    )


def _with_strays(seen: Observed, status: TrainingJobStatus) -> TrainingJobStatus:
    """Gives up what the lead has found in the store that nobody uses and nobody has ever asked to have deleted; what is retained here stays, and so does
    what was refused: somebody may want to look at it."""
    lead = members(seen, status.attempt)[0].report
    known = {*status.expiring, *status.quarantined, *(c.name for c in status.checkpoints)}
    new = [str(ref) for ref in lead.stray if str(ref) not in known] if lead is not None else []
    new = new[: MAX_EXPIRING - len(status.expiring)]
    return status.model_copy(update={"expiring": (*status.expiring, *new)}) if new else status


def proven(status: TrainingJobStatus) -> str:
    """The newest checkpoint from which a start has succeeded (C5): what was loaded, which is older than what was claimed if that was refused."""
    assert status.attempt is not None
    before = status.attempt.number
    loaded = [
        p.resumed_from for p in status.preemptions if p.resumed_from and p.resumed_at is not None and p.attempt < before
    ]
    return loaded[-1] if loaded and status.attempt.parent in status.quarantined else status.attempt.parent


def surplus(checkpoints: tuple[CheckpointStatus, ...], keep_last: int, *, proven: str) -> tuple[str, ...]:
    """Names of those that are given up, oldest first. `checkpoints` is in order, newest last.

    Kept are the newest `keep_last` of those not known to hold NaN or infinite values: a run that has gone wrong must not push out what it could go back
    to. What is unknown counts like what is finite, so the newest one that is known to be finite is kept beside them. So is the newest one in which nothing is
    wrong, copies that differ included: they still count, since what differs may be harmless, and nobody but a person can tell. And the newest few whatever
    they hold.
    """
    count = max(AT_LEAST, keep_last)
    usable = [c.name for c in checkpoints if c.finite is not False]
    finite = [c.name for c in checkpoints if c.finite]
    sound = [c.name for c in checkpoints if c.sound]
    kept = {*(c.name for c in checkpoints[-AT_LEAST:]), *usable[-count:], *finite[-1:], *sound[-1:], proven}
    return tuple(c.name for c in checkpoints if c.name not in kept)


def collect_order(seen: Observed, status: TrainingJobStatus) -> CollectOrder | None:
    """What the lead is asked to delete now; None if nothing waits or the attempt has not claimed (D1).

    What the store keeps because a branch or a base refers to it comes last, so that it never holds up the rest.
    """
    if not status.expiring or status.attempt is None or status.attempt.first_step_at is None:
        return None
    lead = members(seen, status.attempt)[0].report
    kept = set(lead.kept) if lead is not None else set()
    refs = tuple(sorted(map(ref_of, status.expiring), key=lambda ref: (ref in kept, ref)))[:COLLECT_AT_ONCE]
    return CollectOrder(job_uid=seen.job.uid, attempt=status.attempt.number, expired=refs)


def orders(seen: Observed, status: TrainingJobStatus) -> tuple[SendCollect, ...]:
    """To the lead of an attempt that runs undisturbed, for what the status that was read has given up (D1)."""
    order = collect_order(seen, seen.status)
    if order is None or status.attempt is None or status.attempt.number != order.attempt:
        return ()
    lead = members(seen, status.attempt)[0]
    return (SendCollect(lead.address, order),) if lead.address is not None else ()


def restore_order(seen: Observed, status: TrainingJobStatus) -> RestoreOrder:
    """What may not be used, and where to start (C2, C4, D3). A pin, a branch or `fresh` counts until an attempt has claimed under it (A7, A9)."""
    horizon = ref_of(status.horizon) if status.horizon else None
    suspended = suspicion.suspended(status)
    retained = tuple(ref_of(c.name) for c in status.checkpoints if c.name != suspended)
    excluded = {ref_of(n) for n in (*status.quarantined, *status.expiring, *((suspended,) if suspended else ()))}
    pending = start_order(seen) not in ("", status.start_order)
    resume_from = seen.spec.resume_from
    pinned = resume_from.checkpoint if resume_from is not None and pending else ""
    other = resume_from.uid if resume_from is not None else ""
    return RestoreOrder(
        excluded=tuple(sorted(r for r in excluded if _above(r, horizon))),
        horizon=horizon,
        retained=tuple(r for r in retained if not _above(r, horizon)),
        pinned=CheckpointRef.parse(pinned) if pinned else None,
        pinned_after=status.start_order_after if pinned else -1,
        fresh=start_order(seen) == FRESH and pending,
        resume_from_uid="" if other == seen.job.uid else other,
        excluded_of=tuple(_of_job(name) for name in status.quarantined_elsewhere),
        own_only=True,
    )


def _of_job(name: str) -> OfJob:
    uid, _, rest = name.rpartition(":")
    ref = ref_of(rest)
    return OfJob(uid, ref.attempt, ref.save)


def _above(ref: CheckpointRef, horizon: CheckpointRef | None) -> bool:
    return horizon is None or ref > horizon
