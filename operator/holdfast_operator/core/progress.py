"""What agents have told, taken over into status: acceptance, claim, steps, commits, refusals, deletions. Never decides anything."""

from collections.abc import Mapping
from datetime import datetime

from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import AgentPhase, AgentReport, CheckpointInfo, ClaimInfo, Stage
from holdfast_operator.core import capacity, quarantine, zones
from holdfast_operator.core.membership import MemberSeen, members, pod_of, report_of
from holdfast_operator.core.observed import Observed
from holdfast_operator.crd.v1alpha1 import (
    AttemptStatus,
    CheckpointStatus,
    IntervalStatus,
    MemberStatus,
    PreemptionStatus,
    TrainingJobStatus,
    WorkerStatus,
)

FRESH = "fresh"
MAX_FELL_BACK = 16
MAX_CHECKPOINTS = 1100
MAX_METRICS = 4
MAX_METRIC_NAME = 64
MAX_GATES = 16


def adopt(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """Everything that pods and reports say, in status. Idempotent; order and repetition do not matter (I7 of the fault list)."""
    status = _adopt_pods(seen, status, now)
    status = _adopt_start_order(seen, status)
    status = quarantine.lift(seen, status)
    reports = _reports(seen, status)
    ours = not _continues_another_job(seen, status)
    status = _adopt_checkpoints(seen, status, reports, restored=ours)
    status = _adopt_deletions(status, reports)
    status = _adopt_damage(seen, status)
    if ours:
        status = quarantine.adopt(status, reports)
    if status.attempt is not None:
        status = _adopt_attempt(seen, status, now)
    return status


def start_order(seen: Observed) -> str:
    """What the spec says about where to start, as one word that status can remember having carried out (A7, A9)."""
    if seen.spec.fresh:
        return FRESH
    wanted = seen.spec.resume_from
    return f"{wanted.uid}@{wanted.checkpoint}" if wanted is not None and (wanted.uid or wanted.checkpoint) else ""


def _adopt_start_order(seen: Observed, status: TrainingJobStatus) -> TrainingJobStatus:
    """Since which attempt the order stands. An attempt that has not claimed yet is sent the new order, so it counts among those that are under it."""
    wanted = start_order(seen)
    if wanted == status.start_order_asked:
        return status
    waiting = status.attempt is not None and status.attempt.claimed_at is None
    after = status.attempts_used - 1 if waiting else status.attempts_used
    return status.model_copy(update={"start_order_asked": wanted, "start_order_after": after})


def _is_under_order(seen: Observed, attempt: AttemptStatus) -> bool:
    """The claim does what the spec says now. One that was made before the order came, and is heard of after, does not carry it out."""
    if seen.spec.fresh:
        return attempt.parent == FRESH
    wanted = seen.spec.resume_from
    if wanted is None or not wanted.checkpoint:
        return True  # whose checkpoints are continued is a standing order: the store carries it out once, by its own claims
    return attempt.parent.rpartition(":")[2] == wanted.checkpoint


def _continues_another_job(seen: Observed, status: TrainingJobStatus) -> bool:
    """Then what agents say of the checkpoint that they load is about numbers of that job, not of ours (A9)."""
    if status.attempt is None:
        return False
    if status.attempt.parent:
        return ":" in status.attempt.parent
    wanted = seen.spec.resume_from
    return wanted is not None and wanted.uid not in ("", seen.job.uid) and status.start_order != start_order(seen)


def ref_of(name: str) -> CheckpointRef:
    return CheckpointRef.parse(name)


def as_status(info: CheckpointInfo, best: str = "") -> CheckpointStatus:
    """`best`: the metric that retention looks at."""
    return CheckpointStatus(
        name=str(info.ref),
        step=info.boundary,
        cause=info.cause.value,
        time=info.committed_at,
        bytes=info.bytes_logical,
        bytes_sent=info.bytes_sent,
        bytes_held=info.bytes_stored or info.bytes_sent,
        metrics=_metrics(info.metrics, best),
        weights_only=info.weights_only,
        finite=info.finite,
        not_finite=tuple(name[:256] for name in info.not_finite[:5]),
        suspect=info.suspect[:512],
    )


def _metrics(told: Mapping[str, float], best: str) -> dict[str, float]:
    """A status is no place for many."""
    names = sorted((n for n in told if len(n) <= MAX_METRIC_NAME), key=lambda n: (n != best, n))
    return {n: told[n] for n in names[:MAX_METRICS]}


def _adopt_pods(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    workers = tuple(_with_pod(seen, w, now) for w in status.workers)
    return status if workers == status.workers else status.model_copy(update={"workers": workers})


def _with_pod(seen: Observed, plan: WorkerStatus, now: datetime) -> WorkerStatus:
    pod = pod_of(seen, plan.worker, plan.serial)
    if pod is None or (plan.pod_uid not in ("", pod.uid)):
        return plan
    found = {
        "pod_uid": pod.uid,
        "node": pod.node or plan.node,
        "gates": pod.gates[:MAX_GATES],
        "waiting_since": capacity.waiting_since(plan, pod, now),
    }
    return plan if all(getattr(plan, k) == v for k, v in found.items()) else plan.model_copy(update=found)


def _reports(seen: Observed, status: TrainingJobStatus) -> tuple[AgentReport, ...]:
    """Of every pod that is or was to be a worker, lead last: on equal footing its word about commits is the newest."""
    uids = {w.pod_uid for w in status.workers if w.pod_uid}
    uids |= {m.pod_uid for m in status.attempt.members} if status.attempt else set()
    found = (report_of(seen, uid) for uid in sorted(uids))
    known = (r for r in found if r is not None and 0 < r.attempt <= status.attempts_used)
    return tuple(sorted(known, key=lambda r: (r.attempt, -r.worker)))


def _adopt_checkpoints(
    seen: Observed, status: TrainingJobStatus, reports: tuple[AgentReport, ...], *, restored: bool
) -> TrainingJobStatus:
    given_up = {*status.expiring, *status.quarantined}
    horizon = ref_of(status.horizon) if status.horizon else None
    known = {c.name: c for c in status.checkpoints}
    best = seen.spec.checkpoint.keep.best
    trusted = quarantine.trusted(status) - {str(ref) for r in reports for ref in r.expired}
    for report in reports:
        for info in (*report.checkpoints, *((report.restored,) if restored and report.restored else ())):
            if not info.durable or str(info.ref) in given_up:
                continue
            if (before := known.get(str(info.ref))) is not None:
                known[str(info.ref)] = _with_finding(before, info)
            elif horizon is None or info.ref > horizon or str(info.ref) in trusted:
                known[str(info.ref)] = as_status(info, best.metric if best is not None else "")
    if tuple(known.values()) == status.checkpoints:
        return status
    kept = tuple(sorted(known.values(), key=lambda c: ref_of(c.name)))[-MAX_CHECKPOINTS:]
    return status.model_copy(update={"checkpoints": kept, "last_checkpoint": kept[-1]})


def _with_finding(before: CheckpointStatus, info: CheckpointInfo) -> CheckpointStatus:
    """Whether it is finite may become known later, by a start that has loaded it; what is known stays."""
    if before.finite is not None or info.finite is None:
        return before
    new = as_status(info)
    return before.model_copy(update={"finite": new.finite, "not_finite": new.not_finite})


def _adopt_deletions(status: TrainingJobStatus, reports: tuple[AgentReport, ...]) -> TrainingJobStatus:
    """What the store keeps, because something refers to it, stays given up: it is asked for again, and never counted as retained (D2, D5)."""
    done = {str(ref) for r in reports for ref in r.expired}
    expiring = tuple(name for name in status.expiring if name not in done)
    return status if expiring == status.expiring else status.model_copy(update={"expiring": expiring})


def _adopt_damage(seen: Observed, status: TrainingJobStatus) -> TrainingJobStatus:
    """What the lead has last seen of the findings of scrubs. They stand until it sees that they are taken back."""
    whos = members(seen, status.attempt)
    told = whos[0].report.damaged if whos and whos[0].report is not None else None
    if told is None or all(c.damaged == told.get(c.name, "")[:512] for c in status.checkpoints):
        return status
    marked = tuple(c.model_copy(update={"damaged": told.get(c.name, "")[:512]}) for c in status.checkpoints)
    return status.model_copy(update={"checkpoints": marked, "last_checkpoint": marked[-1]})


def _adopt_attempt(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    assert status.attempt is not None
    whos = members(seen, status.attempt)
    attempt = _with_nodes(status.attempt, whos)
    before_claim = attempt.claimed_at
    attempt = _with_claim(seen, status, attempt, whos, now)
    attempt = _with_first_step(attempt, whos, now)
    update: dict[str, object] = {}
    if attempt != status.attempt:
        update["attempt"] = attempt
    if before_claim is None and attempt.claimed_at is not None and _is_under_order(seen, attempt):
        update["start_order"] = start_order(seen)
    step = _step(status, whos)
    if step != status.step:
        update["step"] = step
    interval = _interval(whos)
    if interval is not None and interval != status.interval:
        update["interval"] = interval
    return _with_fall_backs(status.model_copy(update=update) if update else status, whos)


def _with_nodes(attempt: AttemptStatus, whos: tuple[MemberSeen, ...]) -> AttemptStatus:
    new = tuple(_with_node(w) for w in whos)
    return attempt if new == attempt.members else attempt.model_copy(update={"members": new})


def _with_node(who: MemberSeen) -> MemberStatus:
    """Where it runs; what was known is kept when pod and node are gone."""
    node = (who.pod.node if who.pod is not None else "") or who.member.node
    zone = zones.zone_of(who.node) or who.member.zone
    if (node, zone) == (who.member.node, who.member.zone):
        return who.member
    return who.member.model_copy(update={"node": node, "zone": zone})


def _with_claim(
    seen: Observed, status: TrainingJobStatus, attempt: AttemptStatus, whos: tuple[MemberSeen, ...], now: datetime
) -> AttemptStatus:
    if attempt.accepted_at is None and whos and all(w.report is not None for w in whos):
        attempt = attempt.model_copy(update={"accepted_at": now})
    claim = next((w.report.claim for w in whos if w.report is not None and w.report.claim is not None), None)
    if claim is None or claim.attempt != attempt.number or attempt.claimed_at is not None:
        return attempt
    parent, step = _parent_of(seen, status, claim)
    return attempt.model_copy(
        update={
            "claimed_at": min(claim.claimed_at, now),
            "incarnation": claim.incarnation[:64],
            "parent": parent,
            "parent_step": step,
        }
    )


def _parent_of(seen: Observed, status: TrainingJobStatus, claim: ClaimInfo) -> tuple[str, int]:
    """`ATTEMPT/SAVE`, led by the uid of the job that made it if that was another one (A9)."""
    if claim.parent_attempt == 0:
        return FRESH, 0
    name = f"{claim.parent_attempt}/{claim.parent_save}"
    other = claim.parent_job_uid if claim.parent_job_uid != seen.job.uid else ""
    return (f"{other}:{name}" if other else name), claim.parent_boundary


def _with_first_step(attempt: AttemptStatus, whos: tuple[MemberSeen, ...], now: datetime) -> AttemptStatus:
    """All ranks have taken a step: by the moment that agents name, else by what they are doing (a report may be lost)."""
    if attempt.first_step_at is not None or attempt.claimed_at is None or not whos:
        return attempt
    if not all(w.report is not None and _has_stepped(attempt, w.report) for w in whos):
        return attempt
    named = [
        w.report.stages[Stage.FIRST_STEP.value] for w in whos if w.report and Stage.FIRST_STEP.value in w.report.stages
    ]
    # Not before the attempt and not after now: clocks of nodes differ.
    at = min(max([*named, attempt.created_at]), now) if len(named) == len(whos) else now
    return attempt.model_copy(update={"first_step_at": at})


def _has_stepped(attempt: AttemptStatus, report: AgentReport) -> bool:
    if Stage.FIRST_STEP.value in report.stages or report.phase is AgentPhase.FINISHED:
        return True
    return report.phase is AgentPhase.TRAINING and report.boundary > attempt.parent_step


def _interval(whos: tuple[MemberSeen, ...]) -> IntervalStatus | None:
    """What the lead has chosen; the last one stands while nobody says another."""
    for who in whos:
        if who.report is not None and who.report.interval_seconds > 0:
            return IntervalStatus(seconds=who.report.interval_seconds, reason=who.report.interval_reason[:4096])
    return None


def _step(status: TrainingJobStatus, whos: tuple[MemberSeen, ...]) -> int:
    passed = [w.report.boundary for w in whos if w.report is not None and w.report.boundary > 0]
    return max(passed, default=status.step)


def _with_fall_backs(status: TrainingJobStatus, whos: tuple[MemberSeen, ...]) -> TrainingJobStatus:
    """What was refused on the way to this attempt's state goes into every entry that is not recovered from yet."""
    refused = sorted(
        {(x.attempt, x.save, x.reason[:500]) for w in whos if w.report is not None for x in w.report.rejections},
        reverse=True,
    )
    if not refused:
        return status
    return with_fall_backs(status, tuple(f"{attempt}/{save}: {reason}" for attempt, save, reason in refused))


def with_fall_backs(status: TrainingJobStatus, texts: tuple[str, ...]) -> TrainingJobStatus:
    """`ATTEMPT/SAVE: reason` of checkpoints that the current attempt has passed over, into every entry that it recovers from."""
    number = status.attempt.number if status.attempt else 0
    open_before = [p.resumed_at is None and p.attempt < number for p in status.preemptions]
    pairs = zip(status.preemptions, open_before, strict=True)
    entries = tuple(_merged(p, texts) if before else p for p, before in pairs)
    return status if entries == status.preemptions else status.model_copy(update={"preemptions": entries})


def _merged(entry: PreemptionStatus, texts: tuple[str, ...]) -> PreemptionStatus:
    new = tuple(t for t in texts if t.split(":")[0] not in {x.split(":")[0] for x in entry.fell_back})
    return entry.model_copy(update={"fell_back": (*entry.fell_back, *new)[:MAX_FELL_BACK]}) if new else entry
