"""What an evacuation has in hand is not given up for what it only hopes for: a clean slot's flush under way, the one boundary that all ranks hold (E3, E4)."""

import asyncio
import dataclasses
from datetime import timedelta
from types import SimpleNamespace

from holdfast_agent import rounds, slots
from holdfast_agent.clock import now
from holdfast_agent.estimate import Estimates
from holdfast_agent.plan import Choice, Option, gives_way
from holdfast_agent.slots import SlotBook
from holdfast_api import peers
from holdfast_api import ranks as wire
from holdfast_api.messages import Cause
from holdfast_api.peers import Span
from tests.agent.lone import Barrier, Lone, image, in_thread


def exactly(seconds: float) -> Span:
    return Span(seconds, seconds, seconds)


def option(choice: Choice, seconds: float, available: float, *, gain: int, chance: float = 0.977) -> Option:
    return Option(choice, gain, exactly(seconds), available, chance, gain)


def test_the_clean_slots_flush_goes_on_where_there_is_time_for_both():
    clean, live = option(Choice.CLEAN, 5, 30, gain=10), option(Choice.LIVE, 12, 30, gain=11)
    assert not gives_way(clean, live)
    late = dataclasses.replace(live, available_seconds=16.0)
    assert gives_way(dataclasses.replace(clean, available_seconds=16.0), late), "one or the other: the newer one"


def test_what_is_nearly_durable_is_not_given_up_for_a_small_chance_of_little_more():
    clean, live = option(Choice.CLEAN, 1, 15, gain=100), option(Choice.LIVE, 14.5, 15, gain=101, chance=0.6)
    assert not gives_way(clean, live)
    assert gives_way(clean, dataclasses.replace(live, gain=1000))


class LateRank:
    """Votes for the boundary after the one it has passed, and captures that when it is released."""

    def __init__(self, one: Lone, boundary: int) -> None:
        self.one, self.boundary = one, boundary
        one.rank.boundary = boundary
        one.rank.link = SimpleNamespace(open=True, send=self.send)

    def send(self, message) -> None:
        one = self.one
        match message:
            case wire.CloseGate():
                one.rank.vote = wire.Vote(message.round, self.boundary + 1)
            case wire.ReleaseGate() if not one.rank.holds(message.target):
                one.capture(next(s for s in range(2) if s not in one.rank.book.held), message.target, "round")
        one.shared.changes.bump()


async def test_a_later_deadline_does_not_throw_away_a_clean_slot_that_is_being_written(tmp_path):
    chunk = Barrier("create", "/chunks/")
    one = Lone(tmp_path, before_call=chunk)
    LateRank(one, 10)
    for _ in range(20):
        one.shared.experience.stepped(30.0)
    one.capture(0, 10)
    running = one.rounds.request(Cause.SIGTERM, evacuate=True, deadline=now() + timedelta(seconds=10), worker=0)
    await in_thread(chunk.reached)  # there was no time for the rank's step: the clean slot is on its way
    assert [o.boundary for o in one.orders] == [10]
    one.rounds.wanted_by(0, now() + timedelta(seconds=3600))
    await asyncio.sleep(0.3)
    chunk.free.set()
    await asyncio.wait_for(running.ended.wait(), 60)
    assert [c.progress.boundary for c in one.commits()] == [10, 11], "what was in hand first, then what the time allows"
    await one.close()


def knowing(speed: float, step: float) -> Estimates:
    """As if both had been measured often."""
    usual = Estimates()
    known = {}
    for name, value in (("hurried", speed), ("step", step)):
        average = getattr(usual, name)
        for _ in range(60):
            average = average.seen(value, now().timestamp())
        known[name] = average
    return dataclasses.replace(usual, **known)


async def test_a_store_that_proves_to_be_fast_enough_gets_the_newest_state_after_all(tmp_path):
    """There is time for one of the two. What was not known when the older one was begun shows while it is written."""
    chunk = Barrier("create", "/chunks/")
    one = Lone(tmp_path, before_call=chunk)
    LateRank(one, 10)
    one.shared.experience.estimates = knowing(speed=len(image(0)) / 8, step=30.0)
    one.capture(0, 10)
    running = one.rounds.request(Cause.SPOT, evacuate=True, deadline=now() + timedelta(seconds=18), worker=0)
    await in_thread(chunk.reached)
    assert [o.boundary for o in one.orders] == [10], "the rank's step seemed to last too long"
    one.shared.experience.estimates = knowing(speed=len(image(0)) / 8, step=0.5)
    await asyncio.wait_for(running.ended.wait(), 60)
    chunk.free.set()
    assert [c.progress.boundary for c in one.commits()] == [11]
    assert [(p.choice, p.outcome) for p in one.shared.record.plans] == [
        ("clean-slot", "replaced"),
        ("store-only", "committed"),
    ]
    await one.close()


async def test_where_nothing_better_shows_the_older_state_is_written_to_its_end(tmp_path):
    chunk = Barrier("create", "/chunks/")
    one = Lone(tmp_path, before_call=chunk)
    LateRank(one, 10)
    one.shared.experience.estimates = knowing(speed=len(image(0)) / 8, step=30.0)
    one.capture(0, 10)
    running = one.rounds.request(Cause.SPOT, evacuate=True, deadline=now() + timedelta(seconds=18), worker=0)
    await in_thread(chunk.reached)
    await asyncio.sleep(2.5 * rounds.AGAIN_SECONDS)
    chunk.free.set()
    await one.until(lambda: one.commits(), "it is committed")
    assert [c.progress.boundary for c in one.commits()] == [10]
    await one.rounds.cancel(reopen=False)
    assert running.ended.is_set()
    await one.close()


def book(*boundaries: int) -> SlotBook:
    made = SlotBook(2)
    for slot, boundary in enumerate(boundaries):
        made.take(wire.CapturedSlot(slot, 1, boundary, "periodic", 0, 0.0, boundary, 0, 0, {}, {}))
    return made


def test_the_slot_that_every_rank_holds_is_given_up_last():
    assert slots.sacrificed_for_round(book(10, 20)) == 10
    assert slots.sacrificed_for_round(book(10, 20), pinned=10) == 20, "others do not hold 20"
    assert slots.sacrificed_for_round(book(10, 20), pinned=20) == 10
    assert slots.sacrificed_for_round(book(10)) is None
    one = SlotBook(1)
    one.take(wire.CapturedSlot(0, 1, 10, "periodic", 0, 0.0, 10, 0, 0, {}, {}))
    assert slots.sacrificed_for_round(one, pinned=10) == 10, "takeover.py says when"


async def test_a_rank_on_its_way_to_the_target_keeps_what_the_round_falls_back_to(tmp_path):
    one = Lone(tmp_path)
    heard = []
    one.rank.link = SimpleNamespace(open=True, send=heard.append)
    one.capture(0, 10)
    one.capture(1, 20)  # other workers have not passed it
    one.rank.vote = wire.Vote(1, 25)
    closing = asyncio.ensure_future(one.gates.close_gates(peers.CloseGates(1, 1, "pod-uid", 60.0)))
    await asyncio.sleep(0)
    one.rank.vote = wire.Vote(1, 25)
    one.shared.changes.bump()
    await closing
    order = peers.ReleaseGates(1, 1, "pod-uid", 25, None, pinned=10)
    releasing = asyncio.ensure_future(one.gates.release(order))
    await one.until(lambda: any(isinstance(m, wire.SlotFree) for m in heard), "it gets a slot for the target")
    assert one.rank.book.boundaries == {10}
    releasing.cancel()
    await one.gates.end()
    await one.close()


async def test_the_coordinator_names_the_newest_boundary_that_everybody_holds(tmp_path):
    one = Lone(tmp_path)
    LateRank(one, 24)
    one.capture(0, 10)
    one.capture(1, 20)
    running = one.rounds.request(Cause.SPOT, evacuate=True, deadline=None)
    await one.until(lambda: one.gates._target == 25, "the ranks are released")
    assert one.gates._pinned == 20
    await asyncio.wait_for(running.ended.wait(), 60)
    await one.close()
