"""Every metric is documented and measured once; wrong arguments end with one clear line."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast_operator.crd.v1alpha1 import AttemptStatus, PhaseDuration, PreemptionStatus, TrainingJobStatus
from holdfast_operator.shell import settings
from holdfast_operator.shell.jobs import step_seconds
from holdfast_operator.shell.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs"
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def metric_names(metrics: Metrics) -> set[str]:
    return {m.name + ("_total" if m.type == "counter" else "") for m in metrics.registry.collect()}


def test_every_metric_of_the_operator_is_documented_and_no_other() -> None:
    page = (DOCS / "metrics.md").read_text()
    section = page.split("## Operator")[1].split("\n## ")[0]
    documented = set(re.findall(r"`(holdfast_[a-z_]+)`", section))
    assert documented == metric_names(Metrics())


@pytest.mark.parametrize(("trained", "pause"), [(0, 0.5), (5, 0.5), (60, 3), (86_400, 30)])
def test_the_step_is_shown_often_at_first_and_rarely_later(trained: float, pause: float) -> None:
    attempt = AttemptStatus(number=1, created_at=NOW, first_step_at=NOW)
    assert step_seconds(TrainingJobStatus(attempt=attempt), NOW + timedelta(seconds=trained)) == pause


def test_series_of_every_cause_are_there_before_the_first_event_or_increase_would_not_see_it() -> None:
    value = Metrics().registry.get_sample_value
    assert value("holdfast_preemptions_total", {"cause": "spot"}) == 0
    assert value("holdfast_steps_lost_total", {"cause": "node-lost"}) == 0
    assert value("holdfast_time_to_resume_seconds_count", {"phase": "fetch", "cause": "drain"}) == 0


def test_work_that_was_never_saved_grows_old_from_the_first_step() -> None:
    """Else the alert about stale checkpoints could not fire for a job whose every save fails."""
    metrics, began = Metrics(), datetime.now(UTC) - timedelta(seconds=100)
    attempt = AttemptStatus(number=1, created_at=began, first_step_at=began)
    metrics.set_jobs([("ns", "job", TrainingJobStatus(attempt=attempt))])
    age = metrics.registry.get_sample_value("holdfast_checkpoint_age_seconds", {"namespace": "ns", "job": "job"})
    assert age is not None
    assert age >= 100


def status(resumed: bool) -> TrainingJobStatus:
    phases = (PhaseDuration(name="flush", milliseconds=1500), PhaseDuration(name="load", milliseconds=500))
    entry = PreemptionStatus(attempt=1, cause="spot", noticed_at=NOW, ended_at=NOW)
    if resumed:
        more = {
            "resumed_at": NOW,
            "total_milliseconds": 2000,
            "phases": phases,
            "steps_lost": 3,
            "fell_back": ("1/2: bad",),
        }
        entry = entry.model_copy(update=more)
    return TrainingJobStatus(preemptions=(entry,))


def test_a_resume_is_measured_by_the_write_that_closes_it_and_by_no_other() -> None:
    metrics = Metrics()
    metrics.written("ns", "job", TrainingJobStatus(), status(False))
    metrics.written("ns", "job", status(False), status(True))
    metrics.written("ns", "job", status(True), status(True).model_copy(update={"step": 9}))
    value = metrics.registry.get_sample_value
    assert value("holdfast_time_to_resume_seconds_count", {"phase": "total", "cause": "spot"}) == 1
    assert value("holdfast_time_to_resume_seconds_sum", {"phase": "flush", "cause": "spot"}) == 1.5
    assert value("holdfast_preemptions_total", {"cause": "spot"}) == 1
    assert value("holdfast_steps_lost_total", {"cause": "spot"}) == 3
    assert value("holdfast_fallbacks_total") == 1


def test_gauges_of_jobs_that_are_gone_go_with_them() -> None:
    metrics = Metrics()
    saved = TrainingJobStatus.model_validate({
        "phase": "Running", "lastCheckpoint": {"name": "1/1", "step": 1, "cause": "periodic", "time": "2026-03-01T00:00:00Z"},
    })  # fmt: skip
    metrics.set_jobs([("ns", "job", saved)])
    labels = {"namespace": "ns", "job": "job"}
    assert (metrics.registry.get_sample_value("holdfast_checkpoint_age_seconds", labels) or 0) > 0
    assert metrics.registry.get_sample_value("holdfast_checkpoint_not_finite", labels) == 0
    wrong = saved.model_copy(update={"last_checkpoint": saved.last_checkpoint.model_copy(update={"finite": False})})
    metrics.set_jobs([("ns", "job", wrong)])
    assert metrics.registry.get_sample_value("holdfast_checkpoint_not_finite", labels) == 1
    assert metrics.registry.get_sample_value("holdfast_checkpoint_suspect", labels) == 0
    odd = saved.model_copy(update={"last_checkpoint": saved.last_checkpoint.model_copy(update={"suspect": "rank 1"})})
    metrics.set_jobs([("ns", "job", odd)])
    assert metrics.registry.get_sample_value("holdfast_checkpoint_suspect", labels) == 1
    metrics.set_jobs([])
    assert metrics.registry.get_sample_value("holdfast_checkpoint_age_seconds", labels) is None
    assert metrics.registry.get_sample_value("holdfast_checkpoint_not_finite", labels) is None


def test_arguments_come_before_environment_before_defaults() -> None:
    found = settings.parse(["--namespace", "a"], {"HOLDFAST_NAMESPACE": "b", "HOLDFAST_WATCH_NAMESPACE": "c"})
    assert (found.namespace, found.watch_namespace) == ("a", "c")
    assert found.report_url == "http://holdfast-operator.a.svc:8470"


@pytest.mark.parametrize(
    "wrong",
    [["--metrics-port", "x"], ["--metrics-port", "70000"], ["--log-level", "loud"], ["--log-format", "xml"],
     ["--node-shutdown-seconds", "-1"], ["--node-events", "yes"], ["--signals", "[1]"], ["--signals", "{"]]
)  # fmt: skip
def test_a_wrong_argument_is_named(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        settings.parse(wrong, {})
    assert e.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_what_the_cluster_owner_says_of_announcements_is_read() -> None:
    row = '[{"kind": "taint", "name": "example.com/going", "cause": "spot", "deadlineSeconds": 30}]'
    found = settings.parse(["--signals", row, "--node-shutdown-seconds", "45", "--node-events", "true"], {})
    assert [r.name for r in found.signal_rules.own] == ["example.com/going"]
    assert (found.signal_rules.node_shutdown_seconds, found.node_events, found.node_claims) == (45, True, False)
