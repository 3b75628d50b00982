"""Jobs that go on with fewer workers while they cannot have all, and with more once there is room (core/elastic.py, core/sizes.py)."""

import random
from collections.abc import Iterator
from datetime import timedelta

import job_worlds
import pytest
from job_worlds import a_job, condition, of_type, seconds
from simulated_cluster import Doors, SimulatedCluster, simulate

from holdfast_api import sources
from holdfast_api.messages import AgentPhase, AttemptOrder, Member, RestoreOrder
from holdfast_operator.core import kueue, sizes
from holdfast_operator.core.actions import CreatePod, DeletePod, EmitEvent, SendAttempt, SendNotice
from holdfast_operator.core.observed import Refusal, RefusalKind
from holdfast_operator.crd.v1alpha1 import Phase, QueueStatus

Script = Iterator[None]


def elastic(**changes: object) -> dict[str, object]:
    return {"minWorkers": 1, "waitSeconds": 10, "growAfterSeconds": 20, **changes}


# ---- which numbers


@pytest.mark.parametrize(
    ("workers", "processes", "settings", "numbers"),
    [
        pytest.param(4, 1, None, (4,), id="without elastic one number"),
        pytest.param(4, 1, {"minWorkers": 2}, (2, 3, 4), id="every number"),
        pytest.param(4, 1, {"minWorkers": 1, "globalBatch": 64}, (1, 2, 4), id="those that divide the global batch"),
        pytest.param(4, 2, {"minWorkers": 1, "globalBatch": 24}, (1, 2, 3, 4), id="by their ranks"),
        pytest.param(3, 2, {"minWorkers": 1, "globalBatch": 6}, (1, 3), id="not by workers"),
        pytest.param(2, 8, {"minWorkers": 1, "maxWorkers": 4, "globalBatch": 64}, (1, 2, 4), id="above workers too"),
        pytest.param(3, 1, {"minWorkers": 2, "globalBatch": 7}, (3,), id="what admission refuses changes nothing"),
    ],
)
def test_numbers_of_workers(
    workers: int, processes: int, settings: dict[str, int] | None, numbers: tuple[int, ...]
) -> None:
    found = job_worlds.spec(workers=workers, processesPerWorker=processes, elastic=settings)
    assert sizes.allowed(found) == numbers


def test_pods_wait_for_the_next_greater_number_alone() -> None:
    world = a_job(workers=4, elastic=elastic(globalBatch=64)).with_pod(1, node="n1").attempt_of(1)
    assert sizes.wanted(world.spec, world.status.attempt) == (0, 1)
    assert sizes.beside(world.spec, world.status.attempt) == {0}
    assert sizes.wanted(world.spec, None) == (0, 1, 2, 3)


# ---- fewer


def lost(**changes: object) -> job_worlds.JobWorld:
    """Two workers trained, the node of worker 1 has gone, and nothing has room for another pod."""
    world = a_job(elastic=elastic(**changes)).with_pods().training(step=40).with_checkpoints("1/1").without_node("n2")
    world.without_node("n1").after(6).reports(0, AgentPhase.TRAINING)
    world.settled()
    world.with_pod(1, serial=2, node="", unschedulable="0/1 nodes are available")
    return world


def test_the_survivor_goes_on_alone_in_its_pod_once_the_wait_is_over() -> None:
    world = lost()
    waiting = world.settled().status
    assert waiting.attempt is not None
    assert waiting.attempt.number == 1, "as many as before are waited for"
    assert waiting.preemptions[-1].ended_at is not None
    due = waiting.preemptions[-1].ended_at + seconds(10)
    assert world.decided().wake_at is not None
    world.after((due - world.now).total_seconds() - 0.1).reports(0, AgentPhase.TRAINING)
    assert world.settled().status.attempt.number == 1
    assert world.decided().wake_at <= due
    found = world.after(0.2).settled()
    attempt = found.status.attempt
    assert [(m.worker, m.pod_uid) for m in attempt.members] == [(0, "uid-0-1")], "the survivor keeps its pod (A1, A2)"
    assert attempt.number == 2
    assert [(w.worker, w.serial) for w in found.status.workers] == [(0, 1), (1, 2)], "the pod that waits for room stays"
    assert any(e.reason == "Resized" for e in of_type(found, EmitEvent))
    order = of_type(found, SendAttempt)[-1].order
    assert (order.attempt, order.world_size) == (2, 1)


def test_without_elastic_it_waits_for_all_whatever_happens() -> None:
    world = a_job().with_pods().training(step=40).without_node("n2").without_node("n1").after(6)
    world.settled()
    world.with_pod(1, serial=2, node="", unschedulable="no").after(100_000)
    assert world.settled().status.attempt.number == 1


def test_below_min_workers_it_waits() -> None:
    world = lost(minWorkers=2).after(100_000)
    assert world.settled().status.attempt.number == 1


def test_a_number_that_the_global_batch_does_not_allow_is_not_used() -> None:
    world = a_job(workers=4, elastic=elastic(minWorkers=1, globalBatch=64)).with_pods().training(step=40)
    for name in ("n3", "n4"):
        world.without_node(name)
    world.after(6)
    for worker in range(3):
        world.reports(worker, AgentPhase.TRAINING)
    world.settled()
    world.with_pod(3, serial=2, node="", unschedulable="no").after(11)
    found = world.settled()
    assert [m.worker for m in found.status.attempt.members] == [0, 1], (
        "3 do not divide 64; the lowest of those that stayed go on"
    )
    assert of_type(found, SendAttempt)[-1].order.global_batch == 64
    assert {w.worker for w in found.status.workers} == {0, 1, 2, 3}, "worker 2 waits in its pod for a fourth"


def test_a_pod_that_has_found_a_node_is_waited_for_while_it_starts() -> None:
    world = lost()
    world.with_pod(1, serial=2, node="n0", ip="", phase="Pending", waiting_reason="ContainerCreating").after(60)
    assert world.settled().status.attempt.number == 1
    world.change_pod(1, serial=2, waiting_reason="ImagePullBackOff")
    assert len(world.settled().status.attempt.members) == 1, "an image that cannot be pulled is no start"


def test_a_replacement_that_a_quota_refuses_is_given_up_too() -> None:
    world = lost()
    world.without_pod(1, 2).with_status(
        workers=tuple(w.model_copy(update={"pod_uid": ""}) for w in world.status.workers if w.serial == 2)
        + tuple(w for w in world.status.workers if w.serial != 2)
    )
    world.refusals = (Refusal(RefusalKind.FORBIDDEN, "pod job-0a1b2c3d-1-2", "exceeded quota", world.now),)
    found = world.after(11).settled()
    assert [m.worker for m in found.status.attempt.members] == [0]


def test_who_crashes_in_a_smaller_job_starts_again_at_once() -> None:
    """A worker that the attempt before did without is not waited for."""
    world = lost(waitSeconds=60).after(61)
    world.settled()
    world.reports(0, AgentPhase.FAILED, exit_detail="boom")
    world.settled()
    found = world.after(10.1).settled()
    assert found.status.counts.failures == 1
    assert (found.status.attempt.number, len(found.status.attempt.members)) == (3, 1)


def test_a_replacement_that_fails_at_its_start_costs_no_failure_where_the_others_go_on() -> None:
    world = lost()
    world.change_pod(1, serial=2, node="n0", phase="Failed", exit_code=127, exit_reason="StartError", unschedulable="")
    found = world.settled()
    assert found.status.counts.failures == 0
    assert len(world.after(11).settled().status.attempt.members) == 1


def test_where_the_first_attempt_finds_room_for_some_only_it_starts_with_them() -> None:
    world = a_job(elastic=elastic()).with_pod(0, node="n0").with_pod(1, unschedulable="no")
    assert world.settled().status.attempt is None
    found = world.after(10).settled()
    assert [m.worker for m in found.status.attempt.members] == [0]


def test_ready_says_that_there_are_fewer() -> None:
    world = lost().after(11)
    world.settled()
    world.with_status(
        attempt=world.status.attempt.model_copy(
            update={
                "claimed_at": world.now,
                "may_claim_at": world.now,
                "accepted_at": world.now,
                "first_step_at": world.now,
            }
        )
    )
    world.reports(0, AgentPhase.TRAINING, boundary=41)
    ready = condition(world.settled().status, "Ready")
    assert (ready.status, ready.reason) == ("True", "Unschedulable")
    assert "with 1 workers (spec.workers is 2)" in ready.message


# ---- more


def smaller(**changes: object) -> job_worlds.JobWorld:
    """One of two workers trains; the pod of the other one waits beside it."""
    world = a_job(elastic=elastic(**changes)).with_pod(0, node="n0")
    world.attempt_of(0).with_checkpoints("1/1")
    return world


def test_it_grows_once_the_pod_is_there_and_the_attempt_has_trained_long_enough() -> None:
    world = smaller()
    planned = world.settled()
    assert [(a.worker, a.serial) for a in of_type(planned, CreatePod)] == [(1, 2)]
    world.with_pod(1, serial=2, node="n1").waiting(1, 2)
    assert world.after(19.9).settled().status.phase is Phase.RUNNING
    assert world.decided().wake_at is not None
    found = world.after(0.2).settled()
    assert found.status.phase is Phase.EVACUATING
    (sent,) = {a.pod.uid: a for a in of_type(found, SendNotice)}.values()
    (notice,) = sent.order.notices
    assert (sent.pod.uid, notice.worker, notice.source) == ("uid-0-1", sources.NOBODY, sources.RESIZE)
    assert not of_type(found, DeletePod)
    world.after(1).reports(
        0, AgentPhase.SEALED, boundary=44, checkpoints=(job_worlds.checkpoint("1/2", 44, at=world.now),)
    )
    found = world.settled()
    attempt = found.status.attempt
    assert [(m.worker, m.serial) for m in attempt.members] == [(0, 1), (1, 2)]
    entry = found.status.preemptions[-1]
    assert (entry.cause, entry.workers, entry.step_at_notice) == ("resize", (), 44)
    assert (found.status.counts.preemptions, found.status.counts.failures) == (0, 0)


def test_it_is_taken_back_if_the_pod_goes_before_anybody_stands_still() -> None:
    world = smaller()
    world.settled()
    world.with_pod(1, serial=2, node="n1").waiting(1, 2).after(21)
    assert world.settled().status.phase is Phase.EVACUATING
    world.without_node("n1").reports(0, AgentPhase.EVACUATING)
    found = world.settled()
    assert found.status.phase is Phase.RUNNING
    assert found.status.attempt.number == 1
    assert of_type(found, SendNotice)[-1].order.notices[0].withdrawn
    assert [e.reason for e in of_type(found, EmitEvent) if "Resize" in e.reason] == ["ResizeWithdrawn"]


def test_a_save_that_does_not_come_about_is_taken_back_and_not_asked_for_again_at_once() -> None:
    world = smaller()
    world.settled()
    world.with_pod(1, serial=2, node="n1").waiting(1, 2).after(21)
    world.settled()
    world.after(301).reports(0, AgentPhase.EVACUATING).waiting(1, 2)
    found = world.settled()
    assert (found.status.phase, found.status.attempt.number) == (Phase.RUNNING, 1)
    assert of_type(found, SendNotice)[-1].order.notices[0].withdrawn
    assert world.after(18).settled().status.phase is Phase.RUNNING
    assert world.after(2).settled().status.phase is Phase.EVACUATING


def test_it_does_not_grow_while_something_is_announced() -> None:
    world = smaller()
    world.settled()
    world.with_pod(1, serial=2, node="n1").waiting(1, 2).change_node("n0", unschedulable=True).after(21)
    assert world.settled().status.phase is Phase.RUNNING


def test_a_pod_whose_agent_was_not_heard_is_no_worker() -> None:
    world = smaller()
    world.settled()
    world.with_pod(1, serial=2, node="n1").after(1000)
    assert world.settled().status.phase is Phase.RUNNING


def test_what_interrupts_the_job_anyway_makes_it_grow_at_once() -> None:
    world = smaller(growAfterSeconds=100_000)
    world.settled()
    world.with_pod(1, serial=2, node="n1").waiting(1, 2).reports(0, AgentPhase.FAILED, exit_detail="boom")
    world.settled()
    found = world.after(10.1).waiting(1, 2).settled()
    assert [m.worker for m in found.status.attempt.members] == [0, 1]


def test_a_pod_beside_that_fails_is_no_failure_and_no_end_of_the_job() -> None:
    world = smaller()
    world.settled()
    world.with_pod(1, serial=2, node="n1", phase="Failed", exit_code=127, exit_reason="StartError").after(100)
    found = world.settled()
    assert (found.status.phase, found.status.counts.failures) == (Phase.RUNNING, 0)


def test_a_pod_beside_that_fails_does_not_hold_up_the_replacement_of_a_member() -> None:
    world = smaller()
    world.settled()
    world.with_pod(1, serial=2, node="n1", phase="Failed", exit_code=127, exit_reason="StartError")
    found = world.tainted("n0", "aws-node-termination-handler/spot-itn").settled()
    assert found.status.phase is Phase.EVACUATING
    assert max(w.serial for w in found.status.workers if w.worker == 0) > 1


def test_a_pod_beside_that_has_to_be_made_anew_does_not_end_an_attempt_that_has_not_claimed() -> None:
    world = smaller()
    world.settled()
    world.with_pod(1, serial=2, node="n1").waiting(1, 2)
    unclaimed = world.status.attempt.model_copy(update={"claimed_at": None, "first_step_at": None})
    stale = tuple(w.model_copy(update={"made_from": "other" if w.worker else ""}) for w in world.status.workers)
    world.with_status(attempt=unclaimed, workers=stale)
    assert world.settled().status.attempt.number == 1


def test_in_a_queue_too_a_pod_waits_beside_the_attempt() -> None:
    """The place of the worker that is missing is free in its group (queueing.py)."""
    world = smaller()
    queue = QueueStatus(name="gpus", founded=1, size=2)
    world.change_pod(0, queue_group=kueue.group_name(world.meta, queue), queue_managed=True)
    world.with_status(workers=tuple(w.model_copy(update={"queue": queue}) for w in world.status.workers))
    assert [a.worker for a in of_type(world.settled(), CreatePod)] == [1]


def test_above_spec_workers_is_no_trouble_without_room() -> None:
    world = a_job(workers=1, elastic=elastic(maxWorkers=2)).with_pod(0, node="n0").attempt_of(0)
    world.settled()
    world.with_pod(1, serial=2, node="", unschedulable="no").after(60)
    found = world.settled()
    ready = condition(found.status, "Ready")
    assert (ready.reason, condition(found.status, "Reconciling").status) == ("Running", "False")


def test_ranks_are_counted_over_the_members_that_there_are() -> None:
    members = tuple(Member(w, f"pod-{w}", f"uid-{w}", 1) for w in (0, 2, 5))
    order = AttemptOrder("uid", 3, members, 2, False, RestoreOrder())
    assert [list(order.ranks_of(w)) for w in (0, 2, 5)] == [[0, 1], [2, 3], [4, 5]]


# ---- whole lives


def ends_well(cluster: SimulatedCluster) -> SimulatedCluster:
    assert not cluster.wrong, cluster.wrong
    assert cluster.status.phase is Phase.SUCCEEDED, cluster.status.model_dump_json(indent=1)
    assert cluster.decided_attempts == sorted(set(cluster.decided_attempts))
    boundaries = [cluster.store.claims[n].parent_boundary for n in sorted(cluster.store.claims)]
    assert boundaries == sorted(boundaries), "the committed step went back"
    lost = [p.steps_lost for p in cluster.status.preemptions if p.cause == "resize" and p.resumed_at is not None]
    assert not any(lost), "a step was done again because the job grew"
    return cluster


WORLDS = [(2, 1, None, None), (3, 1, None, None), (3, 2, 4, 12), (4, 1, None, 8), (2, 1, 4, 8)]
"""Of a job: workers, minWorkers, maxWorkers, globalBatch."""


def wait(n: float) -> Script:
    for _ in range(round(n * 4)):
        yield


def test_two_one_two_without_losing_a_step() -> None:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        cluster.doors = Doors(room=1)
        yield from wait(10)
        cluster.announce("n1")
        yield from wait(40)
        cluster.power_off("n1")
        yield from wait(40)
        cluster.bring_node("n1")
        while True:
            yield

    spec = job_worlds.spec(elastic=elastic())
    cluster = ends_well(simulate(spec, seed=1, faults=0, script=script, nodes=2, steps=600))
    assert [n for _, n in cluster.had] == [2, 1, 2]
    assert [(p.cause, p.steps_lost) for p in cluster.status.preemptions] == [("spot", 0), ("resize", 0)]
    assert {m.pod_uid for m in cluster.status.attempt.members} >= {"uid-0-1"}, "the survivor kept its pod through both"
    assert (cluster.status.counts.preemptions, cluster.status.counts.caught) == (1, 1)


def comes_and_goes(cluster: SimulatedCluster, rng: random.Random) -> Script:
    """Nodes are announced, lost, closed and opened again at random moments; never all at once for good."""
    cluster.doors = Doors(room=1)
    while True:
        yield from wait(rng.uniform(1, 20))
        name = rng.choice(sorted(cluster.nodes))
        match rng.choice(["notice", "off", "cordon", "back", "back", "delete"]):
            case "notice":
                cluster.announce(name)
                yield from wait(rng.uniform(0, 8))
                if rng.random() < 0.5:
                    cluster.power_off(name)
            case "off":
                cluster.power_off(name)
            case "cordon":
                cluster.cordon(name)
            case "back":
                for gone in sorted(cluster.nodes):
                    if gone in cluster.dead_nodes:  # as another machine, with nothing of the one before
                        cluster.pods = {uid: p for uid, p in cluster.pods.items() if p.node != gone}
                    if gone in cluster.dead_nodes or cluster.nodes[gone].taints:
                        cluster.bring_node(gone)
                    else:
                        cluster.cordon(gone, back=True)
            case "delete":
                cluster.delete_pod(rng.choice(sorted(cluster.pods) or [""]))


@pytest.mark.parametrize("seed", range(10))
def test_a_job_ends_whatever_room_there_is_and_changes_its_size_in_bounds(seed: int) -> None:
    workers, least, most, batch = WORLDS[seed % len(WORLDS)]
    spec = job_worlds.spec(
        workers=workers,
        elastic=elastic(minWorkers=least, maxWorkers=most, globalBatch=batch),
        budgets={"failures": {"max": 1000, "backoffSeconds": 0}},
    )
    faults = [0.0, 0.05, 0.2][seed % 3]
    cluster = ends_well(
        simulate(spec, seed=seed, faults=faults, script=comes_and_goes, steps=240, limit=6000, nodes=workers)
    )
    asked = [e for e in cluster.events if e.reason == "Resizing"]
    assert len(asked) <= (cluster.now - cluster.had[0][0]) / timedelta(seconds=20), (
        "not more often than growAfterSeconds"
    )
