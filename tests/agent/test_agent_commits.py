"""A commit record that is on its way is decided before a newer save begins (A8), and a save that the store did not take goes on as the same save (B1)."""

import asyncio
import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lone import Barrier, Lone, in_thread

from holdfast_agent import finish, periodic, saves
from holdfast_agent.clock import Deadline
from holdfast_agent.errors import PeerRefused, SaveGivenUp
from holdfast_api import peers
from holdfast_api.messages import BlockedReason, Cause
from holdfast_store.memory import Effect, Fault


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(periodic, "FINAL_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(periodic, "LONGEST_FINAL_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(finish, "OFFER_SECONDS", 0.2)


def soon() -> Deadline:
    return Deadline.after(60)


async def test_a_withdrawn_rounds_commit_is_decided_before_the_next_save_and_counts_if_it_arrives(tmp_path):
    commit = Barrier("create", "commit.json")
    one = Lone(tmp_path, before_call=commit)
    one.capture(0, 10, "round")
    first = asyncio.ensure_future(one.saves.make(10, Cause.SPOT, deadline=soon(), sealed=lambda: True))
    await in_thread(commit.reached)
    first.cancel()
    await asyncio.wait([first])
    one.capture(1, 20)
    second = asyncio.ensure_future(one.saves.make(20, Cause.PERIODIC, deadline=soon()))
    await asyncio.sleep(0.2)
    assert (first.cancelled(), [o.save for o in one.orders]) == (True, [1]), "no number is used while 1/1 may land"
    assert one.shared.committing
    commit.free.set()
    await second
    assert [(r.save, r.progress.boundary, r.base and r.base.save) for r in one.commits()] == [(1, 10, None), (2, 20, 1)]
    assert [c.boundary for c in one.shared.record.checkpoints] == [10, 20]
    assert one.sealed == [], "the round was withdrawn: nobody is sealed by it"
    await one.close()


async def test_a_withdrawn_commit_that_does_not_arrive_is_not_tried_again(tmp_path):
    commit = Barrier("create", "commit.json")
    one = Lone(
        tmp_path, before_call=commit, faults=(Fault(Effect.UNAVAILABLE, "create", "0000000001/commit.json", times=0),)
    )
    one.capture(0, 10, "round")
    first = asyncio.ensure_future(one.saves.make(10, Cause.SPOT, deadline=soon()))
    await in_thread(commit.reached)
    first.cancel()
    commit.free.set()
    one.capture(1, 20)
    await one.saves.make(20, Cause.PERIODIC, deadline=soon())
    assert [r.save for r in one.commits()] == [2]
    assert (
        sum(
            call == ("create", f"{one.store.prefix}checkpoints/0000000001/0000000001/commit.json")
            for call in one.bucket.calls
        )
        == 1
    )
    await one.close()


async def test_what_is_not_decided_before_the_deadline_of_the_next_save_gives_that_one_up(tmp_path):
    commit = Barrier("create", "commit.json")
    one = Lone(tmp_path, before_call=commit)
    one.capture(0, 10, "round")
    first = asyncio.ensure_future(one.saves.make(10, Cause.SPOT, deadline=soon()))
    await in_thread(commit.reached)
    first.cancel()
    one.capture(1, 20)
    with pytest.raises(SaveGivenUp, match="not decided"):
        await one.saves.make(20, Cause.PERIODIC, deadline=Deadline.after(0.2))
    assert [o.save for o in one.orders] == [1]
    commit.free.set()
    await one.close()


async def test_an_attempt_that_is_closed_waits_for_its_commit(tmp_path):
    commit = Barrier("create", "commit.json")
    one = Lone(tmp_path, before_call=commit)
    one.capture(0, 10)
    one.offer(10)
    await in_thread(commit.reached)
    closing = asyncio.ensure_future(one.periodic.close())
    await closing
    closing = asyncio.ensure_future(one.saves.close())
    await asyncio.sleep(0.2)
    assert not closing.done()
    commit.free.set()
    await closing
    assert [r.save for r in one.commits()] == [1]
    await one.close()


async def test_another_coordinators_save_waits_for_a_commit_that_is_under_way_here(tmp_path):
    """Its number is greater, and this worker has not been told how its own save ended."""
    one = Lone(tmp_path)
    one.shared.highest_save, one.shared.committing = 1, True
    one.capture(0, 10)
    order = peers.FlushOrder(1, 2, 10, None, Cause.SPOT, False, soon().at)
    flushed = asyncio.ensure_future(one.writing.ordered(order))
    await one.until(lambda: any("rank-0.json" in key for key in one.bucket.objects))
    await asyncio.sleep(0.2)
    assert not flushed.done()
    one.shared.committing = False
    one.shared.changes.bump()
    assert (await flushed).error == ""
    await one.close()


@pytest.mark.parametrize("effect", [Effect.FULL, Effect.DENIED])
async def test_a_last_state_is_tried_as_the_same_save_until_the_store_takes_it(tmp_path, effect):
    tries = periodic.FINAL_TRIES + 3
    one = Lone(tmp_path, faults=(Fault(effect, "create", "commit.json", times=tries),))
    one.capture(0, 10, "final")
    one.offer(10)
    one.done(10)
    await one.finish.over()
    assert [(r.save, r.progress.boundary, r.cause) for r in one.commits()] == [(1, 10, Cause.FINAL)]
    assert [o.save for o in one.orders] == [1] * (tries + 1)
    assert (one.shared.record.blocked, one.shared.record.exit_detail) == (None, "")
    await one.close()


async def test_while_the_store_is_full_the_report_says_what_to_do(tmp_path):
    full = Fault(Effect.FULL, "create", "chunks/", times=0)
    one = Lone(tmp_path, faults=(full,))
    one.capture(0, 10, "final")
    one.offer(10)
    one.done(10)
    await one.until(lambda: one.shared.record.blocked)
    blocked = one.shared.record.blocked
    assert (blocked.reason, "free space" in blocked.message) == (BlockedReason.STORAGE_MISCONFIGURED, True)
    one.bucket.faults.clear()
    await one.finish.over()
    assert (len(one.commits()), one.shared.record.blocked) == (1, None)
    await one.close()


async def test_a_commit_whose_answer_was_lost_is_found_by_the_next_try(tmp_path):
    faults = (
        Fault(Effect.LOST_ANSWER, "create", "commit.json"),
        Fault(Effect.DENIED, "create", "commit.json", first=2, times=1),
    )
    one = Lone(tmp_path, faults=faults)
    one.capture(0, 10, "final")
    one.offer(10)
    one.done(10)
    await one.finish.over()
    assert [(r.save, r.progress.boundary) for r in one.commits()] == [(1, 10)]
    assert [c.boundary for c in one.shared.record.checkpoints] == [10]
    await one.close()


async def test_a_last_state_that_cannot_be_read_is_given_up_with_the_reason(tmp_path):
    one = Lone(tmp_path)
    one.capture(0, 10, "final")
    one.shared.arena.path(0, 0).unlink()
    one.offer(10)
    one.done(10)
    await one.finish.over()
    assert one.commits() == []
    assert "could not be saved" in one.shared.record.exit_detail
    await one.close()


async def test_slots_given_back_before_the_end_was_known_are_taken_again(tmp_path):
    one = Lone(tmp_path, faults=(Fault(Effect.DENIED, "create", "commit.json"),))
    one.capture(0, 10)
    one.offer(10)
    await one.until(lambda: not one.rank.book.held)
    one.done(10)
    await one.finish.over()
    assert [(r.save, r.progress.boundary) for r in one.commits()] == [(2, 10)]
    await one.close()


async def test_once_the_last_state_is_given_up_every_offer_is_refused_so_that_nobody_waits(tmp_path):
    one = Lone(tmp_path)
    await one.periodic.give_up("the ranks ended at different boundaries: [9, 10]")
    for boundary in (9, 10):
        with pytest.raises(PeerRefused, match="different boundaries"):
            one.offer(boundary)
    assert not one.periodic.pending
    await one.close()


def test_pauses_before_a_last_state_is_tried_again_grow_to_a_bound(monkeypatch):
    monkeypatch.undo()
    assert [periodic.pause_before_try(n) for n in (1, 2, 3, 4, 5, 6, 999)] == [1, 2, 4, 8, 15, 15, 15]


async def test_a_last_state_is_not_given_up_for_one_hiccup_after_the_store_was_away(tmp_path, monkeypatch):
    """Only what lies in the state is ever enough to give it up; a store that fails is tried without end."""
    full = Fault(Effect.FULL, "create", "commit.json", times=periodic.FINAL_TRIES)
    one = Lone(tmp_path, faults=(full,))
    real, calls = saves._committing, []

    def hiccup(*arguments):
        calls.append(1)
        if len(calls) == periodic.FINAL_TRIES + 1:
            raise RuntimeError("one hiccup")
        return real(*arguments)

    monkeypatch.setattr(saves, "_committing", hiccup)
    one.capture(0, 10, "final")
    one.done(10)
    await one.finish.over()
    assert len(calls) > periodic.FINAL_TRIES + 1
    assert [r.progress.boundary for r in one.commits()] == [10]
    await one.close()


async def test_a_save_of_the_same_number_and_another_boundary_is_not_answered_with_what_was_written_for_the_first(
    tmp_path,
):
    """Two coordinators with one number (B1): together they would commit a mixture of two boundaries."""
    one = Lone(tmp_path)
    one.capture(0, 10)
    one.capture(1, 20)

    def order(boundary: int) -> peers.FlushOrder:
        return peers.FlushOrder(1, 2, boundary, None, Cause.SPOT, True, soon().at)

    first = await one.writing.ordered(order(10))
    assert not first.error
    second = await one.writing.ordered(order(20))
    assert second.error
    assert second.ranks == ()
    await one.close()


async def test_how_an_older_save_ended_heard_late_takes_nothing_back(tmp_path):
    one = Lone(tmp_path)
    for slot, boundary in ((0, 10), (1, 20)):
        one.capture(slot, boundary)
        await one.saves.make(boundary, Cause.PERIODIC, deadline=soon())
    assert one.shared.last_boundary == 20
    older = one.commits()[0]
    one.writing._flushes[older.save].over = False
    text = one.store.read_commit(older.ref)[1]
    one.writing.committed(peers.Committed(1, older.save, text, saves.info_of(older)))
    assert one.shared.last_boundary == 20
    await one.close()


async def test_the_lead_starts_no_save_of_its_own_while_an_evacuation_runs(tmp_path):
    """Its number would be greater than the emergency's, whose flush would be stopped by it (A8)."""
    commit = Barrier("create", "commit.json")
    one = Lone(tmp_path, before_call=commit)
    one.capture(0, 10)
    one.offer(10)
    await in_thread(commit.reached)
    one.capture(1, 20)
    one.offer(20)
    one.shared.record.evacuating = True
    commit.free.set()
    await one.until(lambda: one.shared.last_boundary == 10 and one.periodic._periodic.done())
    assert [o.boundary for o in one.orders] == [10]
    one.shared.record.evacuating = False
    one.periodic.kick()
    await one.until(lambda: one.shared.last_boundary == 20)
    await one.close()


async def test_a_save_that_lacks_a_rank_is_never_committed(tmp_path):
    """B2: its record would be taken for the whole checkpoint of a smaller job."""
    one = Lone(tmp_path)
    one.shared.order = dataclasses.replace(one.shared.order, processes_per_worker=2)
    one.capture(0, 10)
    with pytest.raises(SaveGivenUp, match=r"ranks \[0\] are written where 2 are needed"):
        await one.saves.make(10, Cause.PERIODIC, deadline=soon())
    assert one.commits() == []
    await one.close()


async def test_a_save_is_not_committed_once_a_newer_number_has_been_heard_of(tmp_path):
    """A8: while its chunks were written, another coordinator has begun a newer one."""
    chunk = Barrier("create", "/chunks/")
    one = Lone(tmp_path, before_call=chunk)
    one.capture(0, 10)
    saving = asyncio.ensure_future(one.saves.make(10, Cause.PERIODIC, deadline=soon()))
    await in_thread(chunk.reached)
    one.shared.highest_save = 2
    chunk.free.set()
    with pytest.raises(SaveGivenUp, match="newer"):
        await asyncio.wait_for(saving, 30)
    assert one.commits() == []
    await one.close()
