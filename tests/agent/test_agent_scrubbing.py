"""The lead re-reads what is stored beside training: what it finds is reported, it stands back when everybody leaves, and training knows nothing of it."""

import asyncio
import dataclasses
from datetime import timedelta

import pytest

from holdfast_agent import scrubbing
from holdfast_agent.clock import Deadline, now
from holdfast_api import layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import ScrubNotes
from holdfast_api.messages import Cause
from holdfast_store.memory import Effect, Fault
from holdfast_store.scrub import is_due, read_notes
from tests.agent.lone import Lone


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(scrubbing, "LOOK_SECONDS", 0.05)


async def saved(folder, *, rate=10**9, **options) -> Lone:
    one = Lone(folder, **options)
    config = dataclasses.replace(one.shared.settings.config, scrub_bytes_per_second=rate)
    one.shared.settings = dataclasses.replace(one.shared.settings, config=config)
    for slot, boundary in enumerate((10, 20)):
        one.capture(slot, boundary)
        await one.saves.make(boundary, Cause.PERIODIC, deadline=Deadline.after(60))
    assert len(one.commits()) == 2
    return one


def damage(one: Lone, save: int) -> None:
    """A chunk that the save itself has written."""
    prefix = one.store.prefix + layout.checkpoint_prefix(CheckpointRef(1, save)) + "chunks/"
    key = next(k for k in sorted(one.bucket.objects) if k.startswith(prefix))
    one.bucket.damage(key, b"x" * len(one.bucket.objects[key]))


async def ended(task: asyncio.Task) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_is_found_is_reported_and_the_next_round_waits_for_its_time(tmp_path):
    one = await saved(tmp_path)
    damage(one, 2)
    task = asyncio.ensure_future(scrubbing.watch(one.shared, lambda: False))
    await one.until(lambda: one.shared.record.damaged is not None)
    assert [*one.shared.record.damaged] == ["1/2"]
    assert one.shared.record.report().damaged == one.shared.record.damaged
    reads = sum(op == "get" and "/chunks/" in key for op, key in one.bucket.calls)
    await asyncio.sleep(0.3)
    assert sum(op == "get" and "/chunks/" in key for op, key in one.bucket.calls) == reads
    await ended(task)
    await one.close()


async def test_it_stands_back_while_everybody_leaves_and_goes_on_where_it_was(tmp_path):
    one = await saved(tmp_path, rate=1)
    leaving = False
    task = asyncio.ensure_future(scrubbing.watch(one.shared, lambda: leaving))

    def noted() -> bool:
        notes = read_notes(one.store)
        return notes is not None and notes.current is not None

    while not any(op == "get" and "/chunks/" in key for op, key in one.bucket.calls):
        await asyncio.sleep(0.05)
    leaving = True
    while not noted():
        await asyncio.sleep(0.05)
    reads = sum(op == "get" and "/chunks/" in key for op, key in one.bucket.calls)
    await asyncio.sleep(0.3)
    assert sum(op == "get" and "/chunks/" in key for op, key in one.bucket.calls) == reads
    assert one.shared.record.damaged is None
    await ended(task)
    config = dataclasses.replace(one.shared.settings.config, scrub_bytes_per_second=10**9)
    one.shared.settings = dataclasses.replace(one.shared.settings, config=config)
    task = asyncio.ensure_future(scrubbing.watch(one.shared, lambda: False))
    await one.until(lambda: one.shared.record.damaged == {})
    await ended(task)
    await one.close()


async def test_a_store_that_is_away_ends_nothing(tmp_path, caplog):
    one = await saved(tmp_path)
    one.bucket.faults = [Fault(Effect.UNAVAILABLE, "list", times=3)]
    task = asyncio.ensure_future(scrubbing.watch(one.shared, lambda: False))
    await one.until(lambda: one.shared.record.damaged == {})
    assert any("could not be read again" in r.getMessage() for r in caplog.records)
    await ended(task)
    await one.close()


async def test_where_nobody_asks_for_it_nothing_is_read(tmp_path):
    one = await saved(tmp_path, rate=0)
    one.bucket.calls.clear()
    await scrubbing.watch(one.shared, lambda: False)
    assert one.bucket.calls == []
    await one.close()


def test_a_round_is_due_when_it_was_cut_short_or_its_time_has_come():
    notes = ScrubNotes("uid", now())
    assert is_due(None, 100, now())
    assert not is_due(notes, 100, notes.begun_at + timedelta(seconds=99))
    assert is_due(notes, 100, notes.begun_at + timedelta(seconds=100))
    ref = CheckpointRef(1, 1)
    for cut in ({"done": (ref,)}, {"current": ref}):
        assert is_due(dataclasses.replace(notes, **cut), 100, notes.begun_at)
