"""C4, C5, D3: what holds NaN is told within a save, never pushes out what is finite, and is not resumed from."""

from dataclasses import replace
from typing import Any

from job_worlds import T0, JobWorld, a_job, of_type

from holdfast_api.messages import AgentPhase, Cause, CheckpointInfo
from holdfast_operator.core.actions import EmitEvent
from holdfast_operator.crd.v1alpha1 import Condition


def info(save: int, finite: bool | None, *names: str, cause: Cause = Cause.PERIODIC) -> CheckpointInfo:
    return CheckpointInfo(1, save, 10 * save, cause, T0, finite=finite, not_finite=names)


def condition(w: JobWorld, kind: str) -> Condition | None:
    return next((c for c in w.status.conditions if c.type == kind), None)


def training(keep: int = 2) -> JobWorld:
    return (
        a_job(checkpoint={"storage": {"uri": "s3://b/p"}, "keep": {"last": keep}}).with_pods().training(parent="fresh")
    )


def saves(w: JobWorld, *findings: bool | None, first: int = 1) -> list[Any]:
    """One after the other, each known to the operator before the next. Returns what was emitted."""
    events: list[Any] = []
    for save, finite in enumerate(findings, first):
        names = ("model.w", "model.b") if finite is False else ()
        decision = (
            w.after(10)
            .reports(0, AgentPhase.TRAINING, boundary=10 * save, checkpoints=(info(save, finite, *names),))
            .settled()
        )
        events += of_type(decision, EmitEvent)
    return events


def test_a_run_that_has_become_nan_keeps_what_it_can_go_back_to_however_long_it_runs_on() -> None:
    w = training(keep=3)
    saves(w, True, True, True, *[False] * 20)
    assert [c.name for c in w.status.checkpoints] == ["1/1", "1/2", "1/3", "1/22", "1/23"]
    saves(w, True, True, first=24)
    assert [c.name for c in w.status.checkpoints] == ["1/3", "1/24", "1/25"]


def test_unknown_counts_as_ever_but_the_newest_known_one_stays() -> None:
    w = training(keep=2)
    saves(w, True, True, *[None] * 6)
    assert [c.name for c in w.status.checkpoints] == ["1/2", "1/7", "1/8"]


def test_copies_that_differ_are_said_once_and_the_newest_checkpoint_without_that_is_kept() -> None:
    """J4: every save after a flipped bit is suspect; without the rule they push out the last one that is not."""
    w = training(keep=2)
    saves(w, True, True)
    events: list[Any] = []
    for save in range(3, 9):
        odd = replace(info(save, True), suspect="rank 1 is not like ranks 0, 2, in model.w")
        decision = w.after(10).reports(0, AgentPhase.TRAINING, boundary=10 * save, checkpoints=(odd,)).settled()
        events += of_type(decision, EmitEvent)
    assert [c.name for c in w.status.checkpoints] == ["1/2", "1/7", "1/8"]
    found = condition(w, "ReplicasAgree")
    assert found is not None
    assert (found.status, found.reason) == ("False", "ReplicasDiffer")
    assert "rank 1 is not like ranks 0, 2, in model.w" in found.message
    assert "1/2 at step 20 is kept, and the next start continues it" in found.message
    assert [e.warning for e in events if e.reason == "ReplicasDiffer"] == [True]
    saves(w, True, first=9)
    found = condition(w, "ReplicasAgree")
    assert found is not None
    assert (found.status, found.reason) == ("True", "Agree")


def test_it_is_said_at_the_first_such_save_which_tensors_and_what_is_kept() -> None:
    w = training()
    events = saves(w, True, True)
    assert condition(w, "CheckpointFinite") is None, "nothing to say"
    events = saves(w, False, False, first=3)
    found = condition(w, "CheckpointFinite")
    assert found is not None
    assert (found.status, found.reason) == ("False", "NotFinite")
    assert "model.w, model.b" in found.message
    assert "1/2 at step 20 is kept" in found.message
    assert [e.warning for e in events if e.reason == "NotFinite"] == [True], "once, not at every save"
    usable = condition(w, "CheckpointUsable")
    assert usable is not None
    assert usable.message.startswith("1/2 at step 20")
    saves(w, True, first=5)
    found = condition(w, "CheckpointFinite")
    assert found is not None
    assert (found.status, found.reason) == ("True", "Finite")


def test_a_job_without_any_finite_checkpoint_says_so() -> None:
    w = training()
    saves(w, False, False)
    usable = condition(w, "CheckpointUsable")
    assert usable is not None
    assert (usable.status, usable.reason) == ("False", "NotFinite")


def test_what_nobody_looked_at_is_known_once_a_start_has_loaded_it_and_stays_known() -> None:
    w = training()
    w.reports(0, AgentPhase.TRAINING, checkpoints=(info(1, None, cause=Cause.SPOT),)).settled()
    assert w.status.checkpoints[0].finite is None
    w.reports(0, AgentPhase.TRAINING, restored=info(1, True)).settled()
    assert w.status.checkpoints[0].finite is True
    assert w.status.last_checkpoint == w.status.checkpoints[-1]
    w.reports(0, AgentPhase.TRAINING, checkpoints=(info(1, None),)).after(5).settled()
    assert w.status.checkpoints[0].finite is True


def test_names_are_bounded_in_number_and_length() -> None:
    w = training()
    w.reports(0, AgentPhase.TRAINING, checkpoints=(info(1, False, *("n" * 1000 for _ in range(9))),)).settled()
    assert [len(n) for n in w.status.checkpoints[0].not_finite] == [256] * 5
