"""A8, E3, J6: when a round may take a slot that holds an older boundary."""

import asyncio

import pytest

from holdfast_agent import clocks, takeover
from holdfast_agent.slots import SlotBook
from holdfast_agent.takeover import Take, decide, waits
from holdfast_api import peers
from holdfast_api import ranks as wire
from holdfast_api.messages import AgentPhase, Cause
from tests.agent.lone import Barrier, Lone, in_thread


def book(count: int, *boundaries: int) -> SlotBook:
    made = SlotBook(count)
    for slot, boundary in enumerate(boundaries):
        made.take(wire.CapturedSlot(slot, 1, boundary, "periodic", 0, 0.0, boundary, 0, 0, {}, {}))
    return made


@pytest.mark.parametrize(
    ("slots", "emergency", "arrived", "take"),
    [
        (book(2, 10), True, False, Take.NOTHING),
        (book(2, 10, 20), True, False, Take.NOW),
        (book(2, 10, 20), False, False, Take.NOW),
        (book(1), True, True, Take.NOTHING),
        (book(1, 10), True, False, Take.LATER),  # the rank may never arrive: 10 is what there is
        (book(1, 10), True, True, Take.NOW),
        (book(1, 10), False, True, Take.LATER),  # training goes on: the save in flight is completed
    ],
)
def test_the_only_slot_is_taken_late_and_in_an_emergency_only(slots, emergency, arrived, take):
    assert decide(slots, emergency=emergency, arrived=arrived) is take


def with_one_slot(lone: Lone) -> Lone:
    lone.rank.book = SlotBook(1)
    return lone


class OneSlotRank:
    """Stands in for the rank's link: votes `at` when the gate closes."""

    def __init__(self, lone: Lone, at: int) -> None:
        self.lone, self.at, self.heard, self.open = lone, at, [], True

    def send(self, message) -> None:
        self.heard.append(message)
        if isinstance(message, wire.CloseGate):
            self.lone.rank.vote = wire.Vote(message.round, self.at)
            self.lone.shared.changes.bump()

    def was_told(self, kind: type) -> bool:
        return any(isinstance(m, kind) for m in self.heard)


async def test_in_an_emergency_the_slot_of_the_save_in_flight_is_given_to_the_rank_once_it_stands_at_the_target(
    tmp_path,
):
    stuck = Barrier("create", "/chunks/")
    lone = with_one_slot(Lone(tmp_path, before_call=stuck))
    lone.rank.link = rank = OneSlotRank(lone, at=12)
    lone.capture(0, 10)
    lone.offer(10)
    await in_thread(stuck.reached)  # the save of boundary 10 is being written
    running = lone.rounds.request(Cause.SPOT, evacuate=True, deadline=None)
    await lone.until(lambda: rank.was_told(wire.ReleaseGate), "the rank may run to the target")
    await asyncio.sleep(0.2)
    assert lone.rank.holds(10), "it may never arrive"
    lone.rank.boundary = 12
    lone.shared.changes.bump()
    stuck.free.set()
    await lone.until(lambda: rank.was_told(wire.SlotFree), "it stands there and waits for the slot")
    lone.capture(0, 12, "round")
    lone.shared.changes.bump()
    await asyncio.wait_for(running.ended.wait(), 30)
    assert [c.progress.boundary for c in lone.commits()] == [12]
    await lone.close()


async def test_a_rank_that_never_arrives_leaves_the_older_boundary_to_be_saved(tmp_path):
    lone = with_one_slot(Lone(tmp_path))
    lone.rank.link = rank = OneSlotRank(lone, at=12)
    lone.capture(0, 10)
    running = lone.rounds.request(Cause.SPOT, evacuate=True, deadline=None)
    await lone.until(lambda: rank.was_told(wire.ReleaseGate))
    rank.open = False  # it has died on the way
    lone.shared.changes.bump()
    await asyncio.wait_for(running.ended.wait(), 30)
    assert [c.progress.boundary for c in lone.commits()] == [10]
    await lone.close()


async def test_a_round_that_training_survives_waits_for_the_save_in_flight(tmp_path):
    stuck = Barrier("create", "/chunks/")
    lone = with_one_slot(Lone(tmp_path, before_call=stuck))
    lone.rank.link = rank = OneSlotRank(lone, at=12)
    lone.capture(0, 10)
    lone.offer(10)
    await in_thread(stuck.reached)
    running = lone.rounds.request(Cause.MANUAL, evacuate=False, deadline=None)
    await lone.until(lambda: rank.was_told(wire.ReleaseGate))
    lone.rank.boundary = 12
    lone.shared.changes.bump()
    await asyncio.sleep(0.2)
    assert lone.rank.holds(10)
    stuck.free.set()
    await lone.until(lambda: rank.was_told(wire.SlotFree), "its save has ended")
    lone.capture(0, 12, "round")
    lone.shared.changes.bump()
    await asyncio.wait_for(running.ended.wait(), 30)
    assert [c.progress.boundary for c in lone.commits()] == [10, 12]
    await lone.close()


def test_orders_of_older_releases_are_read_as_emergencies():
    order = peers.ReleaseGates(1, 1, "pod", 12, None)
    assert order.evacuate


@pytest.mark.parametrize(
    ("slots", "boundary", "target", "stands"),
    [
        (book(1), 20, None, False),
        (book(1, 10), 20, None, True),  # a periodic capture is due
        (book(1, 10), 15, None, False),
        (book(1, 20), 20, None, False),  # it has been made
        (book(1, 10), 15, 15, True),
        (book(1, 10), 14, 15, False),
        (book(1, 10), 20, 25, True),  # on its way to the target
        (book(2, 10), 20, None, False),
    ],
)
def test_a_rank_stands_where_a_capture_is_due_and_no_slot_is_free(slots, boundary, target, stands):
    assert waits(slots, boundary=boundary, every=10, target=target) is stands


async def test_a_slot_whose_save_nobody_makes_is_given_back_to_a_rank_that_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(takeover, "FORGOTTEN_SECONDS", 0.1)
    lone = with_one_slot(Lone(tmp_path, every_steps=10))
    lone.rank.link = rank = OneSlotRank(lone, at=20)
    lone.capture(0, 10)  # the lead has given it up, and this worker was not told
    watching = asyncio.ensure_future(clocks.free_forgotten_slots(lone.shared, lone.writing))
    await asyncio.sleep(0.3)
    assert lone.rank.holds(10), "nobody waits for it"
    lone.rank.boundary = 20
    await lone.until(lambda: rank.was_told(wire.SlotFree), "it is given back")
    watching.cancel()
    await lone.close()


async def test_a_slot_that_a_save_reads_is_never_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(takeover, "FORGOTTEN_SECONDS", 0.1)
    stuck = Barrier("create", "/chunks/")
    lone = with_one_slot(Lone(tmp_path, every_steps=10, before_call=stuck))
    lone.rank.link = rank = OneSlotRank(lone, at=20)
    watching = asyncio.ensure_future(clocks.free_forgotten_slots(lone.shared, lone.writing))
    lone.capture(0, 10)
    lone.offer(10)
    await in_thread(stuck.reached)
    lone.rank.boundary = 20
    await asyncio.sleep(0.4)
    assert not rank.was_told(wire.SlotFree)
    stuck.free.set()
    await lone.until(lambda: rank.was_told(wire.SlotFree), "its save has ended")
    watching.cancel()
    await lone.close()


def test_a_gang_with_one_slot_per_rank_saves_evacuates_and_resumes_from_the_slot(gang):
    g = gang(workers=2, trainer=("100000",), config={"slots": 1}).start().begin()
    g.wait_for_commit(30)
    report = g.pods[0].report()
    assert report.arena.startswith("one slot of 2 MiB: the next save waits"), report.arena
    assert [p.name for p in sorted((g.pods[0].folder / "memory").glob("rank-*"))] == ["rank-0-slot-0"]
    g.notice(0, 1)
    g.wait_for_phase(AgentPhase.SEALED)
    newest = g.commits()[-1]
    assert newest[2] == "spot"
    for pod in g.pods.values():
        pod.kill()
        pod.wait()
        pod.start()
    g.begin()
    g.wait_for_commit(newest[1] + 1)
    assert f"2 0 restored {newest[1]}" in g.lines()
    assert "arena" in g.pods[0].report().fetched_from
