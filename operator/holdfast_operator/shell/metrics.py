"""Every metric of the operator; docs/metrics.md lists them and a test compares. What is counted comes from status transitions that were written (I9)."""

from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from holdfast_api.messages import Cause
from holdfast_operator.core import events, unfinished
from holdfast_operator.core.resume import PHASES
from holdfast_operator.crd.v1alpha1 import Phase, TrainingJobStatus

_RESUME_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 3600)
_FAST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_INTERRUPTING = tuple(c for c in Cause if c not in (Cause.PERIODIC, Cause.MANUAL, Cause.FINAL, Cause.SUSPEND))


class Metrics:
    """One registry per process, so tests have their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.resume = Histogram(
            "holdfast_time_to_resume_seconds",
            "Seconds from the notice (or the loss) to the first new step: each phase, and the phase `total`, which they add up to.",
            ["phase", "cause"],
            buckets=_RESUME_BUCKETS,
            registry=r,
        )
        self.preemptions = Counter(
            "holdfast_preemptions", "Attempts ended by a preemption or loss.", ["cause"], registry=r
        )
        self.failures = Counter("holdfast_failures", "Attempts ended by a failure of the job itself.", registry=r)
        self.hangs = Counter(
            "holdfast_hangs", "Attempts ended because no rank passed a step; counted as failures too.", registry=r
        )
        self.straggler = Gauge(
            "holdfast_straggler",
            "1 while one rank of a job has been holding the others up for minutes (condition RanksKeepPace), else 0.",
            ["namespace", "job"],
            registry=r,
        )
        self.steps_lost = Counter("holdfast_steps_lost", "Steps that had to be done again.", ["cause"], registry=r)
        self.fallbacks = Counter(
            "holdfast_fallbacks", "Checkpoints that were refused on the way to a resume.", registry=r
        )
        self.checkpoint_time = Gauge(
            "holdfast_checkpoint_timestamp_seconds",
            "When the newest durable checkpoint of a job was committed, in seconds since 1970.",
            ["namespace", "job"],
            registry=r,
        )
        self.checkpoint_age = Gauge(
            "holdfast_checkpoint_age_seconds",
            "Seconds since the newest durable checkpoint of a job was committed; before there is one, since its first step.",
            ["namespace", "job"],
            registry=r,
        )
        self.not_finite = Gauge(
            "holdfast_checkpoint_not_finite",
            "1 while the newest durable checkpoint of a job holds NaN or infinite values in trained state, else 0.",
            ["namespace", "job"],
            registry=r,
        )
        self.suspect = Gauge(
            "holdfast_checkpoint_suspect",
            "1 while, in the newest durable checkpoint of a job, ranks that hold copies of one state did not hold the same bytes, else 0.",
            ["namespace", "job"],
            registry=r,
        )
        self.on_nodes = Gauge(
            "holdfast_state_on_nodes",
            "1 while the newest state of a job lies on its workers' nodes and in no checkpoint, else 0.",
            ["namespace", "job"],
            registry=r,
        )
        self.unfinished = Counter(
            "holdfast_unfinished_states",
            "States that lay on nodes only when an attempt was over, by what became of them: `finished`, or `lost` with the next claim.",
            ["outcome"],
            registry=r,
        )
        self.jobs = Gauge("holdfast_jobs", "Jobs by phase.", ["phase"], registry=r)
        self.reconcile = Histogram(
            "holdfast_reconcile_seconds",
            "Seconds of one round: observe, decide, write, act.",
            buckets=_FAST_BUCKETS,
            registry=r,
        )
        self.reaction = Histogram(
            "holdfast_reaction_seconds",
            "Seconds from seeing a change of a node or pod to the first action because of it.",
            buckets=_FAST_BUCKETS,
            registry=r,
        )
        self.conflicts = Counter(
            "holdfast_status_conflicts", "Status writes that somebody else was faster with.", registry=r
        )
        self.orders_failed = Counter(
            "holdfast_agent_orders_failed", "Orders that an agent did not take in.", registry=r
        )
        self.reports = Counter("holdfast_agent_reports", "Reports that were accepted.", registry=r)
        self.clock_skew = Gauge(
            "holdfast_operator_clock_skew_seconds",
            "This machine's clock minus the API server's, by its newest answer; exact to about a second.",
            registry=r,
        )
        self._begin_at_zero()
        self.leader = Gauge("holdfast_leader", "1 while this process is the active operator.", registry=r)

    def _begin_at_zero(self) -> None:
        """`increase()` and `rate()` see the first event of a series only if its zero was scraped before."""
        for outcome in ("finished", "lost"):
            self.unfinished.labels(outcome)
        for cause in _INTERRUPTING:
            self.preemptions.labels(cause.value)
            self.steps_lost.labels(cause.value)
            for phase in ("total", *PHASES):
                self.resume.labels(phase, cause.value)

    def written(self, namespace: str, job: str, before: TrainingJobStatus, after: TrainingJobStatus) -> None:
        """A status write that succeeded. Each resume is observed by the write that closes it, and by no other (I9)."""
        for entry in events.newly_resumed(before, after):
            self.resume.labels("total", entry.cause).observe(entry.total_milliseconds / 1000)
            for phase in entry.phases:
                self.resume.labels(phase.name, entry.cause).observe(phase.milliseconds / 1000)
            self.steps_lost.labels(entry.cause).inc(entry.steps_lost)
            self.fallbacks.inc(len(entry.fell_back))
        self._count_ends(before, after)
        self._count_unfinished(before, after)

    def _count_ends(self, before: TrainingJobStatus, after: TrainingJobStatus) -> None:
        ended = {p.attempt for p in before.preemptions if p.ended_at is not None}
        causes = [p.cause for p in after.preemptions if p.ended_at is not None and p.attempt not in ended]
        self.failures.inc(max(0, after.counts.failures - before.counts.failures))
        for cause in causes:
            if cause == Cause.HUNG.value:
                self.hangs.inc()
            elif cause != Cause.FAILURE.value:
                self.preemptions.labels(cause).inc()

    def _count_unfinished(self, before: TrainingJobStatus, after: TrainingJobStatus) -> None:
        was, now = before.unfinished, after.unfinished
        if was is not None and (now is None or now.checkpoint != was.checkpoint):
            self.unfinished.labels("finished" if unfinished.became_checkpoint(was, after) else "lost").inc()

    def set_jobs(self, statuses: list[tuple[str, str, TrainingJobStatus]]) -> None:
        """(namespace, name, status) of every job there is: gauges of jobs that are gone go with them."""
        now = datetime.now(UTC)
        for phase in Phase:
            self.jobs.labels(phase.value).set(sum(s.phase is phase for _, _, s in statuses))
        self.checkpoint_time.clear()
        self.checkpoint_age.clear()
        self.not_finite.clear()
        self.suspect.clear()
        self.on_nodes.clear()
        self.straggler.clear()
        for namespace, job, status in statuses:
            self.straggler.labels(namespace, job).set(status.straggler is not None and status.straggler.lasting)
            self.on_nodes.labels(namespace, job).set(status.unfinished is not None)
            if status.last_checkpoint is not None:
                self.not_finite.labels(namespace, job).set(status.last_checkpoint.finite is False)
                self.suspect.labels(namespace, job).set(bool(status.last_checkpoint.suspect))
                self.checkpoint_time.labels(namespace, job).set(status.last_checkpoint.time.timestamp())
            unsaved_since = _unsaved_since(status)
            if unsaved_since is not None and status.phase not in (Phase.SUCCEEDED, Phase.FAILED):
                self.checkpoint_age.labels(namespace, job).set(max(0.0, (now - unsaved_since).total_seconds()))


def _unsaved_since(status: TrainingJobStatus) -> datetime | None:
    """A job whose every save fails has no checkpoint to be old: then the work since its first step counts."""
    if status.last_checkpoint is not None:
        return status.last_checkpoint.time
    return status.attempt.first_step_at if status.attempt is not None else None
