"""Handover where not everybody helps (F5): zones to keep away from, what follows a pod that came to nothing, who gives way to whom, what is thrown away."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from job_worlds import T0, JobWorld, a_job, condition, of_type, seconds

from holdfast_api import names
from holdfast_api.messages import AgentPhase, Exit
from holdfast_operator.core import fruitless, giving_way, kueue, wake
from holdfast_operator.core.actions import CreatePod, DeletePod
from holdfast_operator.core.observed import NodeSeen, Refusal, RefusalKind
from holdfast_operator.crd.v1alpha1 import PartStatus, Phase, QueueStatus, UnfinishedStatus, WorkerStatus

SPOT = "aws-node-termination-handler/spot-itn"
REBALANCE = "aws-node-termination-handler/rebalance-recommendation"
SCALE_DOWN = "ToBeDeletedByClusterAutoscaler"
MAINTENANCE = "cloud.google.com/maintenance-window-started"
ZONE = "topology.kubernetes.io/zone"


def training(**spec: Any) -> JobWorld:
    return a_job(**spec).with_pods().training()


def in_zones(w: JobWorld, **zones: str) -> JobWorld:
    for node, zone in zones.items():
        w.change_node(node, labels={ZONE: zone})
    return w


def name_of(worker: int, serial: int) -> str:
    return names.pod_name("job", "0a1b2c3d-0000-4000-8000-000000000001", worker, serial)


def refused(w: JobWorld, worker: int, serial: int, kind: RefusalKind = RefusalKind.FORBIDDEN) -> JobWorld:
    w.refusals = (Refusal(kind, f"pod {name_of(worker, serial)}", "exceeded quota: pods", w.now),)
    return w


def planned(w: JobWorld, worker: int = 1) -> WorkerStatus:
    return max((e for e in w.status.workers if e.worker == worker), key=lambda e: e.serial)


def make(w: JobWorld, worker: int, node: str = "", **fields: Any) -> JobWorld:
    """The newest pod that is planned for this worker, as it was planned."""
    workers = w.status.workers
    return w.with_pod(worker, planned(w, worker).serial, node, **fields).with_status(workers=workers)


def deleted(w: JobWorld) -> set[str]:
    return {d.uid for d in of_type(w.settled(), DeletePod)}


# ---- zones


def test_a_zone_whose_machines_are_taken_back_is_kept_away_from_where_nobody_stays_there() -> None:
    w = in_zones(training(), n0="b", n1="a", n2="a").tainted("n1", SPOT)
    (created,) = of_type(w.settled(), CreatePod)
    assert (created.avoid_nodes, created.avoid_zones) == (("n1",), ("a",))


def test_a_gang_that_is_together_stays_together() -> None:
    w = in_zones(training(), n0="a", n1="a", n2="b").tainted("n1", SPOT)
    (created,) = of_type(w.settled(), CreatePod)
    assert created.avoid_zones == ()


def test_where_everybody_goes_the_gang_goes_elsewhere() -> None:
    w = in_zones(training(), n0="a", n1="a", n2="b").tainted("n0", SPOT).tainted("n1", SPOT)
    assert {a.avoid_zones for a in of_type(w.settled(), CreatePod)} == {("a",)}


def test_a_recommendation_for_one_and_the_end_of_another_are_of_their_own_zones() -> None:
    w = in_zones(training(workers=3), n0="a", n1="b", n2="c").tainted("n0", REBALANCE).tainted("n1", SPOT)
    (created,) = of_type(w.settled(), CreatePod)
    assert created.avoid_zones == ("a", "b")


@pytest.mark.parametrize("key", [SCALE_DOWN, MAINTENANCE])
def test_other_causes_say_nothing_of_a_zone(key: str) -> None:
    w = in_zones(training(), n0="b", n1="a", n2="a").tainted("n1", key)
    (created,) = of_type(w.settled(), CreatePod)
    assert (created.avoid_nodes, created.avoid_zones) == (("n1",), ())


@pytest.mark.parametrize(
    ("nodes", "away", "zones"),
    [(4, 3, ("a",)), (2, 2, ()), (6, 3, ())],
    ids=["most of them", "too few to tell", "half of them"],
)
def test_a_zone_most_of_whose_nodes_are_gone_is_kept_away_from_whoever_stays(
    nodes: int, away: int, zones: tuple[str, ...]
) -> None:
    w = training(workers=4)
    for i in range(8):
        w.nodes[f"n{i}"] = NodeSeen(f"n{i}", labels={ZONE: "a" if i < nodes else "b"})
    for i in range(away):
        w.change_node(f"n{i}", ready=False, ready_since=w.now)
    actions = of_type(w.after(6).settled(), CreatePod)
    assert {a.avoid_zones for a in actions} == {zones}


# ---- what came to nothing


def test_a_replacement_that_is_lost_over_and_over_is_made_at_growing_intervals() -> None:
    """Its node takes it and loses it: nothing hinders the next one but its own history."""
    w = training().tainted("n1", MAINTENANCE)
    w.settled()
    at: list[float] = []
    while len(at) < 6:
        serial = planned(w).serial
        make(w, 1, "n2").settled()
        at.append((w.now - T0).total_seconds())
        w.without_pod(1, serial)
        while not of_type(w.settled(), CreatePod):
            w.after(0.5).all_report(AgentPhase.EVACUATING)
    assert [b - a for a, b in itertools.pairwise(at)] == [2, 4, 8, 16, 32]


def test_the_pause_has_an_end_and_a_pod_that_took_part_starts_the_row_anew() -> None:
    entry = WorkerStatus(worker=0, serial=1, since=T0, fruitless=100)
    assert fruitless.due(entry) - T0 == fruitless.LONGEST
    assert fruitless.count(entry, T0, member=True) == 0
    w = training().tainted("n1", SPOT)
    w.settled()
    assert planned(w).fruitless == 0


def test_a_replacement_that_a_queue_deletes_waits_for_the_end_of_the_old_pod() -> None:
    w = training().tainted("n1", MAINTENANCE)
    w.settled()
    w.with_pod(1, 2).settled()
    w.without_pod(1, 2)
    decision = w.after(100).all_report(AgentPhase.EVACUATING).settled()
    assert not of_type(decision, CreatePod)
    assert not of_type(decision, DeletePod), "its attempt is not over"
    assert deleted(w.all_report(AgentPhase.SEALED).after(30)) == {"uid-1-1"}
    w.without_pod(1).after(1)
    assert [(c.worker, c.serial) for c in of_type(w.settled(), CreatePod)] == [(1, 3)]


def test_a_replacement_that_was_let_in_and_is_preempted_is_made_again_while_the_old_pod_still_saves() -> None:
    w = training().tainted("n1", MAINTENANCE)
    w.settled()
    w.with_pod(1, 2, "n2").settled()
    w.change_pod(1, 2, disruption="PreemptionByScheduler").all_report(AgentPhase.EVACUATING).after(3)
    assert [(c.worker, c.serial) for c in of_type(w.settled(), CreatePod)] == [(1, 3)]


def test_a_replacement_whose_node_is_announced_to_go_before_it_is_a_member_is_made_again_elsewhere() -> None:
    w = training().tainted("n1", MAINTENANCE)
    w.settled()
    w.with_pod(1, 2, "n2").all_report(AgentPhase.EVACUATING).settled()
    w.tainted("n2", SPOT).after(3)
    decision = w.settled()
    assert [(c.serial, c.avoid_nodes) for c in of_type(decision, CreatePod)] == [(3, ("n1", "n2"))]
    assert [d.uid for d in of_type(decision, DeletePod)] == ["uid-1-2"]


# ---- who gives way


@pytest.mark.parametrize("kind", list(RefusalKind))
def test_the_old_pod_gives_way_once_its_attempt_is_over_where_its_replacement_is_refused_beside_it(
    kind: RefusalKind,
) -> None:
    w = training().tainted("n1", MAINTENANCE)
    w.settled()
    refused(w, 1, 2, kind).all_report(AgentPhase.EVACUATING)
    assert not of_type(w.after(1).settled(), DeletePod), "not while it saves (A3)"
    assert not list(giving_way.orders(w.seen(), w.status)), "whoever asks"
    assert deleted(w.all_report(AgentPhase.SEALED)) == ({"uid-1-1"} if kind is RefusalKind.FORBIDDEN else set())


def test_a_pod_that_a_gate_holds_gets_the_place_of_the_old_one() -> None:
    w = training().tainted("n1", MAINTENANCE)
    w.settled()
    w.with_pod(1, 2, gates=("example.com/queue",)).settled()
    assert not of_type(w.after(1).settled(), DeletePod)
    assert deleted(w.all_report(AgentPhase.SEALED)) == {"uid-1-1"}


@pytest.mark.parametrize(("node_stays", "gives_way"), [(True, True), (False, False)])
def test_a_replacement_that_finds_no_room_gets_that_of_the_old_pod_if_its_node_stays(
    node_stays: bool, gives_way: bool
) -> None:
    w = training()
    if node_stays:
        w.change_pod(1, disruption="PreemptionByScheduler")
    else:
        w.tainted("n1", MAINTENANCE)
    w.settled()
    w.with_pod(1, 2, unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu").settled()
    assert condition(w.status, "Ready").reason == "Unschedulable"
    assert "Insufficient nvidia.com/gpu" in condition(w.status, "Ready").message
    assert deleted(w.all_report(AgentPhase.SEALED)) == ({"uid-1-1"} if gives_way else set())


def test_survivors_give_way_to_nobody() -> None:
    w = training().tainted("n1", MAINTENANCE)
    w.settled()
    refused(w, 1, 2).all_report(AgentPhase.SEALED)
    assert "uid-0-1" not in deleted(w)


# ---- refusals


def test_a_refused_pod_is_asked_for_at_growing_intervals_and_soon_when_another_has_gone() -> None:
    waits = [(wake.refused_until(Refusal(RefusalKind.FORBIDDEN, "pod a", "", T0, n, 3), 3) - T0) for n in range(1, 8)]
    assert [x.total_seconds() for x in waits] == [1, 2, 4, 8, 16, 30, 30]
    late = Refusal(RefusalKind.FORBIDDEN, "pod a", "", T0, 9, 3)
    assert wake.refused_until(late, 2) - T0 == seconds(1)


# ---- thrown away


def test_a_worker_whose_own_notice_is_withdrawn_keeps_its_pod_while_anothers_stands() -> None:
    w = training().tainted("n0", SPOT).tainted("n1", SCALE_DOWN)
    w.settled()
    w.with_pod(0, 2, "n2").with_pod(1, 2, "n2").settled()
    w.change_node("n1", taints=())
    decision = w.after(1).settled()
    assert [d.uid for d in of_type(decision, DeletePod)] == ["uid-1-2"]
    w.all_report(AgentPhase.SEALED).settled()
    assert w.status.attempt is not None
    assert [m.pod_uid for m in w.status.attempt.members] == ["uid-0-2", "uid-1-1"]


def test_a_notice_that_is_withdrawn_when_the_attempt_is_sealed_leaves_the_pod_where_it_is() -> None:
    w = training().tainted("n1", SCALE_DOWN)
    w.settled()
    w.all_report(AgentPhase.SEALED).settled()
    w.change_node("n1", taints=()).after(1).settled()
    assert w.status.attempt is not None
    assert [m.pod_uid for m in w.status.attempt.members] == ["uid-0-1", "uid-1-1"]
    assert w.status.attempt.number == 2


def test_a_pod_whose_agent_has_ended_does_not_stay_because_its_notice_was_withdrawn() -> None:
    w = training().tainted("n1", SCALE_DOWN)
    w.settled()
    w.reports(1, AgentPhase.SEALED, exit=Exit.PREEMPTED_SEALED).reports(0, AgentPhase.SEALED).settled()
    w.change_node("n1", taints=()).after(1).settled()
    assert planned(w).serial == 2


def test_a_worker_that_was_lost_and_comes_back_is_replaced_all_the_same() -> None:
    """Nobody has withdrawn anything; a node that comes and goes must not have pods made and thrown away with it."""
    w = training().change_node("n1", ready=False, ready_since=T0)
    w.after(10).settled()
    assert planned(w).serial == 2
    w.change_node("n1", ready=True, ready_since=w.now).after(1).settled()
    assert planned(w).serial == 2


def test_before_the_first_step_a_withdrawn_notice_throws_the_replacement_away_at_once() -> None:
    w = a_job().with_pods().attempt(accepted_at=T0, may_claim_at=T0)
    w.all_report(AgentPhase.STARTING).tainted("n1", SCALE_DOWN).settled()
    w.with_pod(1, 2, "n2").settled()
    w.change_node("n1", taints=())
    assert [d.uid for d in of_type(w.after(1).settled(), DeletePod)] == ["uid-1-2"]
    assert w.status.attempt is not None
    assert w.status.attempt.number == 1


def test_a_notice_that_comes_back_makes_the_next_replacement_later() -> None:
    w = training().tainted("n1", SCALE_DOWN)
    w.settled()
    made = []
    for _ in range(4):
        w.change_node("n1", taints=()).settled()
        since = w.now
        w.tainted("n1", SCALE_DOWN)
        while not of_type(w.settled(), CreatePod):
            w.after(1)
        made.append((w.now - since).total_seconds())
    assert made == [4, 8, 16, 32]


@pytest.mark.parametrize("how", ["gone", "sealed"])
def test_who_really_goes_after_many_false_alarms_is_replaced_at_once(how: str) -> None:
    w = training().tainted("n1", SCALE_DOWN)
    w.settled()
    for _ in range(6):
        w.change_node("n1", taints=()).settled()
        w.tainted("n1", SCALE_DOWN).after(fruitless.LONGEST.total_seconds()).settled()
    w.change_node("n1", taints=()).settled()
    if how == "gone":
        w.without_pod(1).without_node("n1").after(10)
    else:
        w.tainted("n1", SPOT).settled()
        w.all_report(AgentPhase.SEALED)
    assert [c.worker for c in of_type(w.settled(), CreatePod)] == [1]


def test_a_corrected_spec_starts_the_row_anew() -> None:
    w = a_job()
    w.settled()
    entries = tuple(e.model_copy(update={"fruitless": 5, "made_from": "another"}) for e in w.status.workers)
    w.with_status(workers=entries).settled()
    assert {e.fruitless for e in w.status.workers} == {0}


def test_the_old_pod_in_a_queue_gives_way_once_its_attempt_is_over() -> None:
    """Its replacement is not even made before it has ended."""
    w = training()
    w.meta = replace(w.meta, labels={kueue.QUEUE: "gpus"})
    ticket = QueueStatus(name="gpus", founded=1, size=2)
    w.with_status(workers=tuple(e.model_copy(update={"queue": ticket}) for e in w.status.workers))
    for worker in (0, 1):
        w.change_pod(worker, queue_managed=True, queue_group=kueue.group_name(w.meta, ticket))
    assert not of_type(w.tainted("n1", MAINTENANCE).settled(), DeletePod)
    assert deleted(w.all_report(AgentPhase.SEALED)) == {"uid-1-1"}


def test_a_job_that_has_succeeded_stops_a_replacement_that_waits_to_be_told() -> None:
    w = training().tainted("n1", MAINTENANCE)
    w.settled()
    w.with_pod(1, 2, "n2")
    w.all_report(AgentPhase.FINISHED, exit=Exit.FINISHED).settled()
    assert w.status.phase is Phase.SUCCEEDED
    assert [d.uid for d in of_type(w.after(1).round(), DeletePod)] == ["uid-1-2"]


# ---- the newest state lies on a node, and the replacement is elsewhere (E6)


def elsewhere(
    w: JobWorld, *, whole: bool = True, worth: float | None = 600.0, node: str = "n1", old_gone: bool = True
) -> JobWorld:
    """The pod of worker 1 was evicted; its replacement went to n2 at the notice; then the newest state was left on n0 and n1."""
    w.change_pod(1, disruption="EvictionByEvictionAPI").settled()
    w.with_pod(1, 2, "n2").settled()
    w.without_pod(0).with_pod(0, 3)
    if old_gone:
        w.without_pod(1)
    w.reports(0, AgentPhase.SEALED, exit=Exit.PREEMPTED_NOTHING_NEW)
    w.reports(1, AgentPhase.SEALED, exit=Exit.PREEMPTED_NOTHING_NEW)
    parts = (PartStatus(worker=0, node="n0"), PartStatus(worker=1, node=node))
    until = w.now + seconds(worth) if worth is not None else None
    left = UnfinishedStatus(checkpoint="1/3", step=42, parts=parts, whole=whole, since=w.now, worth_until=until)
    w.with_status(unfinished=left)
    return w.after(3)


def test_a_replacement_that_went_elsewhere_is_made_again_where_the_newest_state_lies() -> None:
    w = elsewhere(training())
    made = [(c.worker, c.prefer_nodes) for c in of_type(w.settled(), CreatePod) if c.worker == 1]
    assert made == [(1, ("n1",))]
    serial = planned(w).serial
    make(w, 1, "n2").settled()
    w.after(5).settled()
    assert planned(w).serial == serial, "once: where it goes then is where it stays"


@pytest.mark.parametrize(
    ("harm", "how"),
    [
        (lambda w: w.tainted("n1", SPOT), {}),
        (lambda w: w.change_node("n1", unschedulable=True), {}),
        (lambda w: w.without_node("n1"), {}),
        (lambda w: w, {"whole": False}),
        (lambda w: w, {"worth": None}),
        (lambda w: w, {"worth": 1.0}),
        (lambda w: w, {"node": "n2"}),
        (lambda w: w, {"old_gone": False}),
    ],
    ids=[
        "doomed",
        "cordoned",
        "gone",
        "not whole",
        "worth nobody knows what",
        "worth less",
        "there already",
        "still taken",
    ],
)
def test_it_stays_where_that_is_not_worth_it(harm: Any, how: dict[str, Any]) -> None:
    w = elsewhere(training(), **how)
    harm(w)
    w.settled()
    assert planned(w).serial == 2
