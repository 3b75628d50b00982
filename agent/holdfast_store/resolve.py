"""What an attempt may continue (A7, C1, C2, D3): the rules as pure functions, and the walk that reads commits one by one, newest first.

The operator says what is excluded; everything else on the lineage may be used, so that a commit that it has not heard of is found. Nothing here guesses:
a store that does not answer raises, it never looks like a store without checkpoints.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from holdfast_api import soundness
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import INTACT, CheckpointKind, CommitRecord, Verdict
from holdfast_api.messages import OfJob, Rejection, RestoreOrder
from holdfast_api.soundness import Grade
from holdfast_store.errors import Corrupt
from holdfast_store.lineage import Span

ENOUGH = 20
"""Candidates that are read at most: a restore that refuses twenty checkpoints in a row needs a person."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint that may be loaded. Chunks and manifests of another job's (`record.job_uid`) are read through `JobStore.for_job`."""

    record: CommitRecord
    text: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """`candidates` newest first. `reason` says in words why nothing is usable, or why a fresh start is not allowed; empty if all is well."""

    candidates: tuple[Candidate, ...]
    rejections: tuple[Rejection, ...]
    fresh_allowed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """One save on the lineage, as a listing shows it. Reading is deferred: `read` raises Corrupt, `failed_verdict` returns what a check found, or None."""

    job_uid: str
    ref: CheckpointRef
    committed: bool
    expired: bool
    read: Callable[[], tuple[CommitRecord, str]]
    failed_verdict: Callable[[], Verdict | None]


@dataclass(slots=True)
class Selection:
    """What the walk has gathered."""

    candidates: list[Candidate] = field(default_factory=list)
    unsound: dict[Grade, list[Candidate]] = field(default_factory=dict)
    """Something has been known to be wrong with them since they were saved: tried only where nothing better is left (C1, C4, J4)."""
    damage: dict[CheckpointRef, str] = field(default_factory=dict)
    """What a scrub has found in the store's copy of those that are of grade DAMAGED."""
    rejections: list[Rejection] = field(default_factory=list)
    excluded: list[CheckpointRef] = field(default_factory=list)


def is_excluded(order: RestoreOrder, job_uid: str, ref: CheckpointRef, *, own: bool) -> bool:
    """Quarantined or expired by the operator (C2); at or below the horizon and not retained (D3), which speaks of the job's own checkpoints only.

    Two jobs give their checkpoints the same numbers: an own 1/1 that is bad says nothing about the 1/1 of the job that is continued (D6).
    """
    if OfJob(job_uid, ref.attempt, ref.save) in order.excluded_of:
        return True
    return (ref in order.excluded and (own or not order.own_only)) or (own and below_horizon(order, ref))


def below_horizon(order: RestoreOrder, ref: CheckpointRef) -> bool:
    """D3, of one of the job's own checkpoints."""
    return order.horizon is not None and ref <= order.horizon and ref not in order.retained


def floor(order: RestoreOrder) -> int:
    """The oldest attempt with own checkpoints that may still be used, as far as the order tells; 0 if it does not."""
    if order.horizon is None or order.pinned is not None or order.resume_from_uid:
        return 0
    return min([order.horizon.attempt, *(ref.attempt for ref in order.retained)])


def look_at(order: RestoreOrder, span: Span, *, own: bool) -> tuple[CheckpointRef, ...] | None:
    """The only saves of a span that may still be used, newest first; None where a listing has to tell.

    So the time to resume does not grow with what was ever deleted: of all that lies at or below the horizon only what is retained costs a request (D3).
    Above it everything is listed, because there may be commits that the operator has not heard of.
    """
    known: Iterable[CheckpointRef]
    if order.pinned is not None:
        known = (order.pinned,)
    elif own and order.horizon is not None and span.attempt < order.horizon.attempt:
        known = order.retained
    else:
        return None
    return tuple(sorted((r for r in known if span.holds(span.job_uid, r)), reverse=True))


def select(order: RestoreOrder, own_uid: str, found: Iterable[Found]) -> Selection:
    """Walks the lineage newest first and reads no more than is needed."""
    result = Selection()
    for save in found:
        if not save.committed or save.expired:
            continue
        if order.pinned is not None and save.ref != order.pinned:
            continue
        own = save.job_uid == own_uid
        if is_excluded(order, save.job_uid, save.ref, own=own):
            result.excluded.append(save.ref)
            continue
        before = len(result.rejections)
        _consider(save, result, order=order, trusted=own and save.ref in order.trusted)
        if not own:
            result.rejections[before:] = [replace(r, job_uid=save.job_uid) for r in result.rejections[before:]]
        if len(result.candidates) == ENOUGH:
            break
    _settle_unsound(result, own_uid)
    return result


def _settle_unsound(result: Selection, own_uid: str) -> None:
    """Passed over without being loaded, if there is something better; otherwise the best that is left is tried, and the load itself has the last word. NaN
    quarantines (C4). Copies that differ do not, a person may decide that they are to be used; nor does damage in the store, which may be mended."""
    for found, unsound in sorted(result.unsound.items()):
        if not result.candidates:
            result.candidates = unsound[:ENOUGH]
            continue
        for record in (candidate.record for candidate in unsound):
            reason = _why_passed_over(found, record, result.damage.get(record.ref, ""))
            refused = _rejection(record.ref, reason, of_checkpoint=found is Grade.NOT_FINITE)
            result.rejections.append(replace(refused, job_uid="" if record.job_uid == own_uid else record.job_uid))


def _why_passed_over(found: Grade, record: CommitRecord, damage: str) -> str:
    match found:
        case Grade.NOT_FINITE:
            return not_finite_reason(record)
        case Grade.DAMAGED:
            return f"a scrub has found damage in the store: {damage}"
        case _:
            return soundness.words(record.suspect)


def not_finite_reason(record: CommitRecord) -> str:
    return f"{', '.join(record.not_finite) or 'trained state'} held NaN or infinite values when it was saved"


def _consider(save: Found, result: Selection, *, order: RestoreOrder, trusted: bool) -> None:
    try:
        record, text = save.read()
        verdict = None if trusted else save.failed_verdict()
    except Corrupt as e:
        result.rejections.append(_rejection(save.ref, str(e), of_checkpoint=True))
        return
    if verdict is not None and verdict.check != INTACT:
        reason = f"check {verdict.check} failed: {verdict.detail}"
        result.rejections.append(_rejection(save.ref, reason, of_checkpoint=True))
    elif record.kind is not CheckpointKind.FULL:
        result.rejections.append(
            _rejection(save.ref, f"holds {record.kind.value}, not a state to resume", of_checkpoint=False)
        )
    else:
        found = Grade.SOUND if trusted else soundness.grade(record, damaged=verdict is not None)
        if found is Grade.SUSPECT and order.accept_suspect:
            found = Grade.DAMAGED if verdict is not None else Grade.SOUND
        if verdict is not None:
            result.damage[save.ref] = verdict.detail
        (result.candidates if found is Grade.SOUND else result.unsound.setdefault(found, [])).append(
            Candidate(record, text)
        )


def explain(order: RestoreOrder, selection: Selection, *, ever_committed: bool, source: str) -> str:
    """Why nothing can be loaded, for the condition that a person reads (C1). `source` names the job that was looked at."""
    if selection.candidates:
        return ""
    if order.pinned is not None and not selection.rejections and not selection.excluded:
        return f"checkpoint {order.pinned}, which the order names, is not on the lineage of {source}, or is expired"
    parts = [f"{r.attempt}/{r.save}: {r.reason}" for r in selection.rejections[:5]]
    if selection.excluded:
        names = ", ".join(str(ref) for ref in selection.excluded[:10])
        parts.append(f"excluded by the operator: {names}")
    if parts:
        return f"no checkpoint of {source} can be used: " + "; ".join(parts)
    if ever_committed:
        return f"{source} has had checkpoints, but none is left on the lineage (all are expired, or belong to superseded attempts)"
    return f"{source} has no checkpoint"


def _rejection(ref: CheckpointRef, reason: str, *, of_checkpoint: bool) -> Rejection:
    return Rejection(ref.attempt, ref.save, reason[:500], of_checkpoint, datetime.now(UTC))


def earlier_job_reason(uids: tuple[str, ...]) -> str:
    """A9: a month of work must not start from zero because someone deleted and applied again."""
    return (
        f"the store holds checkpoints of an earlier job of this name ({', '.join(uids[:5])}). To continue them add "
        f"spec.resumeFrom.uid: {uids[-1]}; to start from nothing add spec.fresh: true"
    )
