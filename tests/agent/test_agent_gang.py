"""Whole agents as real processes: saves, evacuations, new attempts (docs/architecture.md)."""

import os
import signal
import time
from pathlib import Path

from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import MetricPoint
from holdfast_api.messages import AgentPhase, Cause
from tests.agent.conftest import eventually


def restored(gang) -> list[str]:
    """What the ranks of the current attempt said about their start."""
    return sorted(
        " ".join(line.split()[1:])
        for line in gang.lines()
        if line.split()[0] == str(gang.attempt) and "finished" not in line
    )


def test_a_job_trains_saves_periodically_and_finishes_with_its_last_boundary_durable(gang):
    g = gang(trainer=("35",)).start().begin()
    assert [p.wait() for p in g.pods.values()] == [0, 0], "".join(p.words() for p in g.pods.values())
    assert [c[1:] for c in g.commits()] == [(10, "periodic"), (20, "periodic"), (30, "periodic"), (35, "final")]
    assert [p.last_report().phase for p in g.pods.values()] == [AgentPhase.FINISHED] * 2
    assert {line.split(maxsplit=2)[2] for line in g.lines()} == {"fresh", "finished 35"}


def test_after_a_notice_all_ranks_are_sealed_at_one_boundary_and_the_next_attempt_resumes_there_on_a_new_pod(gang):
    g = gang(workers=2, processes=2).start().begin()
    g.wait_for_commit(10)
    g.notice(1)
    g.wait_for_phase(AgentPhase.SEALED)
    sealed = g.commits()[-1]
    assert sealed[2] == "spot"
    reports = [p.report() for p in g.pods.values()]
    assert {r.checkpoints[-1].boundary for r in reports} == {sealed[1]}
    g.wait_for_stages("noticed", "quiesced", "sealed", "local-durable")

    g.pods[1].kill(signal.SIGTERM)
    assert g.pods[1].wait() == 72
    survivor = g.pods[0]
    g.new_pod(1)
    g.begin()
    g.wait_for_commit(sealed[1] + 10)
    assert restored(g) == [f"{r} restored {sealed[1]}" for r in range(4)]
    assert set(survivor.report().fetched_from) == {"arena"}
    assert set(g.pods[1].report().fetched_from) == {"store"}
    assert survivor.process.poll() is None


def test_workers_that_hold_copies_of_one_state_send_a_share_each_and_resume_from_the_whole(gang):
    """J4: periodic saves, an emergency, and a worker on a new pod, which has of the checkpoint what both have sent."""
    g = gang(workers=2, trainer=("1000", "--copies")).start().begin()
    g.wait_for_commit(10)
    record = g.store.read_commit(CheckpointRef(1, 1))[0]
    assert record.bytes_sent == record.bytes_logical / 2
    assert record.run["replicas"] == "agree"
    g.notice(1)
    g.wait_for_phase(AgentPhase.SEALED)
    sealed = g.commits()[-1]
    g.pods[1].kill(signal.SIGTERM)
    assert g.pods[1].wait() == 72
    g.new_pod(1)
    g.begin()
    g.wait_for_commit(sealed[1] + 10)
    assert restored(g) == [f"{r} restored {sealed[1]}" for r in range(2)], "not TORN"
    assert set(g.pods[1].report().fetched_from) == {"peer"}, "the survivor has it in memory (A2)"


def test_a_bare_sigterm_is_enough_to_seal_the_job(gang):
    g = gang().start().begin()
    g.wait_for_commit(10)
    g.pods[1].kill(signal.SIGTERM)
    began = time.monotonic()
    assert g.pods[1].wait() == 72, g.pods[1].words()
    assert time.monotonic() - began < 15
    assert g.commits()[-1][2] == "sigterm"
    g.wait_for_phase(AgentPhase.SEALED, g.pods[0])
    assert g.pods[1].last_report().exit == "preempted-sealed"


def test_sigterm_to_both_workers_at_once_ends_in_one_commit_of_the_round_and_both_exit(gang):
    g = gang().start().begin()
    g.wait_for_commit(10)
    for pod in g.pods.values():
        pod.kill(signal.SIGTERM)
    assert [p.wait() for p in g.pods.values()] == [72, 72], "".join(p.words() for p in g.pods.values())
    assert [c[2] for c in g.commits()].count("sigterm") == 1


def test_sigterm_before_anything_was_saved_says_that_nothing_new_is_there(gang):
    g = gang(workers=1).start()
    g.pods[0].kill(signal.SIGTERM)
    assert g.pods[0].wait() == 73


def test_a_hung_rank_costs_the_newest_steps_but_not_the_exit_before_the_deadline(gang):
    g = gang(trainer=("1000", "--step-seconds", "0.02"), config={"sigterm_floor_seconds": 6}).start().begin()
    g.wait_for_commit(10)
    rank = next(int(p) for p in children_of(g.pods[1].process.pid))
    os.kill(rank, signal.SIGSTOP)
    began = time.monotonic()
    g.pods[1].kill(signal.SIGTERM)
    code = g.pods[1].wait()
    assert time.monotonic() - began < 6
    assert code in (72, 73)


def test_a_preparing_notice_is_worth_one_save_and_training_goes_on(gang):
    g = gang(config={"every_steps": 100000}).start().begin()
    g.wait_for_phase(AgentPhase.TRAINING)
    g.notice(1, acting=False, source="taint:cordon")
    g.wait_for_commit(1)
    boundary = g.commits()[-1][1]
    g.wait_for_boundary(boundary + 5)
    assert [c[2] for c in g.commits()] == ["cordon"]
    assert {p.report().phase for p in g.pods.values()} == {AgentPhase.TRAINING}


def test_a_withdrawn_notice_lets_training_go_on_from_the_sealed_boundary(gang):
    g = gang().start().begin()
    g.wait_for_commit(10)
    g.notice(1)
    g.wait_for_phase(AgentPhase.SEALED)
    boundary = g.commits()[-1][1]
    g.notice(1, withdrawn=True)
    g.wait_for_phase(AgentPhase.TRAINING)
    g.wait_for_commit(boundary + 10)
    g.notice(0, source="taint:second")
    g.wait_for_phase(AgentPhase.SEALED)


def test_a_manual_checkpoint_is_made_once_and_reported_done(gang):
    g = gang(config={"every_steps": 100000}).start().begin()
    g.wait_for_phase(AgentPhase.TRAINING)
    for _ in range(3):
        g.checkpoint("please")
    g.wait_for_request("please")
    g.checkpoint("please")
    g.wait_for_boundary(g.commits()[-1][1] + 3)
    assert [c[2] for c in g.commits()] == ["manual"]


def test_suspend_saves_and_ends_every_agent(gang):
    g = gang().start().begin()
    g.wait_for_commit(10)
    g.checkpoint("suspend-1", cause=Cause.SUSPEND, then_stop=True)
    assert [p.wait() for p in g.pods.values()] == [72, 72]
    assert g.commits()[-1][2] == "suspend"


def test_every_seconds_makes_periodic_rounds(gang):
    g = gang(workers=2, config={"every_steps": 0, "every_seconds": 1}).start().begin()
    g.wait_for_commit(1)
    first = g.commits()[0][1]
    g.wait_for_commit(first + 1)
    assert {c[2] for c in g.commits()} == {"periodic"}


def test_every_auto_saves_measures_and_says_how_often_and_why(gang):
    config = {"every_steps": 0, "every_auto": True, "max_loss_seconds": 5}
    g = gang(workers=2, config=config, trainer=("100000", "--step-seconds", "0.05")).start().begin()
    eventually(
        lambda: "a save costs" in g.pods[0].report().interval_reason, "an interval is chosen from what was measured"
    )
    report = g.pods[0].report()
    assert report.interval_seconds == 5
    assert {c[2] for c in g.commits()} == {"periodic"}
    assert g.pods[1].report().interval_seconds == 0, "the lead decides"


def test_a_failing_script_is_reported_with_its_last_words(gang):
    g = gang(trainer=("1000", "--crash-at", "15")).start().begin()
    assert [p.wait() for p in g.pods.values()] == [70, 70]
    report = g.pods[0].last_report()
    assert report.phase is AgentPhase.FAILED
    assert "something broke at 15" in report.exit_detail
    assert g.commits()[-1][1] == 10


def test_unchanged_chunks_are_not_sent_again_and_the_commit_names_its_base(gang):
    g = gang(workers=1, trainer=("30",)).start().begin()
    assert g.pods[0].wait() == 0
    record = g.store.read_commit(CheckpointRef(1, 3))[0]
    assert record.bytes_sent < record.bytes_logical / 2
    assert record.base == CheckpointRef(1, 2)
    assert record.refers_to == (CheckpointRef(1, 1),)


def test_the_commit_says_what_the_lowest_rank_has_said_of_the_run(gang):
    g = gang(workers=2, config={"image": "registry/trainer@sha256:ab"}, trainer=("10",)).start().begin()
    assert [p.wait() for p in g.pods.values()] == [0, 0]
    record = g.store.read_commit(CheckpointRef(1, 1))[0]
    assert (record.run["run"], record.run["image_digest"]) == ("r1", "sha256:ab")
    assert record.run["git_commit"] == "missing: the training library did not say"
    assert record.config == {"lr": "0.1"}
    assert record.history == (MetricPoint(record.progress.boundary, record.metrics),)


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_an_evacuation_among_frequent_periodic_saves_always_finds_a_slot_to_capture_into(gang):
    """A periodic boundary on the way to the target takes the slot that was free when the target was chosen, and its save has been stopped."""
    trainer = ("100000", "--step-seconds", "0.01")
    g = gang(workers=1, processes=4, config={"every_steps": 1}, trainer=trainer).start().begin()
    for number in range(8):
        g.wait_for_boundary(g.pods[0].report().boundary + 3)
        g.notice(0, source=f"taint:{number}", seconds=10)
        g.wait_for_phase(AgentPhase.SEALED)
        g.notice(0, source=f"taint:{number}", withdrawn=True)
        g.wait_for_phase(AgentPhase.TRAINING)
    assert "falls back" not in g.pods[0].words()
    assert "made no checkpoint" not in g.pods[0].words()
