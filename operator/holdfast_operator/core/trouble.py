"""What keeps a job from going on that a person has to see: one reason and one message that names field, value and remedy.

Causes are looked for in the order of how sure they are: the spec itself, what the API server refused, what an agent says, what the kubelet says, what
the scheduler says.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from holdfast_api.messages import AgentPhase
from holdfast_operator.core import blame, capacity, failures, interruptions, sizes
from holdfast_operator.core.membership import describe_worker, members, newest_plans, pod_of, report_of
from holdfast_operator.core.observed import Observed, PodSeen, Refusal, RefusalKind
from holdfast_operator.crd.v1alpha1 import TrainingJobStatus, WorkerStatus

MAX_MESSAGE = 4000


@dataclass(frozen=True, slots=True)
class Trouble:
    reason: str
    message: str
    stalled: bool = True
    """False: it may pass by itself (no room in the cluster, an image that is slow to come)."""


def find(seen: Observed, status: TrainingJobStatus, now: datetime) -> Trouble | None:
    """The first trouble, in order; None if nothing stands in the way."""
    sources: tuple[Callable[[], Iterator[Trouble]], ...] = (
        lambda: _of_spec(seen),
        lambda: _of_stop(status),
        lambda: _of_refusals(seen),
        lambda: _of_agents(seen, status),
        lambda: _of_crash(seen, status, now),
        lambda: _of_pods(seen, status),
    )
    return next((t for source in sources for t in source()), None)


def _of_spec(seen: Observed) -> Iterator[Trouble]:
    if seen.spec_error:
        yield Trouble("SpecInvalid", seen.spec_error)


def _of_stop(status: TrainingJobStatus) -> Iterator[Trouble]:
    if status.stop is not None:
        yield Trouble("CheckpointUnsound", status.stop.message)


def _of_refusals(seen: Observed) -> Iterator[Trouble]:
    for refusal in seen.refusals:
        yield _refused(refusal)


def _refused(refusal: Refusal) -> Trouble:
    said = refusal.message[:MAX_MESSAGE]
    match refusal.kind:
        case RefusalKind.INVALID:
            return Trouble(
                "TemplateInvalid",
                f"{refusal.what} was refused; correct spec.template, or spec.placement if it speaks of that: {said}",
            )
        case RefusalKind.TAKEN:
            message = f"{refusal.what} exists and belongs to another owner; Holdfast waits until it is gone: {said}"
            return Trouble("NameTaken", message)
        case RefusalKind.FORBIDDEN:
            message = (
                f"{refusal.what} was refused; it is tried again. If it is a quota, make room or raise it; if it is pod security, "
                f"change spec.template: {said}"
            )
            return Trouble("Refused", message, stalled=False)


def _of_agents(seen: Observed, status: TrainingJobStatus) -> Iterator[Trouble]:
    for worker, entry in _that_matter(seen, status):
        report = report_of(seen, entry.pod_uid)
        if report is not None and report.blocked is not None and report.phase is AgentPhase.BLOCKED:
            name = describe_worker(worker, entry.node)
            yield Trouble(report.blocked.reason.value, f"{name}: {report.blocked.message[:MAX_MESSAGE]}")


def _that_matter(seen: Observed, status: TrainingJobStatus) -> list[tuple[int, WorkerStatus]]:
    """Whether a pod beside an attempt that has all its workers finds room is no trouble: it waits for that."""
    attempt, newest = status.attempt, sorted(newest_plans(status).items())
    if attempt is None or len(attempt.members) < seen.spec.workers:
        return newest
    return [(worker, entry) for worker, entry in newest if not sizes.is_beside(attempt, worker)]


def _of_crash(seen: Observed, status: TrainingJobStatus, now: datetime) -> Iterator[Trouble]:
    """Nothing trains while it is not known whose fault a crash was."""
    if interruptions.is_over(status):
        return
    whos = members(seen, status.attempt)
    failure = failures.find(status, whos, now)
    silent = blame.awaited(seen, failure, whos, now) if failure is not None else ()
    if failure is not None and silent:
        who = ", ".join(describe_worker(w.member.worker, w.member.node) for w in silent[:8])
        message = (
            f"nothing has been heard of {who} since the training code of {describe_worker(failure.worker, failure.node)} crashed: a lost machine "
            f"makes the others crash. It counts as a failure if they are heard of, or at {blame.decided_at(seen, failure):%H:%M:%S} UTC at the latest"
        )
        yield Trouble("WorkerSilent", message, stalled=False)


def _of_pods(seen: Observed, status: TrainingJobStatus) -> Iterator[Trouble]:
    for worker, entry in _that_matter(seen, status):
        pod = pod_of(seen, worker, entry.serial)
        if pod is not None:
            yield from _of_pod(seen, pod, describe_worker(worker, pod.node), capacity.in_words(seen, entry))


_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")


def _of_pod(seen: Observed, pod: PodSeen, name: str, waits_for: str) -> Iterator[Trouble]:
    said = pod.waiting_message[:MAX_MESSAGE]
    if failures.start_error(pod):
        yield Trouble("AgentMissing", f"{name}: {failures.agent_missing(pod)}")
    elif pod.waiting_reason == "CreateContainerConfigError":
        secret = seen.spec.checkpoint.storage.secret_name
        remedy = (
            f"spec.checkpoint.storage.secretName is {secret!r}; if that is what is missing, create it with `kubectl create secret "
            f"generic {secret} -n {seen.job.namespace} --from-literal=AWS_ACCESS_KEY_ID=… --from-literal=AWS_SECRET_ACCESS_KEY=…`"
            if secret
            else "create what it names, or correct spec.template"
        )
        yield Trouble("ContainerConfigError", f"{name}: {said or 'the container cannot be configured'}. {remedy}")
    elif pod.waiting_reason in _IMAGE:
        message = f"{name}: the image cannot be pulled ({pod.waiting_reason}); correct spec.template's image or its pull secret: {said}"
        yield Trouble("ImagePull", message)
    elif pod.waiting_reason in ("CreateContainerError", "RunContainerError"):
        yield Trouble("ContainerNotStarted", f"{name}: {pod.waiting_reason}: {said}")
    elif pod.unschedulable:
        message = (
            f"{name}: no node has room for it{waits_for}. Lower resources.requests in spec.template, or add nodes. "
            f"The scheduler says: {pod.unschedulable[:MAX_MESSAGE]}"
        )
        yield Trouble("Unschedulable", message, stalled=False)
