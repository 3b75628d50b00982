"""Which announcement means what, as data (F2). Each row names a taint, a condition, a label, an annotation or an event of a node, as the component writes it
that makes it; docs/notices.md shows the same table to people.

Acting means evacuate; preparing means save now and go on training. Confidence is how sure it is that the worker goes at all, whenever that is. A deadline rule
gives the moment at which it goes; without one the configured default counts (F2). Of several rows of one name the first that fits decides, so that special
ones stand before general ones, and a user's own before all of these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from holdfast_api import moments
from holdfast_api.messages import Cause
from holdfast_operator.crd.v1alpha1 import Confidence

ACTING, PREPARING = True, False
CERTAIN, LIKELY, POSSIBLE = Confidence.CERTAIN, Confidence.LIKELY, Confidence.POSSIBLE

Reader = Callable[[str], datetime | None]
"""The value or message of what was found -> the moment that it names."""


@dataclass(frozen=True, slots=True)
class Deadline:
    at: datetime
    said: bool
    """The source named this moment. False: it was counted from when the announcement was made."""


@dataclass(frozen=True, slots=True)
class DeadlineRule:
    """When the worker goes. Pure and total."""

    read: Reader | None = None
    """Finds a moment in the words of the source."""
    plus_seconds: int = 0
    """Between that moment and the end of the worker."""
    otherwise_seconds: int | None = None
    """From the announcement, where no moment is named; None: nobody knows."""

    def of(self, words: str, since: datetime) -> Deadline | None:
        named = self.read(words) if self.read is not None else None
        if named is not None:
            return Deadline(moments.after(named, self.plus_seconds), said=True)
        if self.otherwise_seconds is None:
            return None
        return Deadline(moments.after(since, self.otherwise_seconds), said=False)


UNKNOWN = DeadlineRule()


def after(seconds: int) -> DeadlineRule:
    return DeadlineRule(otherwise_seconds=seconds)


def named(*, plus_seconds: int = 0, otherwise_seconds: int | None = None) -> DeadlineRule:
    return DeadlineRule(moments.in_text, plus_seconds, otherwise_seconds)


def exactly(deadline: datetime) -> DeadlineRule:
    return DeadlineRule(lambda words: deadline)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    kind: str
    """taint, condition, label, annotation or event."""
    name: str
    """Key of a taint, label or annotation; type of a condition; reason of an event."""
    cause: Cause
    acting: bool
    confidence: Confidence
    revocable: bool = False
    deadline: DeadlineRule = UNKNOWN
    value: str = ""
    """Only with this value; of conditions and events: only with these words in reason or message. Empty: with any."""

    def fits(self, name: str, value: str) -> bool:
        if name != self.name:
            return False
        if self.kind in ("condition", "event"):
            return self.value.lower() in value.lower()
        return self.value in ("", value)


@dataclass(frozen=True, slots=True)
class Signal:
    """One announcement that stands right now."""

    source: str
    cause: Cause
    acting: bool
    revocable: bool
    confidence: Confidence
    since: datetime | None = None
    """When it was made, where that is known."""
    detail: str = ""
    value: str = ""
    rule: DeadlineRule = UNKNOWN

    def deadline(self, noticed_at: datetime) -> Deadline | None:
        """When the worker goes. What counts from the announcement counts from `noticed_at` where nobody says when it was made."""
        return self.rule.of(self.value, self.since or noticed_at)


@dataclass(frozen=True, slots=True)
class SignalRules:
    """What the operator was told when it was installed, beside the table."""

    own: tuple[Row, ...] = ()
    """The cluster owner's rows; they stand before all others."""
    node_shutdown_seconds: int = 0
    """What kubelets leave ordinary pods when they shut their node down; 0: not known."""


NO_RULES = SignalRules()


NTH = "aws-node-termination-handler"
GKE = "cloud.google.com"

AWS = (
    # The node termination handler taints only where it was told to. 2 min for spot; rebalance and maintenance are only ahead.
    Row("taint", f"{NTH}/spot-itn", Cause.SPOT, ACTING, CERTAIN, deadline=after(120)),
    Row("taint", f"{NTH}/asg-lifecycle-termination", Cause.SCALE_DOWN, ACTING, CERTAIN),
    Row("taint", f"{NTH}/rebalance-recommendation", Cause.REBALANCE, PREPARING, POSSIBLE, revocable=True),
    Row("taint", f"{NTH}/scheduled-maintenance", Cause.MAINTENANCE, PREPARING, LIKELY, revocable=True),
    # It writes this label when it has drained a node for a reboot, and removes it after the reboot.
    Row("label", f"{NTH}/action", Cause.MAINTENANCE, ACTING, LIKELY, revocable=True, value="UncordonAfterReboot"),
    Row("event", "SpotInterruption", Cause.SPOT, ACTING, CERTAIN, deadline=after(120)),
    Row("event", "RebalanceRecommendation", Cause.REBALANCE, PREPARING, POSSIBLE, revocable=True),
    Row("event", "ScheduledEvent", Cause.MAINTENANCE, PREPARING, LIKELY, revocable=True),
    Row("event", "ASGLifecycle", Cause.SCALE_DOWN, ACTING, CERTAIN),
    Row("event", "SQSTermination", Cause.SCALE_DOWN, ACTING, CERTAIN),
)  # fmt: skip

KARPENTER = (
    # The taint alone has no deadline and may be taken back. The annotation is the claim's hard deadline; the operator copies it from the NodeClaim.
    Row("taint", "karpenter.sh/disrupted", Cause.SCALE_DOWN, PREPARING, LIKELY, revocable=True),
    Row("taint", "karpenter.sh/disruption", Cause.SCALE_DOWN, PREPARING, LIKELY, revocable=True),
    Row("annotation", "karpenter.sh/nodeclaim-termination-timestamp", Cause.SCALE_DOWN, ACTING, CERTAIN, deadline=named()),
    Row("condition", "InstanceTerminating", Cause.SCALE_DOWN, ACTING, CERTAIN),
    Row("event", "SpotInterrupted", Cause.SPOT, ACTING, CERTAIN, deadline=after(120)),
    Row("event", "SpotRebalanceRecommendation", Cause.REBALANCE, PREPARING, POSSIBLE, revocable=True),
    Row("event", "CapacityReservationInstanceInterrupted", Cause.SPOT, ACTING, CERTAIN),
    Row("event", "InstanceTerminating", Cause.SCALE_DOWN, ACTING, CERTAIN),
    Row("event", "InstanceStopping", Cause.SCALE_DOWN, ACTING, CERTAIN),
    Row("event", "InstanceUnhealthy", Cause.MAINTENANCE, PREPARING, LIKELY, revocable=True),
    Row("event", "TerminatingOnInterruption", Cause.SCALE_DOWN, ACTING, CERTAIN),
)  # fmt: skip

GOOGLE = (
    # 30 s to hard off, of which the kubelet gives user pods 15.
    Row("taint", f"{GKE}/impending-node-termination", Cause.SPOT, ACTING, CERTAIN, deadline=after(15)),
    Row("taint", f"{GKE}/maintenance-window-started", Cause.MAINTENANCE, ACTING, LIKELY, revocable=True),
    Row("label", f"{GKE}/active-node-maintenance", Cause.MAINTENANCE, ACTING, LIKELY, revocable=True, value="ONGOING"),
    Row("label", f"{GKE}/perform-maintenance", Cause.MAINTENANCE, ACTING, LIKELY, revocable=True, value="true"),
    Row("label", f"{GKE}/scheduled-maintenance-time", Cause.MAINTENANCE, PREPARING, LIKELY, revocable=True),
    Row("condition", "GCESpotPreempting", Cause.SPOT, ACTING, CERTAIN, deadline=after(30)),
)  # fmt: skip


def _azure(kind: str, value: str, cause: Cause, seconds: int) -> Row:
    """Azure has announced and then not preempted, so all are revocable. Without a time in its words the least that Azure gives counts."""
    rule = named(otherwise_seconds=seconds)
    return Row("condition", kind, cause, ACTING, LIKELY, revocable=True, deadline=rule, value=value)


AZURE = (
    # The node problem detector of AKS: "EVENTTYPE STATUS: TIME. …", without a time once the event has started.
    Row("condition", "PreemptionScheduled", Cause.REBALANCE, PREPARING, POSSIBLE, revocable=True, value="SpotRebalanceRecommendation"),
    Row("condition", "PreemptionScheduled", Cause.SPOT, ACTING, CERTAIN, deadline=after(10), value="Preempt Started"),
    _azure("PreemptionScheduled", "", Cause.SPOT, 30),
    _azure("PreemptScheduled", "", Cause.SPOT, 30),
    _azure("TerminateScheduled", "", Cause.SCALE_DOWN, 300),
    _azure("RedeployScheduled", "", Cause.MAINTENANCE, 600),
    _azure("RebootScheduled", "", Cause.MAINTENANCE, 900),
    Row("condition", "FreezeScheduled", Cause.MAINTENANCE, PREPARING, LIKELY, revocable=True),
    Row("condition", "VMEventScheduled", Cause.REBALANCE, PREPARING, POSSIBLE, revocable=True, value="SpotRebalanceRecommendation"),
    Row("condition", "VMEventScheduled", Cause.SPOT, ACTING, CERTAIN, deadline=after(10), value="Preempt Started"),
    _azure("VMEventScheduled", "Preempt", Cause.SPOT, 30),
    _azure("VMEventScheduled", "Terminate", Cause.SCALE_DOWN, 300),
    _azure("VMEventScheduled", "Redeploy", Cause.MAINTENANCE, 600),
    _azure("VMEventScheduled", "Reboot", Cause.MAINTENANCE, 900),
    Row("condition", "VMEventScheduled", Cause.MAINTENANCE, PREPARING, POSSIBLE, revocable=True),
    Row("taint", "remediator.kubernetes.azure.com/unschedulable", Cause.MAINTENANCE, ACTING, LIKELY, revocable=True),
    Row("taint", "remediator.aks.microsoft.com/unschedulable", Cause.MAINTENANCE, ACTING, LIKELY, revocable=True),
    Row("taint", "cloudprovider.azure.microsoft.com/draining", Cause.SPOT, ACTING, CERTAIN, deadline=after(30)),
)  # fmt: skip

ORACLE = (
    Row("taint", "ignore-taint.cluster-autoscaler.kubernetes.io/oke-impending-node-termination", Cause.SPOT, ACTING, CERTAIN),
)  # fmt: skip

AUTOSCALER = (
    # The value is when it decided; it waits at most --max-graceful-termination-sec, 600 by default.
    Row("taint", "ToBeDeletedByClusterAutoscaler", Cause.SCALE_DOWN, ACTING, LIKELY, revocable=True, deadline=named(plus_seconds=600, otherwise_seconds=600)),
    Row("taint", "DeletionCandidateOfClusterAutoscaler", Cause.SCALE_DOWN, PREPARING, POSSIBLE, revocable=True),
)  # fmt: skip

KUBERNETES = (
    Row("taint", "node.kubernetes.io/out-of-service", Cause.NODE_SHUTDOWN, ACTING, CERTAIN, deadline=after(0)),
    Row("taint", "node.cloudprovider.kubernetes.io/shutdown", Cause.NODE_SHUTDOWN, ACTING, CERTAIN, deadline=after(0)),
    Row("taint", "node.kubernetes.io/memory-pressure", Cause.NODE_PRESSURE, PREPARING, POSSIBLE, revocable=True),
    Row("taint", "node.kubernetes.io/disk-pressure", Cause.NODE_PRESSURE, PREPARING, POSSIBLE, revocable=True),
    Row("taint", "node.kubernetes.io/pid-pressure", Cause.NODE_PRESSURE, PREPARING, POSSIBLE, revocable=True),
)  # fmt: skip

TABLE: tuple[Row, ...] = (*AWS, *KARPENTER, *GOOGLE, *AZURE, *ORACLE, *AUTOSCALER, *KUBERNETES)


@dataclass(frozen=True, slots=True)
class Disruption:
    """What a reason of the pod's condition DisruptionTarget (Kueue: TerminationTarget) means. The first row that fits decides."""

    reason: str
    """Empty: any. Kueue adds to WorkloadEvicted what the eviction is due to."""
    cause: Cause
    words: str = ""
    """Only with these in the message."""

    def fits(self, reason: str, message: str) -> bool:
        return self.reason in ("", reason) and self.words.lower() in message.lower()


DISRUPTIONS: tuple[Disruption, ...] = (
    Disruption("PreemptionByScheduler", Cause.PRIORITY),
    Disruption("EvictionByEvictionAPI", Cause.EVICTION),
    Disruption("DeletionByTaintManager", Cause.NODE_LOST),
    Disruption("DeletionByPodGC", Cause.NODE_LOST),
    Disruption("TerminationByKubelet", Cause.NODE_PRESSURE, words="low on resource"),
    Disruption("TerminationByKubelet", Cause.NODE_PRESSURE, words="exceed"),
    Disruption("TerminationByKubelet", Cause.PRIORITY, words="critical pod"),
    Disruption("TerminationByKubelet", Cause.NODE_SHUTDOWN),
    Disruption("WorkloadEvictedDueToPreempted", Cause.PRIORITY),
    Disruption("", Cause.EVICTION),
)  # fmt: skip


def cause_of_disruption(reason: str, message: str) -> Cause:
    return next(row.cause for row in DISRUPTIONS if row.fits(reason, message))
