"""E6, as the operator sees it: the newest state lies on the workers' nodes and in no checkpoint. It says so, and plans pods where they can finish it."""

from datetime import timedelta
from typing import Any

import pytest
from job_worlds import T0, JobWorld, a_job, checkpoint, claim, of_type, sigterm

from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import AgentPhase, Cause, Exit, UnfinishedCopy
from holdfast_operator.core import unfinished
from holdfast_operator.core.actions import CreatePod, EmitEvent
from holdfast_operator.core.decide import decide
from holdfast_operator.crd.v1alpha1 import Condition, PartStatus, UnfinishedStatus

LEFT = CheckpointRef(1, 3)
LOCAL = {"storage": {"uri": "s3://b/p"}, "local": {"hostPath": {"path": "/var/lib/holdfast"}}}


def condition(w: JobWorld) -> Condition | None:
    return next((c for c in w.status.conditions if c.type == "StateOnNodes"), None)


def training(**spec: Any) -> JobWorld:
    return a_job(**({"checkpoint": LOCAL} | spec)).with_pods().training(step=40)


def left(w: JobWorld, *workers: int, step: int = 42, **fields: Any) -> list[EmitEvent]:
    """Everybody hears SIGTERM and goes; `workers` have left their parts. What was emitted meanwhile."""
    events: list[EmitEvent] = []
    for worker in range(w.spec.workers):
        w.reports(worker, AgentPhase.EVACUATING, notices=(sigterm(worker, w.now),))
    events += of_type(w.settled(), EmitEvent)
    for worker in range(w.spec.workers):
        on = {"on_node": LEFT, "on_node_boundary": step} if worker in workers else {}
        said = {"exit": Exit.PREEMPTED_NOTHING_NEW, "boundary": 42, "step_seconds": 10.0}
        w.reports(worker, AgentPhase.SEALED, **(said | on | fields))
        w.change_pod(worker, phase="Failed", exit_code=73)
    events += of_type(w.after(1).settled(), EmitEvent)
    return events


def test_what_lies_on_nodes_only_is_said_with_where_and_until_when() -> None:
    w = training()
    w.reports(0, AgentPhase.TRAINING, boundary=40, checkpoints=(checkpoint("1/2", 40),)).settled()
    assert condition(w) is None, "nothing to say"
    events = left(w, 0, 1)
    found = w.status.unfinished
    assert found is not None
    assert (found.checkpoint, found.step, found.whole, found.since) == ("1/3", 42, True, w.now)
    assert [(p.worker, p.node) for p in found.parts] == [(0, "n0"), (1, "n1")]
    assert found.worth_until == w.now + timedelta(seconds=20), "two steps of ten seconds"
    said = condition(w)
    assert said is not None
    assert (said.status, said.reason) == ("True", "Unfinished")
    for words in (
        "step 42 is in no checkpoint",
        "n0 (worker 0), n1 (worker 1)",
        "checkpoint 1/3",
        "12:00:21 UTC",
        "continues 1/2 at step 40",
    ):
        assert words in said.message
    assert [e.warning for e in events if e.reason == "StateOnNodes"] == [True]
    assert [c.name for c in w.status.checkpoints] == ["1/2"], "it is no checkpoint (B2)"
    assert of_type(w.after(5).settled(), EmitEvent) == [], "said once"
    assert w.status.unfinished == found


def test_while_the_attempt_lives_its_saves_come_and_go_unsaid() -> None:
    w = training()
    w.all_report(AgentPhase.TRAINING, on_node=LEFT, on_node_boundary=50).settled()
    assert w.status.unfinished is None
    w.tainted("n0", "aws-node-termination-handler/spot-itn").all_report(
        AgentPhase.EVACUATING, on_node=LEFT, on_node_boundary=50
    ).settled()
    assert w.status.unfinished is None


def test_a_part_of_some_workers_only_cannot_be_finished_and_that_is_said() -> None:
    w = training()
    left(w, 1)
    assert w.status.unfinished is not None
    assert not w.status.unfinished.whole
    said = condition(w)
    assert said is not None
    assert said.reason == "Incomplete"
    assert "cannot be finished" in said.message
    assert "the beginning" in said.message


def test_the_words_of_pods_that_are_gone_are_found_in_their_termination_messages() -> None:
    w = training()
    left(w, 0, 1)
    expected = w.status.unfinished
    again = training()
    again.all_report(AgentPhase.EVACUATING).settled()
    for worker in range(2):
        again.reports(
            worker,
            AgentPhase.SEALED,
            exit=Exit.PREEMPTED_NOTHING_NEW,
            boundary=42,
            step_seconds=10.0,
            on_node=LEFT,
            on_node_boundary=42,
        )
        uid = f"uid-{worker}-1"
        again.change_pod(worker, phase="Failed", exit_code=73, report=again.heard.pop(uid).report)
    again.after(1).settled()
    assert again.status.unfinished is not None
    assert again.status.unfinished.parts == (expected.parts if expected else ())


def next_attempt(w: JobWorld) -> JobWorld:
    for worker in range(2):
        w.with_pod(worker, 2, f"n{worker}")
    w.settled()
    assert w.status.attempt is not None
    assert w.status.attempt.number == 2
    w.all_report(AgentPhase.STARTING).settled()
    return w


def test_until_the_next_claim_it_stands_and_what_is_said_of_a_part_that_is_given_up_is_told() -> None:
    w = training()
    left(w, 0, 1)
    next_attempt(w)
    assert w.status.unfinished is not None
    ready = next(c for c in w.status.conditions if c.type == "Ready")
    assert "waits for 1/3 from the nodes" in ready.message
    torn = UnfinishedCopy(1, 3, 1, 42, (1,), "given-up", detail="it is not whole on this node: rank 1: …")
    w.reports(1, AgentPhase.STARTING, unfinished=(torn,)).settled()
    said = condition(w)
    assert said is not None
    assert "Given up: worker 1's part: it is not whole on this node" in said.message


@pytest.mark.parametrize(
    ("parent", "step", "reason", "warning"), [("1/3", 42, "StateFinished", False), ("1/2", 40, "StateLost", True)]
)
def test_with_the_claim_it_is_a_checkpoint_or_lost_and_that_is_told_once(
    parent: str, step: int, reason: str, warning: bool
) -> None:
    w = training()
    w.reports(0, AgentPhase.TRAINING, boundary=40, checkpoints=(checkpoint("1/2", 40),)).settled()
    left(w, 0, 1)
    next_attempt(w)
    events = of_type(w.reports(0, AgentPhase.RESTORING, claim=claim(2, parent, step)).settled(), EmitEvent)
    assert w.status.unfinished is None
    assert [(e.reason, e.warning) for e in events if e.reason.startswith("State")] == [(reason, warning)]
    said = condition(w)
    assert said is not None
    assert said.status == "False"
    assert of_type(w.after(1).settled(), EmitEvent) == []


def test_a_checkpoint_that_is_as_new_ends_it() -> None:
    """A flush whose record arrived after all."""
    w = training()
    left(w, 0, 1)
    late = checkpoint("1/3", 42, Cause.EVICTION)
    events = of_type(w.reports(0, AgentPhase.SEALED, boundary=42, checkpoints=(late,)).settled(), EmitEvent)
    assert w.status.unfinished is None
    assert "StateFinished" in {e.reason for e in events}


def test_of_an_attempt_that_ends_before_its_claim_what_was_left_before_stays() -> None:
    w = training()
    left(w, 0, 1)
    before = w.status.unfinished
    next_attempt(w)
    for worker in range(2):
        w.change_pod(worker, 2, phase="Failed", exit_code=73)
        w.reports(worker, AgentPhase.SEALED, exit=Exit.PREEMPTED_NOTHING_NEW)
    w.after(1).settled()
    assert w.status.unfinished == before


def created(w: JobWorld) -> dict[int, tuple[str, ...]]:
    """Worker -> nodes that its newest pod had better go to."""
    entries = sorted(w.status.workers, key=lambda x: x.serial)
    return {x.worker: x.prefer_nodes for x in entries}


def test_pods_are_planned_where_their_parts_lie() -> None:
    w = training()
    left(w, 0, 1)
    assert created(w) == {0: ("n0",), 1: ("n1",)}
    again = training()
    for worker in range(2):
        again.reports(worker, AgentPhase.EVACUATING, notices=(sigterm(worker, again.now),))
    actions = [again.settled()]
    left(again, 0, 1)
    pods = [a for d in [*actions, again.settled()] for a in of_type(d, CreatePod)]
    assert {p.worker: p.prefer_nodes for p in pods} == {0: ("n0",), 1: ("n1",)}, "and created so"


@pytest.mark.parametrize(
    "harm",
    [
        lambda w: w.tainted("n0", "aws-node-termination-handler/spot-itn"),
        lambda w: w.change_node("n0", unschedulable=True),
        lambda w: w.change_node("n0", ready=False),
        lambda w: w.change_node("n0", deleting_since=T0),
        lambda w: w.without_node("n0"),
    ],
    ids=["doomed", "cordoned", "not ready", "being deleted", "gone"],
)
def test_a_node_that_goes_or_takes_no_pods_is_not_preferred(harm: Any) -> None:
    w = training()
    parts = (PartStatus(worker=0, node="n0"), PartStatus(worker=1, node="n1"))
    known = UnfinishedStatus(checkpoint="1/3", step=42, parts=parts, whole=True, since=T0)
    w.with_status(unfinished=known)
    harm(w)
    avoid = ("n0",) if any(t.key.endswith("spot-itn") for n in w.nodes.values() for t in n.taints) else ()
    assert unfinished.preferred(w.seen(), w.status, 0, avoid) == ()
    assert unfinished.preferred(w.seen(), w.status, 1, avoid) == ("n1",)


def test_without_a_directory_of_the_nodes_no_node_is_better_than_another() -> None:
    w = training(checkpoint={"storage": {"uri": "s3://b/p"}})
    assert unfinished.preferred(w.seen(), w.status, 0, ()) == ()
    w = training()
    assert unfinished.preferred(w.seen(), w.status, 0, ()) == ("n0",), "the newest checkpoint lies there too"


def test_a_worker_that_has_failed_by_itself_is_not_sent_back_to_its_machine_for_a_copy() -> None:
    """It may be the machine. What lies nowhere else is worth the risk."""
    w = training()
    w.reports(0, AgentPhase.FAILED, exit=Exit.TRAINER_FAILED).change_pod(0, phase="Failed", exit_code=70)
    w.after(60).settled()
    assert w.status.preemptions[-1].cause == "failure"
    assert unfinished.preferred(w.seen(), w.status, 0, ()) == ()
    assert unfinished.preferred(w.seen(), w.status, 1, ()) == ("n1",)
    parts = (PartStatus(worker=0, node="n0"), PartStatus(worker=1, node="n1"))
    w.with_status(unfinished=UnfinishedStatus(checkpoint="1/3", step=42, parts=parts, whole=True, since=T0))
    assert unfinished.preferred(w.seen(), w.status, 0, ()) == ("n0",)


def test_a_job_that_was_suspended_comes_back_to_its_nodes() -> None:
    w = training()
    left(w, 0, 1)
    before = w.status.unfinished
    w.with_spec(suspend=True).settled()
    w.pods.clear()
    w.settled()
    assert w.status.attempt is None
    assert w.status.unfinished == before
    w.with_spec(suspend=False).settled()
    assert created(w) == {0: ("n0",), 1: ("n1",)}


def test_what_a_suspended_job_has_left_is_said_while_it_is_suspended() -> None:
    """The checkpoint that a suspension asks for may not fit either."""
    w = training()
    w.with_spec(suspend=True).settled()
    said = {"exit": Exit.PREEMPTED_NOTHING_NEW, "boundary": 42, "step_seconds": 10.0}
    for worker in range(2):
        w.reports(worker, AgentPhase.SEALED, on_node=LEFT, on_node_boundary=42, **said)
        w.change_pod(worker, phase="Failed", exit_code=73)
    w.settled()
    w.pods.clear()
    w.settled()
    assert w.status.attempt is None
    assert w.status.unfinished is not None
    assert [(p.worker, p.node) for p in w.status.unfinished.parts] == [(0, "n0"), (1, "n1")]
    found = condition(w)
    assert found is not None
    assert found.status == "True"


def test_nonsense_of_an_agent_ends_in_no_traceback() -> None:
    for seconds in (float("nan"), float("inf"), -1.0, 1e300):
        w = training()
        left(w, 0, 1, step_seconds=seconds, step=1 << 60)
        assert w.status.unfinished is not None
        decide(w.seen(), w.now)


def test_what_a_survivor_has_taken_is_said_to_be_with_it_and_draws_no_pod_to_its_node() -> None:
    w = training()
    for worker in range(2):
        w.reports(worker, AgentPhase.EVACUATING, notices=(sigterm(worker, w.now),))
    w.settled()
    w.reports(
        0, AgentPhase.SEALED, boundary=42, step_seconds=10.0, on_node=LEFT, on_node_boundary=42, holds_of=(1,), exit=Exit.PREEMPTED_NOTHING_NEW
    )  # fmt: skip
    w.change_pod(0, phase="Failed", exit_code=73)
    w.reports(1, AgentPhase.SEALED, boundary=42, exit=Exit.PREEMPTED_NOTHING_NEW)
    w.change_pod(1, phase="Failed", exit_code=73)
    w.after(1).settled()
    found = w.status.unfinished
    assert found is not None
    assert [(p.worker, p.node, p.kept_by) for p in found.parts] == [(0, "n0", None), (1, "n0", 0)]
    assert found.whole
    said = condition(w)
    assert said is not None
    assert "n0 (worker 1, with worker 0)" in said.message
    assert "workers that stay" in said.message
    assert unfinished.preferred(w.seen(), w.status, 0, ()) == ("n0",)
    assert "n0" not in unfinished.preferred(w.seen(), w.status, 1, ())
