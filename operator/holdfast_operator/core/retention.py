"""The operator's part of retention (D1, D3): which rules the spec names, when anything is given up, and the order to delete it.

What the rules are, and what is kept whatever they say, is in holdfast_api.retention. Nothing is given up unless the current attempt has taken a step, so never
between the creation of an attempt and its claim (D1).
"""

from datetime import datetime

from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import CollectOrder, OfJob, RestoreOrder
from holdfast_api.retention import (
    AT_LEAST,
    Best,
    EverySeconds,
    EverySteps,
    Last,
    Outcome,
    Pinned,
    Policy,
    Rule,
    Saved,
    WeightsOnly,
    YoungerThan,
    decide,
    held,
    trouble,
)
from holdfast_operator.core import quarantine, suspicion
from holdfast_operator.core.actions import SendCollect
from holdfast_operator.core.membership import members
from holdfast_operator.core.observed import Observed
from holdfast_operator.core.progress import FRESH, ref_of, start_order
from holdfast_operator.crd.v1alpha1 import Goal, Suspect, TrainingJobStatus
from holdfast_operator.crd.v1alpha1 import WeightsOnly as WeightsOnlyKept

MAX_EXPIRING = 256
COLLECT_AT_ONCE = 16
"""Deletions in one order: the lead is training meanwhile."""


def update(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """Gives up what is too much. Call it only while the attempt runs undisturbed."""
    attempt = status.attempt
    if attempt is None or attempt.claimed_at is None or attempt.first_step_at is None:
        return status
    status = _with_strays(seen, status)
    found = outcome(seen, status, now)
    doomed = tuple(map(str, found.given_up))[: MAX_EXPIRING - len(status.expiring)]
    if not doomed:
        return status
    kept = {s.ref for s in saved(status)} - set(map(ref_of, doomed))
    counted = held(saved(status), kept)
    horizon = max([ref_of(n) for n in (*doomed, *((status.horizon,) if status.horizon else ()))])
    return status.model_copy(
        update={
            "checkpoints": tuple(
                c.model_copy(update={"bytes_held": counted[ref_of(c.name)]})
                for c in status.checkpoints
                if c.name not in doomed
            ),
            "expiring": (*status.expiring, *doomed),
            "horizon": str(horizon),
        }
    )


def _with_strays(seen: Observed, status: TrainingJobStatus) -> TrainingJobStatus:
    """Gives up what the lead has found in the store that nobody uses and nobody has ever asked to have deleted; what is retained here stays, and so does
    what was refused: somebody may want to look at it."""
    lead = members(seen, status.attempt)[0].report
    trusted = (t.checkpoint for t in status.trusted)
    known = {*status.expiring, *status.quarantined, *trusted, *(c.name for c in status.checkpoints)}
    new = [str(ref) for ref in lead.stray if str(ref) not in known] if lead is not None else []
    new = new[: MAX_EXPIRING - len(status.expiring)]
    return status.model_copy(update={"expiring": (*status.expiring, *new)}) if new else status


def proven(status: TrainingJobStatus) -> str:
    """The newest checkpoint from which a start has succeeded (C5): what was loaded, which is older than what was claimed if that was refused."""
    if status.attempt is None:
        return ""
    before = status.attempt.number
    loaded = [
        p.resumed_from for p in status.preemptions if p.resumed_from and p.resumed_at is not None and p.attempt < before
    ]
    return loaded[-1] if loaded and status.attempt.parent in status.quarantined else status.attempt.parent


def policy(seen: Observed) -> Policy:
    """What the spec asks for, as rules."""
    keep = seen.spec.checkpoint.keep
    rules: list[Rule] = [Last(max(AT_LEAST, keep.last))]
    if keep.best is not None:
        rules.append(Best(keep.best.metric, keep.best.count, highest=keep.best.goal is Goal.HIGHEST))
    if keep.every is not None and keep.every.steps:
        rules.append(EverySteps(keep.every.steps))
    if keep.every is not None and keep.every.seconds:
        rules.append(EverySeconds(keep.every.seconds))
    if keep.younger_than_seconds is not None:
        rules.append(YoungerThan(keep.younger_than_seconds))
    if keep.weights_only is WeightsOnlyKept.FOREVER:
        rules.append(WeightsOnly())
    named = (*keep.pinned, *seen.spec.validation.trusted)
    return Policy((*rules, Pinned(frozenset(map(ref_of, named)))), keep.max_bytes)


def outcome(seen: Observed, status: TrainingJobStatus, now: datetime) -> Outcome:
    """Of the checkpoints that the operator knows."""
    parent = proven(status)
    own = CheckpointRef.parse(parent) if parent and parent != FRESH and ":" not in parent else None
    return decide(policy(seen), saved(status), now, proven=own)


def unmet(seen: Observed, status: TrainingJobStatus, now: datetime) -> str:
    """What the spec asks for and cannot have, in words."""
    keep = seen.spec.checkpoint.keep
    if keep.max_bytes is None and keep.best is None:
        return ""
    known = saved(status)
    limit, metric = "spec.checkpoint.keep.maxBytes", "spec.checkpoint.keep.best.metric"
    found = outcome(seen, status, now)
    return trouble(policy(seen), known, found, field_of_limit=limit, field_of_best=metric)


def saved(status: TrainingJobStatus) -> tuple[Saved, ...]:
    return tuple(
        Saved(
            ref=ref_of(c.name),
            boundary=c.step,
            at=c.time,
            finite=c.finite,
            suspect=c.suspect,
            damaged=bool(c.damaged),
            metrics=c.metrics,
            weights_only=c.weights_only,
            image_bytes=c.bytes,
            held_bytes=c.bytes_held,
        )
        for c in status.checkpoints
    )


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
    trusted = {ref_of(name) for name in quarantine.trusted(status)}
    known = {ref_of(c.name) for c in status.checkpoints} | trusted
    retained = tuple(sorted(ref for ref in known if str(ref) != suspended))
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
        trusted=tuple(sorted(trusted)),
        accept_suspect=seen.spec.validation.suspect is Suspect.ACCEPT,
    )


def _of_job(name: str) -> OfJob:
    uid, _, rest = name.rpartition(":")
    ref = ref_of(rest)
    return OfJob(uid, ref.attempt, ref.save)


def _above(ref: CheckpointRef, horizon: CheckpointRef | None) -> bool:
    return horizon is None or ref > horizon
