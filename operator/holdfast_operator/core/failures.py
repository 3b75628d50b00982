"""Failures: the training code, its image or its configuration is at fault (the budget that is not the preemptions' one)."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from holdfast_api.messages import AgentPhase, Cause, Exit, HangReport, Stage
from holdfast_operator.core import sizes
from holdfast_operator.core.membership import (
    MemberSeen,
    describe_worker,
    exit_of,
    exit_with,
    is_member,
    newest_plans,
    pod_of,
)
from holdfast_operator.core.observed import Observed, PodSeen
from holdfast_operator.crd.v1alpha1 import Budgets, Counts, TrainingJobStatus

MAX_BACKOFF_SECONDS = 300
MAX_WORDS = 2000
START_ERRORS = (127, 128)
OUT_OF_MEMORY = (
    "out of memory (OOMKilled). The pod's memory limit must hold the training process and the checkpoint memory of its ranks: raise "
    "resources.limits.memory of the trainer container, or set spec.checkpoint.memoryMiB"
)
CAUSES = (Cause.FAILURE.value, Cause.HUNG.value)
"""Of an attempt's end, that count as failures."""
HUNG = "Hung"
IMAGE_LINE = "RUN pip install 'holdfast[agent]'"


@dataclass(frozen=True, slots=True)
class Failure:
    worker: int
    node: str
    at: datetime
    reason: str
    """One word, for the condition."""
    message: str
    final: bool = False
    """Trying again cannot help: the configuration is wrong."""
    may_be_an_echo: bool = False
    """The training code crashed, which it also does when another worker vanishes (blame.py)."""
    others: tuple[int, ...] = ()
    """Workers that are to blame as well."""

    @property
    def cause(self) -> Cause:
        return Cause.HUNG if self.reason == HUNG else Cause.FAILURE


def find(status: TrainingJobStatus, whos: tuple[MemberSeen, ...], now: datetime) -> Failure | None:
    """The failure that came first: its words are the cause, the others' are that a peer is gone. What is no crash of training code, as an agent that
    was killed, makes the others crash before it is heard of. One failing worker fails its attempt once."""
    found = (_failure(status, who, now) for who in whos)
    return min(
        (f for f in found if f is not None), key=lambda f: (not f.final, f.may_be_an_echo, f.at, f.worker), default=None
    )


def of_start(seen: Observed, status: TrainingJobStatus, now: datetime) -> Failure | None:
    """A planned pod that ended before it became a member of an attempt, by its own fault."""
    for worker, entry in sorted(newest_plans(status).items()):
        pod = pod_of(seen, worker, entry.serial)
        if sizes.is_beside(status.attempt, worker):
            continue  # the attempt has never had it and goes on without it
        if pod is None or is_member(status, pod.uid) or not pod.ended or pod.deleting or pod.reason:
            continue
        name = describe_worker(worker, pod.node)
        how = exit_with(pod)
        if how is Exit.CONFIGURATION_WRONG:
            words = _words_of_pod(pod) or "the agent refuses its configuration"
            return Failure(worker, pod.node, now, "ConfigurationWrong", f"{name}: {words}", final=True)
        if how is None or how in (Exit.FINISHED, Exit.TRAINER_FAILED):
            return _by_exit_code(worker, pod, name, now)
    return None


def counted(counts: Counts, *, progressed: bool) -> Counts:
    """One more. `progressed`: the attempt had made a durable checkpoint, which starts the row anew."""
    row = 1 if progressed else counts.failures_in_a_row + 1
    return counts.model_copy(update={"failures": counts.failures + 1, "failures_in_a_row": row})


def retry_at(counts: Counts, budgets: Budgets, now: datetime) -> datetime:
    """Back-off: `backoffSeconds`, doubled with each failure in a row, at most 300 s."""
    doubled = budgets.failures.backoff_seconds * 2 ** min(counts.failures_in_a_row - 1, 16)
    return now + timedelta(seconds=min(doubled, MAX_BACKOFF_SECONDS))


def _failure(status: TrainingJobStatus, who: MemberSeen, now: datetime) -> Failure | None:
    how = exit_of(who)
    name = describe_worker(who.member.worker, who.member.node)
    words = _last_words(who)
    if how is Exit.CONFIGURATION_WRONG:
        return _fail(who, now, "ConfigurationWrong", f"{name}: {words or 'the agent refuses its configuration'}", True)
    if who.report is not None and who.report.hang is not None and who.report.hang.restarts:
        return _hung(status, who, who.report.hang, now)
    if how is Exit.TRAINER_FAILED or (who.report is not None and who.report.phase is AgentPhase.FAILED):
        message = f"{name}: the training script failed: {words or 'it said nothing'}"
        return Failure(who.member.worker, who.member.node, _crashed_at(who, now), "TrainerFailed", message, False, True)
    if how is not None:
        return None
    if who.pod is not None and who.pod.ended:
        return _by_exit_code(who.member.worker, who.pod, name, now)
    if _agent_restarted(status, who):
        if who.pod is not None and who.pod.restarted_after == "OOMKilled":
            return _fail(who, now, "OutOfMemory", f"{name}: {OUT_OF_MEMORY}")
        return _fail(who, now, "AgentRestarted", f"{name}: the agent was killed and has been restarted in place (G2)")
    return None


def _hung(status: TrainingJobStatus, who: MemberSeen, hang: HangReport, now: datetime) -> Failure:
    """Told by the lead, about whoever it is: the others crash when the ranks are ended, and theirs is the echo."""
    members = status.attempt.members if status.attempt is not None else ()
    culprit = next((m for m in members if m.worker in hang.workers), who.member)
    saved = f" {hang.saved}." if hang.saved else ""
    message = (
        f"no step for {hang.idle_seconds:.0f} s. {hang.why}.{saved} The stacks of all ranks are in the logs of the pods; spec.hangs says when this "
        "is done"
    )
    others = tuple(w for w in hang.workers if w != culprit.worker)
    return Failure(culprit.worker, culprit.node, min(hang.at, now), HUNG, message[:MAX_WORDS], others=others)


def _by_exit_code(worker: int, pod: PodSeen, name: str, now: datetime) -> Failure:
    at = min(pod.finished_at or now, now)

    def fail(reason: str, message: str) -> Failure:
        return Failure(worker, pod.node, at, reason, message)

    if start_error(pod):
        return fail("AgentMissing", f"{name}: {agent_missing(pod)}")
    if pod.exit_reason == "OOMKilled":
        return fail("OutOfMemory", f"{name}: {OUT_OF_MEMORY}")
    what = f"exit code {pod.exit_code}" if pod.exit_code is not None else (pod.reason or "no exit code")
    return fail("WorkerFailed", f"{name}: the pod failed with {what}: {_words_of_pod(pod)}".rstrip(": "))


def start_error(pod: PodSeen) -> bool:
    """The runtime could not start the command (G4)."""
    return pod.exit_code in START_ERRORS or pod.exit_reason in ("StartError", "ContainerCannotRun")


def agent_missing(pod: PodSeen) -> str:
    """What to do about 127 and 128 (G4)."""
    return (
        f"the container did not start (exit code {pod.exit_code}, {pod.exit_reason or 'start error'}): the image has no "
        f"holdfast-agent in its PATH, or not the first word of `command`. Add this line to the Dockerfile: {IMAGE_LINE} - and note "
        f"that `command` replaces the image's ENTRYPOINT. The runtime said: {_words_of_pod(pod)[:500] or 'nothing'}"
    )


def _agent_restarted(status: TrainingJobStatus, who: MemberSeen) -> bool:
    """It has had the attempt and no longer has it: another life of the agent, which will not start it again (A1)."""
    attempt = status.attempt
    if attempt is None or who.latest is None or who.latest.attempt == attempt.number:
        return False
    return attempt.accepted_at is not None or who.latest.joined >= attempt.number


def _crashed_at(who: MemberSeen, now: datetime) -> datetime:
    """By the agent's word, else by the end of its container, else when it was last heard of. Clocks of nodes differ: never after it was heard of."""
    told = who.report.stages.get(Stage.FAILED.value) if who.report is not None else None
    ended = who.pod.finished_at if who.pod is not None else None
    return min(told or ended or who.last_heard or now, who.last_heard or now, now)


def _last_words(who: MemberSeen) -> str:
    words = who.report.exit_detail if who.report else ""
    return (words or (_words_of_pod(who.pod) if who.pod else ""))[:MAX_WORDS]


def _words_of_pod(pod: PodSeen) -> str:
    if pod.report is not None:
        return pod.report.exit_detail[:MAX_WORDS]
    return (pod.exit_message or pod.message)[:MAX_WORDS]


def _fail(who: MemberSeen, at: datetime, reason: str, message: str, final: bool = False) -> Failure:
    return Failure(who.member.worker, who.member.node, at, reason, message, final)
