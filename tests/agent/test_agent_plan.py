"""What is chosen in which situation (plan.py), which tiers survive what (tiers.py, F4), and what the agents' outlooks add up to (planning.py)."""

import dataclasses
import math
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent import plan, spans, tiers
from holdfast_agent.clock import Deadline
from holdfast_agent.plan import Choice, Option, Situation, choose
from holdfast_agent.planning import Planning, arrival_of, situation_of
from holdfast_agent.tiers import Loss, Tier
from holdfast_api.messages import Cause, Notice
from holdfast_api.peers import GateVotes, Outlook, Span

anything = st.floats(allow_nan=True, allow_infinity=True)
any_span = st.builds(Span, anything, anything, anything)
boundaries = st.integers(-1, 1 << 40)
situations = st.builds(
    Situation, anything, boundaries, boundaries, boundaries, any_span, any_span, st.none() | any_span, any_span,
    st.none() | any_span, st.booleans(), st.none() | any_span,
)  # fmt: skip


def exactly(seconds: float) -> Span:
    return Span(seconds, seconds, seconds)


def about(seconds: float) -> Span:
    return Span(seconds / 2, seconds, seconds * 2)


def a_situation(**fields) -> Situation:
    """100 committed, ranks at 120, no clean slot, a fast node, ten seconds for the store, thirty until the deadline."""
    usual = {
        "remaining_seconds": 31.0, "live_boundary": 120, "committed_boundary": 100, "arrival": exactly(0.1),
        "store": exactly(10), "commit": exactly(0.1), "node": exactly(1),
    }  # fmt: skip
    return Situation(**(usual | fields))


@pytest.mark.parametrize(
    ("situation", "choice"),
    [
        pytest.param(a_situation(), Choice.LIVE, id="there is time for node and store"),
        pytest.param(a_situation(node=None), Choice.STORE_ONLY, id="there is no node's directory"),
        pytest.param(a_situation(remaining_seconds=12.0), Choice.STORE_ONLY, id="the node's copy would make it late"),
        pytest.param(a_situation(remaining_seconds=10.9), Choice.NOTHING, id="not even the store fits"),
        pytest.param(
            a_situation(remaining_seconds=10.9, node_survives=True), Choice.NODE_ONLY, id="the node comes back"
        ),
        pytest.param(
            a_situation(remaining_seconds=20.0, store=about(15), node_survives=True), Choice.LIVE,
            id="the store may be late, and the node comes back",
        ),
        pytest.param(
            a_situation(remaining_seconds=20.0, store=about(15)), Choice.STORE_ONLY, id="the store may be late, and the node goes"
        ),
        pytest.param(
            a_situation(remaining_seconds=14.0, store=Span(12, 25, 50), node_survives=True), Choice.NODE_ONLY,
            id="the store would have to be faster than ever, and the node comes back",
        ),
        pytest.param(
            a_situation(remaining_seconds=14.0, store=Span(12, 25, 50)), Choice.STORE_ONLY,
            id="the store would have to be faster than ever, and the node goes",
        ),
        pytest.param(
            a_situation(remaining_seconds=10.0, store=Span(6, 9.5, 30), clean_boundary=110, arrival=exactly(4), node_survives=True),
            Choice.NODE_ONLY, id="an older state may be late too, and the newest is safe on nodes that come back",
        ),
        pytest.param(
            a_situation(remaining_seconds=10.0, store=exactly(6), clean_boundary=101, arrival=exactly(4), node_survives=True),
            Choice.CLEAN, id="an older state is surely in time: a checkpoint first",
        ),
        pytest.param(
            a_situation(remaining_seconds=1.7, node_survives=True), Choice.NOTHING, id="there is no time for the node"
        ),
        pytest.param(
            a_situation(remaining_seconds=10.0, rescue=exactly(3)), Choice.RESCUE, id="the store is late and a survivor is not"
        ),
        pytest.param(a_situation(rescue=exactly(3)), Choice.LIVE, id="the store is in time: nobody is asked to take anything"),
        pytest.param(
            a_situation(remaining_seconds=10.0, rescue=Span(3, 9.5, 30)), Choice.NOTHING, id="a survivor may be late, and then it was for nothing"
        ),
        pytest.param(
            a_situation(remaining_seconds=20.0, store=about(15), rescue=exactly(3)), Choice.RESCUE,
            id="the store may be late, and a survivor is not",
        ),
        pytest.param(
            a_situation(remaining_seconds=10.0, rescue=exactly(3), node_survives=True), Choice.RESCUE,
            id="those who stay are surer than those who may return",
        ),
        pytest.param(
            a_situation(remaining_seconds=10.0, store=exactly(6), clean_boundary=119, arrival=exactly(4), rescue=exactly(3)), Choice.CLEAN,
            id="a checkpoint that is one step older is worth more than what has to be finished",
        ),
        pytest.param(
            a_situation(remaining_seconds=12.0, arrival=exactly(5), clean_boundary=110), Choice.CLEAN,
            id="the ranks will not arrive in time, and there is a clean slot",
        ),
        pytest.param(
            a_situation(remaining_seconds=12.0, arrival=exactly(5)), Choice.NOTHING,
            id="the ranks will not arrive in time, and there is none",
        ),
        pytest.param(
            a_situation(live_boundary=0, clean_boundary=110), Choice.CLEAN, id="not every rank has voted (E3)"
        ),
        pytest.param(
            a_situation(live_boundary=0, clean_boundary=90), Choice.NOTHING, id="what is clean is older than the commit"
        ),
        pytest.param(a_situation(live_boundary=100), Choice.NOTHING, id="everything is committed"),
        pytest.param(a_situation(remaining_seconds=1.2, store=exactly(0)), Choice.NOTHING, id="two seconds of grace"),
        pytest.param(
            a_situation(remaining_seconds=25.0, store=about(10), arrival=about(2), clean_boundary=119), Choice.LIVE,
            id="waiting costs the clean slot nothing yet",
        ),
        pytest.param(
            a_situation(remaining_seconds=16.0, store=exactly(10), arrival=about(20), clean_boundary=119), Choice.CLEAN,
            id="one boundary is not worth a small chance",
        ),
        pytest.param(
            a_situation(remaining_seconds=17.5, store=exactly(10), arrival=about(5), clean_boundary=101), Choice.STORE_ONLY,
            id="nineteen boundaries are worth an even chance",
        ),
        pytest.param(
            a_situation(store=spans.UNKNOWN, commit=spans.UNKNOWN), Choice.LIVE, id="nothing is known yet: it is tried"
        ),
    ],
)  # fmt: skip
def test_the_choice(situation, choice):
    assert choose(situation).choice is choice


def test_a_clean_slot_that_is_being_written_already_needs_the_rest_of_its_time_only():
    short = a_situation(remaining_seconds=6.0, live_boundary=0, clean_boundary=110)
    assert choose(short).choice is Choice.NOTHING
    assert choose(dataclasses.replace(short, clean_store=exactly(3))).choice is Choice.CLEAN


def test_the_ranks_are_waited_for_as_long_as_the_clean_slot_can_still_be_written():
    found = choose(a_situation(clean_boundary=119, arrival=about(2)))
    assert found.arrive_seconds == pytest.approx(found.commit_seconds - 10.1 - plan.TURN_SECONDS)


def test_without_a_clean_slot_the_ranks_are_waited_for_as_long_as_anything_can_be_written():
    found = choose(a_situation(arrival=about(2), store=about(10)))
    assert found.arrive_seconds == pytest.approx(found.commit_seconds - 5.1)


@given(situations)
def test_nothing_is_begun_that_cannot_end_in_time_by_the_plans_own_estimate(situation):
    found = choose(situation)
    chosen = found.chosen
    assert 0 <= found.arrive_seconds <= found.exit_seconds
    assert 0 <= found.commit_seconds <= found.exit_seconds
    if not math.isnan(situation.remaining_seconds):
        assert found.exit_seconds <= max(0.0, situation.remaining_seconds - plan.EXIT_MARGIN_SECONDS)
    if chosen.choice is not Choice.NOTHING:
        assert chosen.seconds.best <= chosen.available_seconds <= found.exit_seconds
        assert chosen.chance > 0
        assert found.commit_seconds >= plan.WORTH_STARTING_SECONDS
        assert chosen.boundary > situation.committed_boundary
    assert found.words


@given(situations)
def test_a_plan_promises_at_least_what_each_single_option_does_and_never_less_than_nothing(situation):
    found = choose(situation)
    worth_starting = found.commit_seconds >= plan.WORTH_STARTING_SECONDS
    singles = [
        o.promise
        for o in found.options
        if worth_starting and o.choice in (Choice.LIVE, Choice.STORE_ONLY, Choice.CLEAN)
    ]
    best = max(singles, default=0.0)
    assert found.promise >= best - plan.NODE_MAY_COST * max(o.gain for o in found.options) - 1e-6
    assert found.promise >= 0


@given(situations)
def test_a_rescue_is_chosen_only_where_it_is_in_time_and_the_upload_of_the_newest_state_is_not(situation):
    found = choose(situation)
    by_choice = {o.choice: o for o in found.options}
    if found.choice is Choice.RESCUE:
        assert found.chosen.chance >= plan.CONFIDENT
        assert all(
            by_choice[c].chance < plan.CONFIDENT
            for c in (Choice.LIVE, Choice.STORE_ONLY)
            if c in by_choice and by_choice[c].gain
        )
        assert found.promise > max(o.promise for o in found.options if o.choice is not Choice.RESCUE)
    assert situation.rescue is not None or Choice.RESCUE not in by_choice


@given(situations)
def test_where_nobody_can_take_anything_the_plan_is_what_it_was(situation):
    """A rescue that is too slow changes nothing."""
    without = choose(dataclasses.replace(situation, rescue=None))
    slow = choose(dataclasses.replace(situation, rescue=spans.UNKNOWN))
    assert (without.chosen, without.promise, without.arrive_seconds) == (slow.chosen, slow.promise, slow.arrive_seconds)


def promise_of(found: plan.Plan, choice: Choice) -> float:
    return next((o.promise for o in found.options if o.choice is choice), 0.0)


@given(situations, st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_later_deadline_never_promises_less(situation, remaining, more):
    early = choose(dataclasses.replace(situation, remaining_seconds=remaining))
    late = choose(dataclasses.replace(situation, remaining_seconds=remaining + more))
    durable = (Choice.LIVE, Choice.STORE_ONLY, Choice.CLEAN)
    for option in durable:
        assert promise_of(late, option) >= promise_of(early, option) - 1e-6
    assert late.promise >= early.promise - plan.NODE_MAY_COST * max(o.gain for o in late.options) - 1e-6
    if early.choice in durable:
        assert late.choice in durable or late.promise > early.promise
    if early.choice is not Choice.NOTHING:
        assert late.choice is not Choice.NOTHING


@pytest.mark.parametrize(
    ("tier", "lasts_through"),
    [
        (Tier.ARENA, Loss.CONTAINER), (Tier.POD, Loss.CONTAINER), (Tier.NODE, Loss.POD), (Tier.NETWORK, Loss.NODE),
        (Tier.STORE, Loss.NODE),
    ],
)  # fmt: skip
def test_a_tier_survives_what_it_does_not_stand_on(tier, lasts_through):
    assert [loss for loss in Loss if tiers.survives(tier, loss)] == [x for x in Loss if x <= lasts_through]


def test_every_cause_has_a_loss_and_one_that_does_not_say_why_counts_as_the_worst():
    assert {tiers.loss_of(c) for c in Cause} == set(Loss)
    assert {c for c in Cause if c not in tiers._LOSSES} == set()
    assert tiers.loss_of(Cause.SIGTERM) is tiers.loss_of(Cause.SPOT) is Loss.NODE
    assert tiers.loss_of(Cause.DELETION) is Loss.POD
    assert [tiers.tier_of(v) for v in ("pod", "node", "network", "something new")] == [
        Tier.POD, Tier.NODE, Tier.NETWORK, Tier.POD,
    ]  # fmt: skip


def an_outlook(**fields) -> Outlook:
    usual = {
        "boundary": 10, "since_seconds": 0.0, "step": exactly(4), "copy": exactly(1), "store": exactly(10),
        "node": exactly(2), "commit": exactly(0.1), "volume": "node",
        "finishes": True,
    }  # fmt: skip
    return Outlook(**(usual | fields))


def test_the_ranks_arrive_when_the_slowest_has_ended_its_steps_and_copied():
    assert arrival_of([an_outlook()], 10, 0.0) == exactly(1)
    assert arrival_of([an_outlook()], 12, 0.0) == exactly(9)
    assert arrival_of([an_outlook(since_seconds=3.0)], 11, 0.5) == exactly(1.5)
    assert arrival_of([an_outlook(), an_outlook(boundary=9)], 11, 0.0) == exactly(9)
    assert arrival_of([an_outlook(), None], 11, 0.0).sure == spans.LONG_SECONDS


def test_a_rank_that_has_stood_still_longer_than_any_step_is_not_waited_for_with_confidence():
    hung = arrival_of([an_outlook(since_seconds=60.0)], 11, 0.0)
    assert hung.likely >= 60
    assert choose(a_situation(arrival=hung, clean_boundary=119)).arrive_seconds < 30 - 10
    assert choose(a_situation(arrival=hung, clean_boundary=119, remaining_seconds=11.2)).choice is Choice.CLEAN


def in_all(*outlooks: Outlook | None, cause: Cause = Cause.DELETION) -> Situation:
    return situation_of(
        outlooks, tiers.loss_of(cause), remaining_seconds=30, live_boundary=11, committed_boundary=5, clean_boundary=0,
        arrival=spans.NONE,
    )  # fmt: skip


def test_the_slowest_worker_counts():
    found = in_all(an_outlook(store=exactly(3)), an_outlook(store=exactly(7), node=exactly(9)))
    assert (found.store, found.node) == (exactly(7), exactly(9))


def test_an_agent_that_does_not_say_what_it_expects_is_of_any_speed():
    found = in_all(an_outlook(), None)
    assert found.store.sure == spans.LONG_SECONDS
    assert found.node is None
    assert choose(found).choice is Choice.STORE_ONLY


def test_a_copy_on_the_node_counts_only_where_it_survives_the_cause():
    assert in_all(an_outlook(), cause=Cause.DELETION).node_survives
    assert not in_all(an_outlook(), cause=Cause.SPOT).node_survives
    assert not in_all(an_outlook(), an_outlook(volume="pod"), cause=Cause.DELETION).node_survives
    assert in_all(an_outlook(volume="network"), cause=Cause.SPOT).node_survives


def test_a_copy_on_the_node_counts_only_where_somebody_will_finish_it():
    """E6: an agent of an older release leaves it there."""
    assert not in_all(an_outlook(), an_outlook(finishes=False)).node_survives


def test_what_is_on_the_nodes_already_is_not_written_there_again():
    fields = {"remaining_seconds": 9, "committed_boundary": 5, "clean_boundary": 0, "arrival": spans.NONE}
    said = [
        situation_of([an_outlook()], Loss.POD, live_boundary=11, on_node_boundary=at, **fields) for at in (0, 10, 11)
    ]
    assert [choose(s).choice for s in said] == [Choice.NODE_ONLY, Choice.NODE_ONLY, Choice.NOTHING]


def a_notice(cause: Cause, worker: int = 0, **fields) -> Notice:
    return Notice(cause.value, cause, worker, "node", datetime(2026, 1, 1, tzinfo=UTC), **fields)


@pytest.mark.parametrize(
    ("records", "loss"),
    [
        pytest.param([], Loss.NODE, id="nothing is told: what the round was begun for"),
        pytest.param([a_notice(Cause.EVICTION)], Loss.POD, id="an eviction"),
        pytest.param([a_notice(Cause.SIGTERM)], Loss.NODE, id="SIGTERM alone does not say why"),
        pytest.param([a_notice(Cause.SIGTERM), a_notice(Cause.DELETION)], Loss.POD, id="SIGTERM, and why"),
        pytest.param([a_notice(Cause.SIGTERM), a_notice(Cause.DELETION, 1)], Loss.NODE, id="SIGTERM of another worker"),
        pytest.param([a_notice(Cause.EVICTION), a_notice(Cause.SPOT, 1)], Loss.NODE, id="another worker's machine"),
        pytest.param([a_notice(Cause.EVICTION), a_notice(Cause.SPOT)], Loss.NODE, id="its own machine as well"),
        pytest.param(
            [a_notice(Cause.EVICTION), a_notice(Cause.SPOT, withdrawn=True), a_notice(Cause.CORDON, acting=False)],
            Loss.POD,
            id="taken back, or not acting",
        ),
    ],
)
def test_all_notices_together_say_what_goes(records, loss):
    """F4: never a promise on a machine that goes."""
    assert tiers.worst(records, Cause.SPOT) is loss


any_outlook = st.none() | st.builds(
    Outlook, boundaries, anything, any_span, any_span, any_span, st.none() | any_span, any_span, st.text(max_size=4)
)


@given(st.lists(any_outlook, max_size=4), boundaries, anything, st.sampled_from(Cause), anything)
def test_whatever_the_agents_say_there_is_a_plan(outlooks, target, waited, cause, remaining):
    arrival = arrival_of(outlooks, target, waited)
    choose(
        situation_of(
            outlooks, tiers.loss_of(cause), remaining_seconds=remaining, live_boundary=target, committed_boundary=0, clean_boundary=0,
            arrival=arrival,
        )
    )  # fmt: skip


def test_a_save_that_lasts_longer_than_was_sure_is_finished_rather_than_begun_anew():
    slow = an_outlook(store=exactly(0.1), beside=exactly(0.2), node=None)
    fields = {
        "remaining_seconds": 11,
        "live_boundary": 0,
        "committed_boundary": 5,
        "clean_boundary": 10,
        "arrival": spans.UNKNOWN,
    }
    believed = choose(situation_of([slow], Loss.NODE, **fields, clean_under_way_seconds=0.1))
    assert (believed.choice, believed.chosen.joins) == (Choice.CLEAN, True)
    refuted = choose(situation_of([slow], Loss.NODE, **fields, clean_under_way_seconds=3.0))
    assert (refuted.choice, refuted.chosen.joins) == (Choice.CLEAN, True)
    assert refuted.chosen.chance < 0.8


def test_what_lasts_longer_than_ever_is_not_expected_to_last_for_ever():
    """As `make demo` once met it: two minutes left, and a save under way that had been sure to take a fifth of a second."""
    assert spans.chance(spans.less(exactly(1), 2), 2) == pytest.approx(0.5), "as long again, as a rule"
    assert spans.chance(spans.less(exactly(1), 2), 2 * spans.OUTLASTS) == spans.SURE
    slow = an_outlook(store=exactly(0.1), beside=exactly(0.2), node=None)
    found = choose(
        situation_of(
            [slow], Loss.NODE, remaining_seconds=119, live_boundary=21, committed_boundary=10, clean_boundary=20,
            arrival=about(0.5), clean_under_way_seconds=3.0,
        )
    )  # fmt: skip
    assert (found.choice, found.chosen.boundary) == (Choice.STORE_ONLY, 21)
    assert found.chosen.chance >= plan.CONFIDENT


def test_what_workers_say_again_renews_speeds_and_not_how_far_their_ranks_are():
    """They stand at their gates: the time that passes there says nothing of a step."""
    shared = SimpleNamespace(order=SimpleNamespace(members=(None,)), last_boundary=5)
    planning = Planning(shared, 1, Cause.SPOT, Deadline.after(30))

    def said(**fields) -> list[GateVotes]:
        return [GateVotes({"0": 11}, outlook=an_outlook(**fields))]

    planning.heard(said(since_seconds=1.0), 11)
    planning.renewed(said(since_seconds=50.0, store=exactly(3)))
    (found,) = planning._outlooks
    assert (found.since_seconds, found.boundary, found.store) == (1.0, 10, exactly(3))
    planning.renewed([])
    assert planning._outlooks == (found,), "who does not answer changes nothing"


def test_an_upload_that_may_be_late_gets_a_second_way_only_where_that_is_surely_in_time():
    running = Option(Choice.LIVE, 120, exactly(10), 20.0, 0.977, 20)
    late = dataclasses.replace(running, chance=0.5)
    assert not plan.needs_rescue(running, exactly(3), 20.0)
    assert plan.needs_rescue(late, exactly(3), 20.0)
    assert not plan.needs_rescue(late, exactly(30), 20.0)
    assert not plan.needs_rescue(late, Span(3, 19, 60), 20.0)
    assert not plan.needs_rescue(late, spans.UNKNOWN, 20.0)
