"""Every announcement of the platform becomes the notice that it should be: cause, acting or preparing, deadline (F1, F2)."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from job_worlds import T0, JobWorld, a_job, of_type, seconds, sigterm

from holdfast_api.messages import AgentPhase
from holdfast_operator.core import signal_table
from holdfast_operator.core.actions import SendNotice
from holdfast_operator.crd.v1alpha1 import NoticeStatus, Phase

AKS = "Preempt Scheduled: Sun, 01 Mar 2026 12:00:45 GMT EventId: 1E5F0A2C-0000"


def world() -> JobWorld:
    return a_job().with_pods().training()


def notice(w: JobWorld, source: str) -> NoticeStatus:
    status = w.round().status
    found = [n for n in status.notices if n.source == source]
    assert found, [n.source for n in status.notices]
    return found[0]


def taint(key: str, value: str = "", added_at: datetime | None = None) -> Any:
    return lambda w: w.tainted("n1", key, value, added_at)


def cond(kind: str, message: str = "") -> Any:
    return lambda w: w.with_condition("n1", kind, message)


def label(key: str, value: str) -> Any:
    return lambda w: w.change_node("n1", labels={key: value})


def annotation(key: str, value: str) -> Any:
    return lambda w: w.change_node("n1", annotations={key: value})


NTH = "aws-node-termination-handler"
GKE = "cloud.google.com"
CA_TAINT = "ToBeDeletedByClusterAutoscaler"
CASES: list[tuple[str, Any, str, str, bool, float | None]] = [
    # name, world, source, cause, acting, seconds to the deadline
    ("AWS spot: two minutes", taint(f"{NTH}/spot-itn"), f"taint:{NTH}/spot-itn", "spot", True, 120),
    (
        "AWS spot counts from the time in the taint",
        taint(f"{NTH}/spot-itn", added_at=T0 - seconds(30)),
        f"taint:{NTH}/spot-itn",
        "spot",
        True,
        90,
    ),
    (
        "AWS rebalance only prepares",
        taint(f"{NTH}/rebalance-recommendation"),
        f"taint:{NTH}/rebalance-recommendation",
        "rebalance",
        False,
        None,
    ),
    (
        "AWS maintenance only prepares",
        taint(f"{NTH}/scheduled-maintenance"),
        f"taint:{NTH}/scheduled-maintenance",
        "maintenance",
        False,
        None,
    ),
    (
        "AWS scale-in acts",
        taint(f"{NTH}/asg-lifecycle-termination"),
        f"taint:{NTH}/asg-lifecycle-termination",
        "scale-down",
        True,
        None,
    ),
    (
        "AWS node that was drained for a reboot",
        label(f"{NTH}/action", "UncordonAfterReboot"),
        f"label:{NTH}/action",
        "maintenance",
        True,
        None,
    ),
    (
        "Karpenter's taint alone prepares",
        taint("karpenter.sh/disrupted"),
        "taint:karpenter.sh/disrupted",
        "scale-down",
        False,
        None,
    ),
    (
        "Karpenter's timestamp is a deadline",
        annotation("karpenter.sh/nodeclaim-termination-timestamp", "2026-03-01T12:05:00Z"),
        "annotation:karpenter.sh/nodeclaim-termination-timestamp",
        "scale-down",
        True,
        300,
    ),
    (
        "GKE impending termination: 15 s for user pods",
        taint(f"{GKE}/impending-node-termination"),
        f"taint:{GKE}/impending-node-termination",
        "spot",
        True,
        15,
    ),
    (
        "GKE maintenance under way acts",
        label(f"{GKE}/active-node-maintenance", "ONGOING"),
        f"label:{GKE}/active-node-maintenance",
        "maintenance",
        True,
        None,
    ),
    (
        "GKE maintenance ahead prepares",
        label(f"{GKE}/scheduled-maintenance-time", "1772366400"),
        f"label:{GKE}/scheduled-maintenance-time",
        "maintenance",
        False,
        None,
    ),
    ("GCE preempting: 30 s", cond("GCESpotPreempting"), "condition:GCESpotPreempting", "spot", True, 30),
    ("AKS names the time", cond("PreemptionScheduled", AKS), "condition:PreemptionScheduled", "spot", True, 45),
    (
        "AKS without a time: the minimum of 30 s",
        cond("PreemptionScheduled", "soon"),
        "condition:PreemptionScheduled",
        "spot",
        True,
        30,
    ),
    (
        "AKS VM event: preempt",
        cond("VMEventScheduled", "Preempt Scheduled"),
        "condition:VMEventScheduled",
        "spot",
        True,
        30,
    ),
    (
        "AKS VM event: freeze only prepares",
        cond("VMEventScheduled", "Freeze"),
        "condition:VMEventScheduled",
        "maintenance",
        False,
        None,
    ),
    (
        "AKS drains the node",
        taint("remediator.kubernetes.azure.com/unschedulable"),
        "taint:remediator.kubernetes.azure.com/unschedulable",
        "maintenance",
        True,
        None,
    ),
    (
        "Cluster autoscaler: 600 s after its decision",
        taint(CA_TAINT, str(int(T0.timestamp()) - 100)),
        f"taint:{CA_TAINT}",
        "scale-down",
        True,
        500,
    ),
    ("Cluster autoscaler without a time", taint(CA_TAINT, "x"), f"taint:{CA_TAINT}", "scale-down", True, 600),
    (
        "Deletion candidate prepares",
        taint("DeletionCandidateOfClusterAutoscaler"),
        "taint:DeletionCandidateOfClusterAutoscaler",
        "scale-down",
        False,
        None,
    ),
    (
        "Out of service: at once",
        taint("node.kubernetes.io/out-of-service"),
        "taint:node.kubernetes.io/out-of-service",
        "node-shutdown",
        True,
        0,
    ),
    (
        "Disk pressure prepares",
        taint("node.kubernetes.io/disk-pressure"),
        "taint:node.kubernetes.io/disk-pressure",
        "node-pressure",
        False,
        None,
    ),
    (
        "A cordon prepares",
        lambda w: w.change_node("n1", unschedulable=True),
        "node:unschedulable",
        "cordon",
        False,
        None,
    ),
    (
        "A node object that is being deleted",
        lambda w: w.change_node("n1", deleting_since=T0),
        "node:deletionTimestamp",
        "scale-down",
        True,
        None,
    ),
    (
        "Deleted pod: its deletion timestamp",
        lambda w: w.deleted_pod(1, grace=30),
        "pod:deletionTimestamp",
        "deletion",
        True,
        30,
    ),
    (
        "Evicted by the API",
        lambda w: w.change_pod(1, disruption="EvictionByEvictionAPI"),
        "pod:DisruptionTarget/EvictionByEvictionAPI",
        "eviction",
        True,
        None,
    ),
    (
        "kubectl drain is a cordon and an eviction",
        lambda w: w.change_pod(1, disruption="EvictionByEvictionAPI").change_node("n1", unschedulable=True),
        "pod:DisruptionTarget/EvictionByEvictionAPI",
        "drain",
        True,
        None,
    ),
    (
        "Preempted by the scheduler",
        lambda w: w.change_pod(1, disruption="PreemptionByScheduler"),
        "pod:DisruptionTarget/PreemptionByScheduler",
        "priority",
        True,
        None,
    ),
    (
        "Terminated by the kubelet",
        lambda w: w.change_pod(1, disruption="TerminationByKubelet"),
        "pod:DisruptionTarget/TerminationByKubelet",
        "node-shutdown",
        True,
        None,
    ),
    (
        "Any other disruption is an eviction",
        lambda w: w.change_pod(1, disruption="KueueWants"),
        "pod:DisruptionTarget/KueueWants",
        "eviction",
        True,
        None,
    ),
    (
        "SIGTERM in the pod",
        lambda w: w.reports(1, AgentPhase.EVACUATING, notices=(sigterm(1, T0),)),
        "signal:SIGTERM",
        "sigterm",
        True,
        15,
    ),
]


@pytest.mark.parametrize(
    ("change", "source", "cause", "acting", "within"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_a_source_gives_its_notice(change: Any, source: str, cause: str, acting: bool, within: float | None) -> None:
    w = change(world())
    found = notice(w, source)
    assert (found.cause, found.acting, found.worker) == (cause, acting, 1)
    assert (
        (found.deadline - T0).total_seconds() == within
        if within is not None and found.deadline
        else found.deadline is None
    )
    assert w.status.phase is (Phase.RUNNING if not acting else w.status.phase)
    if acting:
        assert w.status.phase in (Phase.EVACUATING, Phase.RECOVERING)


def test_a_notice_keeps_its_time_and_its_deadline_in_later_rounds() -> None:
    w = world().tainted("n1", "aws-node-termination-handler/spot-itn")
    first = notice(w, "taint:aws-node-termination-handler/spot-itn")
    later = notice(w.after(20), "taint:aws-node-termination-handler/spot-itn")
    assert (later.noticed_at, later.deadline) == (first.noticed_at, first.deadline)


def test_a_time_that_moves_in_the_message_moves_the_deadline() -> None:
    w = world().with_condition("n1", "PreemptionScheduled", AKS)
    notice(w, "condition:PreemptionScheduled")
    w.change_node("n1", conditions=()).with_condition("n1", "PreemptionScheduled", AKS.replace("12:00:45", "12:01:30"))
    assert notice(w, "condition:PreemptionScheduled").deadline == datetime(2026, 3, 1, 12, 1, 30, tzinfo=UTC)


def test_an_operator_that_comes_late_counts_from_the_announcement() -> None:
    w = world().after(60).change_pod(1, disruption="EvictionByEvictionAPI", disruption_since=T0 + seconds(10))
    assert notice(w, "pod:DisruptionTarget/EvictionByEvictionAPI").noticed_at == T0 + seconds(10)


def test_a_source_that_is_taken_back_is_withdrawn() -> None:
    w = world().change_node("n1", unschedulable=True)
    notice(w, "node:unschedulable")
    assert notice(w.change_node("n1", unschedulable=False), "node:unschedulable").withdrawn


def test_a_worker_that_is_gone_shows_that_its_notice_was_true() -> None:
    """A machine of the same name, back and clean, takes nothing back from a worker that was on the old one."""
    w = world().tainted("n1", "aws-node-termination-handler/spot-itn")
    w.round()
    w.without_pod(1).change_node("n1", taints=()).after(1)
    assert not notice(w, "taint:aws-node-termination-handler/spot-itn").withdrawn
    assert w.status.preemptions[-1].cause == "spot"


def test_a_source_whose_node_is_gone_has_withdrawn_nothing() -> None:
    w = world().tainted("n1", "aws-node-termination-handler/spot-itn")
    w.round()
    assert not notice(w.without_node("n1").after(1), "taint:aws-node-termination-handler/spot-itn").withdrawn


def test_a_notice_about_a_node_stands_although_the_pod_is_gone() -> None:
    w = world().tainted("n1", "aws-node-termination-handler/spot-itn")
    w.round()
    assert not notice(w.without_pod(1).after(1), "taint:aws-node-termination-handler/spot-itn").withdrawn


def test_all_members_are_told_and_told_no_more_once_their_reports_show_it() -> None:
    w = world().change_node("n1", unschedulable=True)
    told = of_type(w.round(), SendNotice)
    assert {s.pod.uid for s in told} == {"uid-0-1", "uid-1-1"}
    w.all_report(AgentPhase.TRAINING, notices=told[0].order.notices)
    assert not of_type(w.round(), SendNotice)


def test_notices_stay_within_their_bound_and_keep_the_same_ones() -> None:
    w = a_job(workers=300).with_pods().training()
    for i in range(300):
        w.tainted(f"n{i}", "aws-node-termination-handler/rebalance-recommendation")
    first = w.round().status.notices
    assert len(first) == 256
    assert w.after(5).round().status.notices == first


def test_the_documentation_lists_every_source() -> None:
    page = (Path(__file__).parents[2] / "docs" / "notices.md").read_text()
    missing = [r.name for r in signal_table.TABLE if f"{r.kind} `{r.name}" not in page]
    assert not missing
    assert not [d.reason for d in signal_table.DISRUPTIONS if d.reason not in page]
