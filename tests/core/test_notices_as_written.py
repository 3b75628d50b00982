"""Objects as the components of each cloud write them, through the operator's own reading of them, to the notice that counts (F1, F2)."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import nodes_as_written as written
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from job_worlds import T0, JobWorld, a_job, seconds

from holdfast_api import names
from holdfast_operator.core import signal_table
from holdfast_operator.core.observed import NodeCondition, NodeEvent
from holdfast_operator.core.signal_table import SignalRules
from holdfast_operator.crd.v1alpha1 import NoticeStatus
from holdfast_operator.shell import translate

Object = dict[str, Any]
Case = tuple[Object, str, str, bool, bool, str, float | None]
"""Node, source, cause, acting, revocable, confidence, seconds to the deadline or None."""

AWS: dict[str, Case] = {
    "spot: two minutes": (
        written.nth_spot(), "taint:aws-node-termination-handler/spot-itn", "spot", True, False, "Certain", 120,
    ),
    "a rebalance recommendation only prepares": (
        written.nth_rebalance(), "taint:aws-node-termination-handler/rebalance-recommendation", "rebalance", False, True, "Possible", None,
    ),
    "maintenance that is scheduled only prepares": (
        written.nth_maintenance(), "taint:aws-node-termination-handler/scheduled-maintenance", "maintenance", False, True, "Likely", None,
    ),
    "drained for a reboot": (
        written.nth_reboot(), "label:aws-node-termination-handler/action", "maintenance", True, True, "Likely", None,
    ),
    "scale-in by the auto scaling group": (
        written.nth_asg(), "taint:aws-node-termination-handler/asg-lifecycle-termination", "scale-down", True, False, "Certain", None,
    ),
}  # fmt: skip
KARPENTER: dict[str, Case] = {
    "the taint alone prepares": (
        written.karpenter_disrupts(), "taint:karpenter.sh/disrupted", "scale-down", False, True, "Likely", None,
    ),
    "the node object is being deleted": (
        written.karpenter_ends(), "node:deletionTimestamp", "scale-down", True, False, "Certain", None,
    ),
    "the claim has a hard deadline": (
        written.karpenter_ends_by(), "annotation:karpenter.sh/nodeclaim-termination-timestamp", "scale-down", True, False, "Certain", 300,
    ),
}  # fmt: skip
GOOGLE: dict[str, Case] = {
    "spot: 15 s for ordinary pods": (
        written.gke_impending(), "taint:cloud.google.com/impending-node-termination", "spot", True, False, "Certain", 15,
    ),
    "maintenance ahead prepares": (
        written.gke_maintenance_ahead(), "label:cloud.google.com/scheduled-maintenance-time", "maintenance", False, True, "Likely", None,
    ),
    "maintenance under way, by its label": (
        written.gke_maintenance(), "label:cloud.google.com/active-node-maintenance", "maintenance", True, True, "Likely", None,
    ),
    "maintenance under way, by its taint": (
        written.gke_maintenance(), "taint:cloud.google.com/maintenance-window-started", "maintenance", True, True, "Likely", None,
    ),
    "maintenance that a person asked for": (
        written.gke_maintenance_asked_for(), "label:cloud.google.com/perform-maintenance", "maintenance", True, True, "Likely", None,
    ),
    "the detector of Karpenter's provider": (
        written.gce_preempting(), "condition:GCESpotPreempting", "spot", True, False, "Certain", 30,
    ),
    "the kubelet shuts down: 15 s on Google's nodes": (
        written.gke_shuts_down(), "condition:Ready/shutting-down", "node-shutdown", True, False, "Certain", 15,
    ),
}  # fmt: skip
AZURE: dict[str, Case] = {
    "preemption, with its time": (
        written.aks_preempt(), "condition:PreemptionScheduled", "spot", True, True, "Likely", 45,
    ),
    "a day of one digit": (
        written.aks_preempt_by_another_form_of_date(), "condition:PreemptionScheduled", "spot", True, True, "Likely", 45,
    ),
    "a time that cannot be: the least that Azure gives": (
        written.aks("PreemptionScheduled", "Preempt Scheduled: Sun, 99 Mar 2026 12:00:45 GMT."), "condition:PreemptionScheduled",
        "spot", True, True, "Likely", 30,
    ),
    "the eviction has started": (
        written.aks_preempt_started(), "condition:PreemptionScheduled", "spot", True, False, "Certain", 10,
    ),
    "an advice is no eviction": (
        written.aks_advice(), "condition:PreemptionScheduled", "rebalance", False, True, "Possible", None,
    ),
    "preemption by the older condition": (
        written.aks("PreemptScheduled", "soon"), "condition:PreemptScheduled", "spot", True, True, "Likely", 30,
    ),
    "the machine is to be deleted": (
        written.aks("TerminateScheduled", "Terminate Scheduled: Sun, 01 Mar 2026 12:05:00 GMT."), "condition:TerminateScheduled",
        "scale-down", True, True, "Likely", 300,
    ),
    "redeploy": (
        written.aks("RedeployScheduled", ""), "condition:RedeployScheduled", "maintenance", True, True, "Likely", 600,
    ),
    "reboot": (
        written.aks("RebootScheduled", ""), "condition:RebootScheduled", "maintenance", True, True, "Likely", 900,
    ),
    "a freeze only prepares": (
        written.aks("FreezeScheduled", "Freeze Scheduled"), "condition:FreezeScheduled", "maintenance", False, True, "Likely", None,
    ),
    "any event: preemption": (
        written.aks("VMEventScheduled", "Preempt Scheduled: Sun, 01 Mar 2026 12:00:38 GMT"), "condition:VMEventScheduled",
        "spot", True, True, "Likely", 38,
    ),
    "any event: an advice": (
        written.aks("VMEventScheduled", "SpotRebalanceRecommendation Advisory."), "condition:VMEventScheduled",
        "rebalance", False, True, "Possible", None,
    ),
    "any event: reboot": (
        written.aks("VMEventScheduled", "Reboot Scheduled: Sun, 01 Mar 2026 12:15:00 GMT"), "condition:VMEventScheduled",
        "maintenance", True, True, "Likely", 900,
    ),
    "any event: freeze": (
        written.aks("VMEventScheduled", "Freeze Scheduled"), "condition:VMEventScheduled", "maintenance", False, True, "Possible", None,
    ),
    "drained by AKS": (
        written.aks_drains(), "taint:remediator.kubernetes.azure.com/unschedulable", "maintenance", True, True, "Likely", None,
    ),
}  # fmt: skip
OTHERS: dict[str, Case] = {
    "Oracle: spot": (
        written.oke_impending(), "taint:ignore-taint.cluster-autoscaler.kubernetes.io/oke-impending-node-termination",
        "spot", True, False, "Certain", None,
    ),
    "cluster autoscaler: 600 s after its decision": (
        written.autoscaler_deletes(), "taint:ToBeDeletedByClusterAutoscaler", "scale-down", True, True, "Likely", 500,
    ),
    "cluster autoscaler: a candidate": (
        written.autoscaler_considers(), "taint:DeletionCandidateOfClusterAutoscaler", "scale-down", False, True, "Possible", None,
    ),
    "a cordon": (written.cordoned(), "node:unschedulable", "cordon", False, True, "Possible", None),
    "out of service: at once": (
        written.out_of_service(), "taint:node.kubernetes.io/out-of-service", "node-shutdown", True, False, "Certain", 0,
    ),
    "shut down at the cloud: at once": (
        written.shut_down_at_the_cloud(), "taint:node.cloudprovider.kubernetes.io/shutdown", "node-shutdown", True, False, "Certain", 0,
    ),
    "memory pressure": (
        written.under_pressure("memory-pressure"), "taint:node.kubernetes.io/memory-pressure", "node-pressure", False, True, "Possible", None,
    ),
    "disk pressure": (
        written.under_pressure("disk-pressure"), "taint:node.kubernetes.io/disk-pressure", "node-pressure", False, True, "Possible", None,
    ),
    "too many processes": (
        written.under_pressure("pid-pressure"), "taint:node.kubernetes.io/pid-pressure", "node-pressure", False, True, "Possible", None,
    ),
    "the kubelet shuts down": (
        written.shuts_down(), "condition:Ready/shutting-down", "node-shutdown", True, False, "Certain", None,
    ),
}  # fmt: skip
CASES = {
    f"{cloud}: {name}": case
    for cloud, cases in {"AWS": AWS, "Karpenter": KARPENTER, "Google": GOOGLE, "Azure": AZURE, "others": OTHERS}.items()
    for name, case in cases.items()
}


def told(item: Object, **more: Any) -> JobWorld:
    """A job in training whose worker 1 is on the node, after one round."""
    w = a_job().with_pods().training().change_node("n1", **more)
    found = translate.node(item)
    w.change_node(
        "n1",
        taints=found.taints,
        conditions=found.conditions,
        labels=found.labels,
        annotations=found.annotations,
        unschedulable=found.unschedulable,
        deleting_since=found.deleting_since,
    )
    w.round()
    return w


def notice(w: JobWorld, source: str) -> NoticeStatus:
    found = [n for n in w.status.notices if n.source == source]
    assert found, [n.source for n in w.status.notices]
    return found[0]


@pytest.mark.parametrize("name", CASES)
def test_what_a_component_writes_gives_its_notice(name: str) -> None:
    item, source, cause, acting, revocable, confidence, within = CASES[name]
    found = notice(told(item), source)
    assert (found.cause, found.acting, found.revocable, found.confidence.value, found.worker, found.node) == (
        cause, acting, revocable, confidence, 1, "n1",
    )  # fmt: skip
    left = None if found.deadline is None else (found.deadline - T0).total_seconds()
    assert left == within


def test_nodes_that_are_well_announce_nothing() -> None:
    for item in (written.node(), written.aks_is_well(), written.node(labels=written.GKE_LABELS)):
        assert told(item).status.notices == ()


EVENTS = {
    "SpotInterruption": ("Spot Interruption event received. Instance i-0 will be interrupted at 2026-03-01T12:02:00Z", "spot", True, 120),
    "SpotInterrupted": ("Spot interruption warning was triggered", "spot", True, 120),
    "RebalanceRecommendation": ("Rebalance recommendation received", "rebalance", False, None),
    "SpotRebalanceRecommendation": ("Spot rebalance recommendation was triggered", "rebalance", False, None),
    "ScheduledEvent": ("system-reboot will occur", "maintenance", False, None),
    "ASGLifecycle": ("ASG Lifecycle Termination event received", "scale-down", True, None),
    "SQSTermination": ("ASG Lifecycle Termination event received", "scale-down", True, None),
    "CapacityReservationInstanceInterrupted": ("", "spot", True, None),
    "InstanceTerminating": ("Instance is terminating", "scale-down", True, None),
    "InstanceStopping": ("Instance is stopping", "scale-down", True, None),
    "InstanceUnhealthy": ("An unhealthy warning was triggered for the instance", "maintenance", False, None),
    "TerminatingOnInterruption": ("Interruption triggered termination for the NodeClaim", "scale-down", True, None),
}  # fmt: skip


@pytest.mark.parametrize("reason", EVENTS)
def test_an_event_about_the_node_gives_its_notice(reason: str) -> None:
    message, cause, acting, within = EVENTS[reason]
    found = notice(told(written.node(), events=(NodeEvent(reason, message, T0),)), f"event:{reason}")
    assert (found.cause, found.acting) == (cause, acting)
    assert (None if found.deadline is None else (found.deadline - T0).total_seconds()) == within


def test_an_event_that_the_server_forgets_has_not_been_taken_back() -> None:
    w = told(written.node(), events=(NodeEvent("SpotInterrupted", "", T0),))
    w.change_node("n1", events=()).after(30).round()
    assert not notice(w, "event:SpotInterrupted").withdrawn


def test_every_row_of_the_table_has_a_case() -> None:
    seen = {case[1] for case in CASES.values()} | {f"event:{reason}" for reason in EVENTS}
    kindred = {"taint:karpenter.sh/disruption", "condition:InstanceTerminating", "taint:remediator.aks.microsoft.com/unschedulable",
               "taint:cloudprovider.azure.microsoft.com/draining"}  # fmt: skip
    assert {f"{r.kind}:{r.name}" for r in signal_table.TABLE} - seen == kindred


# ---- pods


PODS = {
    ("PreemptionByScheduler", "default-scheduler: preempting to accommodate a higher priority pod", True): "priority",
    ("EvictionByEvictionAPI", "Eviction API: evicting", True): "eviction",
    ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint", False): "node-lost",
    ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint ", True): "drain",
    ("DeletionByPodGC", "PodGC: node no longer exists", False): "node-lost",
    ("TerminationByKubelet", "Pod was terminated in response to imminent node shutdown.", True): "node-shutdown",
    ("TerminationByKubelet", "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi.", True): "node-pressure",
    ("TerminationByKubelet", 'Usage of EmptyDir volume "holdfast-local" exceeds the limit "1Gi".', True): "node-pressure",
    ("TerminationByKubelet", "Preempted in order to admit critical pod", True): "priority",
    ("WorkloadEvictedDueToPreempted", "Preempted to accommodate a workload in the ClusterQueue", True): "priority",
    ("WorkloadEvictedDueToClusterQueueStopped", "The ClusterQueue is stopped", True): "eviction",
}  # fmt: skip


@pytest.mark.parametrize(("reason", "message", "ready"), PODS)
def test_what_is_said_of_a_pod_names_its_cause(reason: str, message: str, ready: bool) -> None:
    w = a_job().with_pods().training().change_node("n1", ready=ready, ready_since=T0)
    w.change_pod(1, disruption=reason, disruption_message=message).round()
    assert notice(w, f"pod:DisruptionTarget/{reason}").cause == PODS[reason, message, ready]


# ---- what contradicts


def test_a_preemption_that_has_started_does_not_move_its_deadline_away() -> None:
    """Once it has started Azure names no time any more; the one that it named counts."""
    w = told(written.aks_preempt())
    assert notice(w, "condition:PreemptionScheduled").deadline == T0 + seconds(45)
    w.after(40).change_node("n1", conditions=translate.node(written.aks_preempt_started()).conditions).round()
    for _ in range(2):
        found = notice(w, "condition:PreemptionScheduled")
        assert (found.deadline, found.revocable) == (T0 + seconds(45), False)
        w.after(1).round()


def test_what_is_announced_in_worse_words_is_counted_from_then() -> None:
    w = told(written.aks("VMEventScheduled", "Redeploy"))
    assert notice(w, "condition:VMEventScheduled").deadline == T0 + seconds(600)
    w.after(100).change_node(
        "n1", conditions=translate.node(written.aks("VMEventScheduled", "Preempt")).conditions
    ).round()
    assert notice(w, "condition:VMEventScheduled").deadline == T0 + seconds(130)


def test_a_notice_that_prepares_does_not_weaken_one_that_acts() -> None:
    w = told(written.nth_spot())
    before = w.status.preemptions[-1]
    w.after(5).change_node(
        "n1", taints=(*w.nodes["n1"].taints, *translate.node(written.nth_rebalance()).taints)
    ).round()
    assert len(w.status.notices) == 3  # and the cordon
    assert w.status.preemptions[-1] == before


def test_a_notice_that_acts_after_one_that_prepares_begins_the_evacuation() -> None:
    w = told(written.nth_rebalance())
    assert not w.status.preemptions
    w.after(60).change_node("n1", taints=(*w.nodes["n1"].taints, *translate.node(written.nth_spot()).taints)).round()
    assert (w.status.preemptions[-1].cause, w.status.preemptions[-1].noticed_at) == ("spot", T0 + seconds(60))


def test_what_is_announced_again_after_it_was_taken_back_is_a_new_notice() -> None:
    w = told(written.autoscaler_considers())
    w.after(10).change_node("n1", taints=()).round()
    assert notice(w, "taint:DeletionCandidateOfClusterAutoscaler").withdrawn
    w.after(10).change_node("n1", taints=translate.node(written.autoscaler_considers()).taints).round()
    found = notice(w, "taint:DeletionCandidateOfClusterAutoscaler")
    assert (found.withdrawn, found.noticed_at) == (False, T0 + seconds(20))


def test_of_equally_strong_sources_the_one_with_a_deadline_names_the_cause_then_the_surer_one() -> None:
    item = written.gke_maintenance()
    item["spec"]["taints"] = written.nth_asg()["spec"]["taints"]
    assert told(item).status.preemptions[-1].cause == "scale-down", "certain before likely"
    w = told(written.gke_impending(), events=(NodeEvent("InstanceTerminating", "", T0),))
    assert w.status.preemptions[-1].cause == "spot", "a deadline before none"


# ---- deadlines: whichever comes first


def test_an_eviction_leaves_a_pod_no_more_than_its_grace() -> None:
    template = {**a_job().spec.template, "spec": {**a_job().spec.template["spec"], "terminationGracePeriodSeconds": 20}}
    w = a_job(template=template).with_pods().training().change_pod(1, disruption="EvictionByEvictionAPI")
    w.round()
    assert w.status.preemptions[-1].deadline == T0 + seconds(20)


def test_a_shutdown_of_the_node_leaves_what_the_cluster_owner_said() -> None:
    w = a_job().with_pods().training()
    w.signal_rules = SignalRules(node_shutdown_seconds=45)
    w.change_node("n1", conditions=translate.node(written.shuts_down()).conditions, labels=written.GKE_LABELS)
    w.round()
    assert w.status.preemptions[-1].deadline == T0 + seconds(45)


def test_what_the_node_says_of_its_own_shutdown_stands_before_what_the_cluster_owner_said() -> None:
    w = a_job().with_pods().training()
    w.signal_rules = SignalRules(node_shutdown_seconds=45)
    labels = {**written.GKE_LABELS, names.LABEL_NODE_SHUTDOWN: "70"}
    w.change_node("n1", conditions=translate.node(written.shuts_down()).conditions, labels=labels)
    w.round()
    assert w.status.preemptions[-1].deadline == T0 + seconds(70)


def test_a_shutdown_of_the_node_leaves_a_pod_no_more_than_its_grace() -> None:
    template = {**a_job().spec.template, "spec": {**a_job().spec.template["spec"], "terminationGracePeriodSeconds": 9}}
    w = a_job(template=template).with_pods().training()
    w.change_node("n1", conditions=translate.node(written.gke_shuts_down()).conditions, labels=written.GKE_LABELS)
    w.round()
    assert w.status.preemptions[-1].deadline == T0 + seconds(9)


@pytest.mark.parametrize("ahead", [-3600, -30, 30, 3600])
def test_a_condition_that_a_machine_dates_by_a_wrong_clock_leaves_the_time_that_it_means(ahead: float) -> None:
    w = a_job().with_pods().training()
    w.heard["uid-1-1"] = replace(w.heard["uid-1-1"], ahead_seconds=ahead)
    preempting = NodeCondition("GCESpotPreempting", "True", since=T0 + seconds(ahead))
    w.change_node("n1", conditions=(preempting,)).after(4).round()
    (found,) = w.status.notices
    assert (found.deadline, found.noticed_at) == (T0 + seconds(30), T0)


def test_of_cloud_karpenter_and_pod_whichever_comes_first() -> None:
    w = told(written.karpenter_ends_by(), events=(NodeEvent("SpotInterrupted", "", T0),))
    assert w.status.preemptions[-1].deadline == T0 + seconds(120), "the cloud's"
    w.after(5).deleted_pod(1, grace=30).round()
    assert w.status.preemptions[-1].deadline == T0 + seconds(35), "the pod's"
    assert w.status.preemptions[-1].cause == "spot"


def test_times_are_read_in_every_form_in_which_they_are_written() -> None:
    at = datetime(2026, 3, 1, 12, 5, tzinfo=UTC)
    for text in ("2026-03-01T12:05:00Z", "2026-03-01T13:05:00+01:00", "Sun, 1 Mar 2026 12:05:00 GMT", "1772366700",
                 "until 2026-03-01T12:05:00.000Z at the latest", "01 Mar 2026 12:05:00 GMT"):  # fmt: skip
        assert signal_table.named().of(text, T0) == signal_table.Deadline(at, said=True), text
    for text in (
        "",
        "soon",
        "2026-03-01T12:05:00",
        "Sun, 99 Mar 2026 12:05:00 GMT",
        "0001-01-01T00:00:00+14:00",
        "12:05",
        "9" * 40,
    ):
        assert signal_table.named().of(text, T0) is None, text


@given(words=st.text(max_size=200), name=st.sampled_from(sorted({(r.kind, r.name) for r in signal_table.TABLE})))
@settings(max_examples=300, deadline=None)
def test_whatever_is_written_a_decision_is_made(words: str, name: tuple[str, str]) -> None:
    kind, key = name
    w = a_job().with_pods().training()
    match kind:
        case "taint":
            w.tainted("n1", key, words)
        case "condition":
            w.with_condition("n1", key, words)
        case "event":
            w.change_node("n1", events=(NodeEvent(key, words, T0),))
        case _:
            w.change_node("n1", labels={key: words}, annotations={key: words})
    w.round()
    w.after(700).round()
    assert all(n.deadline is None or n.deadline.tzinfo is not None for n in w.status.notices)
