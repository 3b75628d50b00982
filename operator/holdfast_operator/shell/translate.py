"""API objects to the frozen values that decisions read. Tolerant: what is missing or odd in an object is absent, never an exception."""

from datetime import UTC, datetime
from typing import Any, TypeVar

import pydantic

from holdfast_api import codec, names
from holdfast_api.errors import ContractError
from holdfast_api.messages import AgentReport
from holdfast_operator.core import kueue
from holdfast_operator.core.observed import JobMeta, NodeCondition, NodeSeen, PodSeen, Taint
from holdfast_operator.core.pods import trainer_of
from holdfast_operator.crd.v1alpha1 import Checkpoint, Storage, TrainingJobSpec, TrainingJobStatus

Object = dict[str, Any]
M = TypeVar("M", bound=pydantic.BaseModel)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def job(item: Object) -> tuple[JobMeta, TrainingJobSpec | None, TrainingJobStatus | None, str]:
    """(meta, spec, status, error). What cannot be read is None, and the error names the field. A status that cannot be read must not be replaced:
    acting without its memory could use a number twice."""
    spec, spec_error = _read(TrainingJobSpec, item, "spec")
    status, status_error = _read(TrainingJobStatus, item, "status")
    return _meta(item), spec, status, spec_error or status_error


def _read(model: type[M], item: Object, part: str) -> tuple[M | None, str]:
    try:
        return model.model_validate(item.get(part) or {}), ""
    except pydantic.ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join([part, *(str(x) for x in first["loc"])])
        return None, f"the stored object cannot be read at {where}: {first['msg']}"


def unreadable_spec() -> TrainingJobSpec:
    """Stands in for a spec that cannot be read. Nothing is done for such a job (`Observed.spec_error`); its conditions are still told, by these defaults."""
    checkpoint = Checkpoint.model_construct(storage=Storage.model_construct(uri=""))
    return TrainingJobSpec.model_construct(template={}, workers=1, checkpoint=checkpoint)


def pod(item: Object) -> PodSeen | None:
    """None for a pod without our labels."""
    meta, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    labels = meta.get("labels") or {}
    try:
        worker, serial = int(labels[names.LABEL_WORKER]), int(labels[names.LABEL_SERIAL])
    except (KeyError, ValueError):
        return None
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    disruption = _standing(conditions, "DisruptionTarget") or _standing(conditions, "TerminationTarget") or {}
    scheduled = conditions.get("PodScheduled", {})
    unschedulable = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    state, before = _trainer_states(spec, status)
    waiting, running, ended = (state.get(k) or {} for k in ("waiting", "running", "terminated"))
    return PodSeen(
        name=meta["name"],
        uid=meta["uid"],
        worker=worker,
        serial=serial,
        created_at=time_of(meta.get("creationTimestamp")) or _EPOCH,
        node=spec.get("nodeName", ""),
        ip=status.get("podIP", ""),
        phase=status.get("phase", "Pending"),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        deletion_deadline=time_of(meta.get("deletionTimestamp")),
        deletion_grace_seconds=meta.get("deletionGracePeriodSeconds"),
        disruption=disruption.get("reason", "") or ("Unknown" if disruption else ""),
        disruption_message=disruption.get("message", ""),
        disruption_since=time_of(disruption.get("lastTransitionTime")),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        exit_code=ended.get("exitCode"),
        exit_reason=ended.get("reason", ""),
        exit_message=ended.get("message", ""),
        restarted_after=before.get("reason", "Error") if before else "",
        report=_report(ended.get("message", "")),
        unschedulable=scheduled.get("message", "no node fits") if unschedulable else "",
        gates=tuple(g["name"][:316] for g in spec.get("schedulingGates") or []),
        queue_group=labels.get(kueue.GROUP, ""),
        queue_managed=labels.get(kueue.MANAGED) == "true",
        scheduled_at=time_of(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None,
        started_at=time_of(running.get("startedAt") or ended.get("startedAt")),
        finished_at=time_of(ended.get("finishedAt")),
    )


def node(item: Object) -> NodeSeen:
    meta, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    conditions = tuple(
        NodeCondition(
            type=c["type"],
            status=c.get("status", ""),
            reason=c.get("reason", ""),
            message=c.get("message", ""),
            since=time_of(c.get("lastTransitionTime")),
        )
        for c in status.get("conditions") or []
    )
    ready = next((c for c in conditions if c.type == "Ready"), None)
    return NodeSeen(
        name=meta["name"],
        ready=ready is not None and ready.status == "True",
        ready_since=ready.since if ready else None,
        unschedulable=bool(spec.get("unschedulable")),
        taints=tuple(
            Taint(t["key"], t.get("value", ""), t.get("effect", ""), time_of(t.get("timeAdded")))
            for t in spec.get("taints") or []
        ),
        conditions=conditions,
        labels=meta.get("labels") or {},
        annotations=meta.get("annotations") or {},
        deleting_since=time_of(meta.get("deletionTimestamp")),
    )


def time_of(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        return codec.parse_time(text)
    except ValueError:
        return None


def _meta(item: Object) -> JobMeta:
    meta = item["metadata"]
    return JobMeta(
        name=meta["name"],
        namespace=meta["namespace"],
        uid=meta["uid"],
        generation=meta.get("generation", 1),
        resource_version=meta.get("resourceVersion", ""),
        annotations=meta.get("annotations") or {},
        labels=meta.get("labels") or {},
        deleting=bool(meta.get("deletionTimestamp")),
    )


def _standing(conditions: dict[str, Object], kind: str) -> Object | None:
    found = conditions.get(kind)
    return found if found is not None and found.get("status") == "True" else None


def _trainer_states(spec: Object, status: Object) -> tuple[Object, Object]:
    """(state, how its life before ended). An end after which the kubelet starts it again in place is no end (G1)."""
    if not spec.get("containers"):
        return {}, {}
    trainer = trainer_of(spec)
    statuses = status.get("containerStatuses") or []
    found: Object = next((s for s in statuses if s.get("name") == trainer.get("name")), {})
    state, before = found.get("state") or {}, (found.get("lastState") or {}).get("terminated") or {}
    ended = state.get("terminated") or {}
    if ended and status.get("phase") not in ("Succeeded", "Failed") and _restarts(trainer, ended.get("exitCode")):
        return {}, ended
    return state, before


def _restarts(trainer: Object, exit_code: int | None) -> bool:
    rules = trainer.get("restartPolicyRules") or []
    return any(
        exit_code in ((r.get("exitCodes") or {}).get("values") or []) for r in rules if r.get("action") == "Restart"
    )


def _report(message: str) -> AgentReport | None:
    """The termination message holds at most 4 KiB, so a long report may have been cut: then it is no report."""
    if not message.startswith("{"):
        return None
    try:
        return codec.from_json(AgentReport, message.encode())
    except (ContractError, ValueError):
        return None
