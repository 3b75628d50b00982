"""What the notifier publishes, read by the operator: each announcement a notice of its own, and nothing lost where it cannot be read."""

from typing import Any

import nodes_as_written as written
from job_worlds import T0, JobWorld, a_job, of_type, seconds

from holdfast_api.messages import Cause
from holdfast_api.node_notices import NodeNotice
from holdfast_notifier import condition
from holdfast_operator.core.actions import DeletePod, SendNotice
from holdfast_operator.crd.v1alpha1 import Phase
from holdfast_operator.shell import translate

SPOT = NodeNotice("aws/spot-instance-action", Cause.SPOT, T0 - seconds(4), T0 + seconds(116), detail="terminate")
REBALANCE = NodeNotice("aws/rebalance-recommendation", Cause.REBALANCE, T0 - seconds(4), None, False, True)


def published(*notices: NodeNotice, **changes: Any) -> Any:
    item = written.node(conditions=[condition.make(notices, None, T0) | changes])
    return translate.node(item).conditions


def told(*notices: NodeNotice, **changes: Any) -> JobWorld:
    w = a_job().with_pods().training().after(5).change_node("n1", conditions=published(*notices, **changes))
    w.round()
    return w


def test_an_acting_notice_begins_the_evacuation_with_the_clouds_deadline() -> None:
    w = told(SPOT)
    (n,) = w.status.notices
    assert (n.source, n.cause, n.deadline, n.confidence.value) == (
        "notifier:aws/spot-instance-action", "spot", T0 + seconds(116), "Certain",
    )  # fmt: skip
    assert n.noticed_at == T0 - seconds(4), "as the notifier noticed it"
    entry = w.status.preemptions[-1]
    assert (w.status.phase, entry.cause, entry.deadline) == (Phase.EVACUATING, "spot", T0 + seconds(116))
    orders = of_type(w.round(), SendNotice)
    assert {o.order.notices[0].deadline for o in orders} == {T0 + seconds(116)}


def test_each_announcement_stands_by_itself_and_is_withdrawn_by_itself() -> None:
    w = told(REBALANCE)
    assert w.status.phase is Phase.RUNNING
    w.after(1).change_node("n1", conditions=published(SPOT, REBALANCE)).round()
    assert len(w.status.notices) == 2
    w.after(1).change_node("n1", conditions=published(SPOT)).round()
    assert {n.source: n.withdrawn for n in w.status.notices} == {
        "notifier:aws/spot-instance-action": False,
        "notifier:aws/rebalance-recommendation": True,
    }
    w.after(1).change_node("n1", conditions=published()).settled()
    assert (w.status.phase, w.status.preemptions) == (Phase.RUNNING, ())


def test_a_node_that_announces_nothing() -> None:
    assert told().status.notices == ()


def test_what_cannot_be_read_is_a_notice_all_the_same_and_never_deletes_a_pod() -> None:
    for message in (
        "",
        "soon",
        "{}",
        '{"schema": 2, "notices": []}',
        '{"schema": 1, "notices": [{"source": "x"}]}',
        "x" * 20_000,
    ):
        w = told(SPOT, message=message)
        (n,) = w.status.notices
        assert (n.source, n.cause, n.acting, n.revocable) == ("condition:HoldfastDisruption", "unknown", True, True)
        assert w.status.phase is Phase.EVACUATING
        assert not of_type(w.after(60).round(), DeletePod)
