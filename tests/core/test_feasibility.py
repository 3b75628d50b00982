"""Whether an emergency save is done in time: every number that may be too small is named with the number needed and with what to change (FlushFits)."""

from dataclasses import replace
from typing import Any

import pytest
from job_worlds import JobWorld, a_job, condition

from holdfast_api import names
from holdfast_api.messages import AgentPhase, Exit, FlushEstimate
from holdfast_operator.core import feasibility
from holdfast_operator.core.decide import decide
from holdfast_operator.core.feasibility import grade
from holdfast_operator.core.signal_table import SignalRules
from holdfast_operator.crd.v1alpha1 import Condition, FlushGrade, Phase
from holdfast_operator.shell import translate

FITS, TIGHT, TOO_SLOW = FlushGrade.FITS, FlushGrade.TIGHT, FlushGrade.TOO_SLOW
QUICK = FlushEstimate(
    bytes=4 * 10**9, sent_bytes=2 * 10**9, step_seconds=0.5, copy_seconds=1.0, store_seconds=6.0, commit_seconds=0.1,
    sure_seconds=12.0, node_seconds=2.0, measured=True,
)  # fmt: skip


def template(grace: int) -> dict[str, Any]:
    pod = {"containers": [{"name": "trainer", "command": ["python"]}], "terminationGracePeriodSeconds": grace}
    return {"spec": pod}


def a_world(flush: FlushEstimate | None = QUICK, *, grace: int = 120, **spec: Any) -> JobWorld:
    w = a_job(template=template(grace), **spec).with_pods().training()
    return reporting(w, flush)


def reporting(w: JobWorld, flush: FlushEstimate | None) -> JobWorld:
    return w.all_report(AgentPhase.TRAINING, flush=flush)


def after_a_round(w: JobWorld) -> Condition:
    w.round()
    return condition(w.status, "FlushFits")


def slow(seconds: float, sure: float) -> FlushEstimate:
    """As a rule it takes `seconds`, with what is kept back."""
    return replace(QUICK, store_seconds=seconds - feasibility.RESERVE_SECONDS - 1.6, sure_seconds=sure - feasibility.RESERVE_SECONDS)  # fmt: skip


@pytest.mark.parametrize(
    ("world", "status", "reason", "words"),
    [
        (a_world(), "True", "Measured", ["2 GB of 4 GB at 333 MB/s", "9.1 s as a rule", "14 s to be sure", "120 s are there"]),
        (a_world(None), "Unknown", "NotMeasured", ["not known yet", "terminationGracePeriodSeconds is 120"]),
        (a_world(replace(QUICK, measured=False)), "True", "Estimated", ["may take"]),
        (a_world(replace(QUICK, measured=False), grace=5), "Unknown", "Estimated", ["the first save measures it"]),
        (a_world(grace=12), "Unknown", "Tight", ["set spec.template.spec.terminationGracePeriodSeconds to 17"]),
        (a_world(grace=5), "False", "TooSlow", ["5 s are there", "set spec.template.spec.terminationGracePeriodSeconds to 17", "spec.checkpoint.every: 600 s"]),
        (a_world(slow(100, 200), notices={"defaultDeadlineSeconds": 60}, grace=90), "False", "TooSlow",
         ["set spec.notices.defaultDeadlineSeconds to 250 and spec.template.spec.terminationGracePeriodSeconds to 250"]),
        (a_world(slow(100, 200)), "Unknown", "Tight", ["or send faster", "or use 5 workers (now 2)"]),
        (a_world(slow(100, 200), checkpoint={"storage": {"uri": "s3://b/p"}, "local": {"hostPath": {"path": "/nvme"}}}), "Unknown", "Tight", ["every: 600 s"]),
        (a_world(replace(QUICK, step_seconds=200.0, sure_seconds=260.0)), "False", "TooSlow", ["one step of 200 s", "docs/loops.md"]),
        (a_world(grace=1), "False", "NoTime", ["terminationGracePeriodSeconds is 1", "set spec.template.spec.terminationGracePeriodSeconds to 30"]),
        (a_world(replace(QUICK, store_seconds=float("inf"))), "False", "TooSlow", ["for ever"]),
    ],
)  # fmt: skip
def test_the_number_that_is_too_small_is_named_with_the_one_needed(
    world: JobWorld, status: str, reason: str, words: list[str]
) -> None:
    found = after_a_round(world)
    assert (found.status, found.reason) == (status, reason)
    for part in words:
        assert part in found.message


def test_a_copy_on_nodes_is_advised_where_there_is_none_yet() -> None:
    assert "spec.checkpoint.local.hostPath on a local NVMe" in after_a_round(a_world(grace=5)).message
    there = {"storage": {"uri": "s3://b/p"}, "local": {"hostPath": {"path": "/nvme"}}}
    assert "on a local NVMe" not in after_a_round(a_world(grace=5, checkpoint=there)).message


@pytest.mark.parametrize(
    ("labels", "rules", "seconds", "words"),
    [
        ({}, SignalRules(), 120, "terminationGracePeriodSeconds is 120"),
        ({}, SignalRules(node_shutdown_seconds=8), 8, "a shutdown of its node leaves a pod 8 s"),
        ({names.LABEL_NODE_SHUTDOWN: "9"}, SignalRules(node_shutdown_seconds=45), 9, "leaves a pod 9 s"),
        ({names.LABEL_NODE_SHUTDOWN: "60"}, SignalRules(node_shutdown_seconds=8), 60, "leaves a pod 60 s"),
        ({names.LABEL_NODE_SHUTDOWN: "soon"}, SignalRules(node_shutdown_seconds=8), 8, "leaves a pod 8 s"),
        ({names.LABEL_NODE_SHUTDOWN: "0"}, SignalRules(node_shutdown_seconds=8), 8, "leaves a pod 8 s"),
        ({names.LABEL_NODE_SHUTDOWN: "86401"}, SignalRules(node_shutdown_seconds=8), 8, "leaves a pod 8 s"),
        ({names.LABEL_NODE_SHUTDOWN: "9" * 5000}, SignalRules(node_shutdown_seconds=8), 8, "leaves a pod 8 s"),
        ({"cloud.google.com/gke-nodepool": "a"}, SignalRules(), 15, "leaves a pod 15 s"),
        ({"cloud.google.com/gke-spot": "true"}, SignalRules(), 30, "Google gives a spot machine 30 s"),
        ({"kubernetes.azure.com/scalesetpriority": "spot"}, SignalRules(), 30, "Azure gives a spot machine 30 s"),
        ({"kubernetes.azure.com/scalesetpriority": "regular"}, SignalRules(), 120, "terminationGracePeriodSeconds is 120"),
    ],
)  # fmt: skip
def test_what_nodes_and_clouds_leave_counts_where_workers_are(
    labels: dict[str, str], rules: SignalRules, seconds: int, words: str
) -> None:
    w = a_world().change_node("n0", labels=labels).change_node("n1", labels=labels)
    w.signal_rules = rules
    found = after_a_round(w)
    assert w.status.flush is not None
    assert w.status.flush.available_seconds == seconds
    assert words in found.message


def test_a_node_without_workers_counts_for_nothing() -> None:
    w = a_world().change_node("n2", labels={"cloud.google.com/gke-spot": "true"})
    w.round()
    assert w.status.flush is not None
    assert w.status.flush.available_seconds == 120


def test_what_no_setting_makes_longer_is_said_to_be_so() -> None:
    w = a_world(slow(35, 40)).change_node("n0", labels={"cloud.google.com/gke-spot": "true"})
    found = after_a_round(w)
    assert found.reason == "TooSlow"
    assert "no setting makes this longer: Google gives a spot machine 30 s" in found.message
    assert "set spec.template" not in found.message  # of which there is enough
    assert "or send faster" in found.message


def test_the_slowest_worker_counts() -> None:
    w = a_world().reports(1, AgentPhase.TRAINING, flush=slow(80, 100))
    w.round()
    assert w.status.flush is not None
    assert (w.status.flush.worker, w.status.flush.sure_seconds) == (1, 100.0)


def test_at_admission_the_size_of_the_slots_or_of_the_newest_checkpoint_gives_an_estimate() -> None:
    assert after_a_round(a_job(template=template(120))).reason == "NotMeasured"
    small = {"storage": {"uri": "s3://b/p"}, "memoryMiB": 1000}
    w = a_job(template=template(120), checkpoint=small)
    assert after_a_round(w).reason == "Estimated"
    assert w.status.flush is not None
    assert w.status.flush.bytes == 500 << 20  # one of two slots
    large = a_job(template=template(30), checkpoint={**small, "memoryMiB": 100_000})
    found = after_a_round(large)
    assert (found.status, found.reason) == ("Unknown", "Estimated")  # nobody is told that it does not fit by a guess
    w = a_job(template=template(120)).with_checkpoints("1/1")
    newest = w.status.checkpoints[0].model_copy(update={"bytes": 2 * 10**9})
    w.with_status(last_checkpoint=newest).round()
    assert w.status.flush is not None
    assert w.status.flush.bytes == 10**9


def test_a_script_that_answers_too_late_is_told_at_admission() -> None:
    own = {
        "storage": {"uri": "s3://b/p"}, "source": "directory", "directory": {"path": "/out", "signal": "USR1", "answerSeconds": 40},
    }  # fmt: skip
    found = after_a_round(a_job(workers=1, template=template(30), checkpoint=own))
    assert (found.status, found.reason) == ("False", "AnswerTooSlow")
    assert "answerSeconds" in found.message
    assert "terminationGracePeriodSeconds to 52" in found.message
    untold = {**own, "directory": {"path": "/out", "answerSeconds": 40}}  # nobody asks it
    assert after_a_round(a_job(workers=1, template=template(30), checkpoint=untold)).reason == "NotMeasured"


# ---- it does not flutter


@pytest.mark.parametrize(
    ("seconds", "sure", "before", "after"),
    [
        (9.0, 20.0, None, FITS),
        (9.0, 31.0, None, TIGHT),
        (31.0, 40.0, None, TOO_SLOW),
        (29.0, 40.0, TOO_SLOW, TOO_SLOW),
        (24.0, 40.0, TOO_SLOW, TIGHT),
        (20.0, 29.0, TIGHT, TIGHT),
        (20.0, 24.0, TIGHT, FITS),
        (20.0, 24.0, TOO_SLOW, FITS),
        (9.0, 29.9, FITS, FITS),
        (9.0, 30.1, FITS, TIGHT),
    ],
)
def test_worse_at_once_and_better_with_a_fifth_to_spare(
    seconds: float, sure: float, before: FlushGrade | None, after: FlushGrade
) -> None:
    assert grade(seconds, sure, 30, before) is after


def test_a_store_whose_speed_wavers_about_the_limit_changes_nothing() -> None:
    w = a_world(slow(20, 31), grace=30)
    first = after_a_round(w)
    assert first.reason == "Tight"
    for sure in (29, 31, 28, 30, 29.5):
        reporting(w.after(10), slow(20, sure)).round()
        assert condition(w.status, "FlushFits") == first


def test_small_changes_are_not_written_and_large_ones_are() -> None:
    w = a_world()
    w.round()
    before = w.status
    assert reporting(w.after(10), replace(QUICK, sure_seconds=13.0, store_seconds=6.9)).decided().status == before
    assert reporting(w.after(10), replace(QUICK, sure_seconds=24.0)).decided().status != before


def test_a_number_that_was_changed_is_judged_at_once() -> None:
    w = a_world(slow(20, 28), grace=25)
    assert after_a_round(w).reason == "Tight"
    w.with_spec(template=template(29))
    assert after_a_round(w).reason == "Measured"


def test_what_was_measured_stands_until_the_next_attempt_says_more() -> None:
    w = a_world(slow(100, 200))
    first = after_a_round(w)
    w.all_report(AgentPhase.STARTING, flush=None)
    assert after_a_round(w) == first
    w.with_spec(template=template(50))
    assert after_a_round(w).reason == "TooSlow"  # by what is known, of the time that there is now


def test_one_worker_that_has_measured_nothing_makes_it_an_estimate() -> None:
    w = a_world().reports(1, AgentPhase.TRAINING, flush=replace(QUICK, measured=False))
    assert after_a_round(w).reason == "Estimated"


def test_a_spec_that_cannot_be_read_says_nothing_of_it() -> None:
    w = a_world()
    w.round()
    seen = replace(w.seen(), spec=translate.unreadable_spec(), spec_error="spec.workers: not a number")
    kinds = {c.type for c in decide(seen, w.now).status.conditions}
    assert "Stalled" in kinds
    assert "FlushFits" not in kinds


def test_what_a_finished_job_was_told_stays() -> None:
    w = a_world()
    w.round()
    w.all_report(AgentPhase.FINISHED, exit=Exit.FINISHED, flush=slow(100, 200)).settled()
    assert w.status.phase is Phase.SUCCEEDED
    assert w.status.flush is not None
    assert w.status.flush.sure_seconds < 20
