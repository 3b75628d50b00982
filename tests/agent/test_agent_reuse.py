"""B5: what failed verification once, and what is old, is written anew although the content has not changed."""

import dataclasses
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lone import FROZEN, Lone
from test_agent_recovery import chunks_of, damage, kill_all, restart

from holdfast_agent import reuse
from holdfast_agent.clock import Deadline
from holdfast_agent.errors import SaveGivenUp
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Chunk, ParentRef, RankManifest
from holdfast_api.messages import Cause, RestoreOrder
from holdfast_store.chunks import digest
from holdfast_store.lineage import Stretch
from holdfast_store.verify import verify

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HISTORY = (Stretch(7, None, T0 + timedelta(days=6)), Stretch(4, 30, T0 + timedelta(days=3)), Stretch(2, 12, T0))
"""Attempt 7 continues 4/30, which continued 2/12."""


def ref(attempt: int, save: int) -> CheckpointRef:
    return CheckpointRef(attempt, save)


@pytest.mark.parametrize(
    ("place", "save", "found"),
    [
        (ref(7, 1), ref(7, 9), 8),
        (ref(4, 30), ref(7, 1), 1),
        (ref(4, 10), ref(7, 5), 25),
        (ref(2, 12), ref(7, 5), 35),
        (ref(2, 2), ref(7, 5), 45),
        (ref(3, 1), ref(7, 5), None),
    ],
)
def test_saves_between_two_checkpoints_are_counted_along_the_lineage(place, save, found):
    assert reuse.distance(place, save, HISTORY) == found


@pytest.mark.parametrize(
    ("place", "save", "days", "old"),
    [
        pytest.param(ref(7, 1), ref(7, 50), 6, False, id="49 saves"),
        pytest.param(ref(7, 1), ref(7, 51), 6, True, id="50 saves"),
        pytest.param(ref(2, 2), ref(7, 9), 6, False, id="49 over two attempts"),
        pytest.param(ref(2, 2), ref(7, 10), 6, True, id="50 over two attempts"),
        pytest.param(ref(4, 20), ref(7, 2), 9.9, False, id="less than 7 days after the claim of its attempt"),
        pytest.param(ref(4, 20), ref(7, 2), 10, True, id="7 days after the claim, when nothing better is known"),
        pytest.param(ref(4, 30), ref(7, 2), 10, False, id="but 5 days after it was made"),
        pytest.param(ref(4, 30), ref(7, 2), 12, True, id="7 days after it was made"),
        pytest.param(ref(3, 1), ref(7, 2), 99, False, id="off what is known: not old"),
    ],
)
def test_age_counts_in_saves_and_in_days(place, save, days, old):
    made = {ref(4, 30): T0 + timedelta(days=5)}
    found = reuse.too_old([place], save, history=HISTORY, made_at=made, now=T0 + timedelta(days=days))
    assert found == ({place} if old else frozenset())


def manifest(*chunks: tuple[str, CheckpointRef]) -> RankManifest:
    return RankManifest("u", 7, 3, 0, 1, 9, 4 * len(chunks), 4, tuple(Chunk(d, 4, at) for d, at in chunks))


def test_what_failed_once_is_not_referred_to_but_its_new_copy_is():
    both = [manifest(("bad", ref(4, 1)), ("good", ref(4, 1)))]
    assert reuse.referable(both, attempt=7, distrusted={"bad"}, doubted=False) == {"good": ref(4, 1)}
    later = [manifest(("bad", ref(7, 1)), ("good", ref(4, 1)))]
    found = reuse.referable(later, attempt=7, distrusted={"bad"}, doubted=False)
    assert found == {"bad": ref(7, 1), "good": ref(4, 1)}


def test_after_a_refusal_by_any_worker_nothing_of_earlier_attempts_is_referred_to():
    chunks = [manifest(("a", ref(4, 1)), ("b", ref(7, 1)))]
    assert reuse.referable(chunks, attempt=7, distrusted=(), doubted=True) == {"b": ref(7, 1)}


@pytest.mark.parametrize(
    ("offered", "excluded", "doubted"),
    [
        ({ParentRef("u", 4, 30)}, (), False),
        ({ParentRef("u", 4, 30)}, (ref(4, 2), ref(2, 9)), False),
        ({ParentRef("u", 4, 30)}, (ref(4, 31),), True),
        ({ParentRef("u", 4, 31), ParentRef("u", 4, 30)}, (), True),
    ],
)
def test_a_newer_checkpoint_that_was_refused_casts_doubt(offered, excluded, doubted):
    """In this attempt the lead has offered another one before; of an earlier attempt the operator's order tells (C2)."""
    assert reuse.is_doubted(offered, ref(4, 30), excluded) is doubted


async def save(one: Lone, boundary: int, *, emergency: bool = False) -> None:
    one.capture(boundary % 2, boundary)
    await one.saves.make(boundary, Cause.PERIODIC, deadline=Deadline.after(60), emergency=emergency)


async def places(one: Lone) -> list[int]:
    """The save under which each commit's frozen chunk lies; negative in an earlier attempt."""
    found = []
    for record in one.commits():
        chunks = one.store.read_manifest(record, 0).chunks
        at = next(c.at for c in chunks if c.digest == digest(FROZEN))
        found.append(at.save if at.attempt == one.attempt else -at.save)
    return found


async def test_a_frozen_layer_is_written_anew_after_so_many_checkpoints_so_that_its_bad_copy_is_left_behind(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(reuse, "REWRITE_AFTER_CHECKPOINTS", 3)
    one = Lone(tmp_path)
    for boundary in range(1, 8):
        await save(one, boundary)
    assert await places(one) == [1, 1, 1, 4, 4, 4, 7]
    one.bucket.damage(
        f"{one.store.prefix}checkpoints/0000000001/0000000001/chunks/{digest(FROZEN)}", b"x" * len(FROZEN)
    )
    assert [bool(verify(one.store, r).problems) for r in one.commits()] == [True] * 3 + [False] * 4
    await one.close()


async def test_after_so_many_days_too(tmp_path, monkeypatch):
    one = Lone(tmp_path)
    for boundary in range(1, 3):
        await save(one, boundary)
    one.shared.made_at = {r: at - reuse.REWRITE_AFTER for r, at in one.shared.made_at.items()}
    await save(one, 3)
    assert await places(one) == [1, 1, 3]
    await one.close()


async def test_the_saves_of_earlier_attempts_count(tmp_path, monkeypatch):
    monkeypatch.setattr(reuse, "REWRITE_AFTER_CHECKPOINTS", 4)
    one = Lone(tmp_path)
    for boundary in range(1, 4):
        await save(one, boundary)
    await one.close()
    two = Lone(tmp_path, after=one)
    for boundary in range(4, 8):
        await save(two, boundary)
    assert await places(two) == [-1, 2, 2, 2]
    await two.close()


async def test_a_checkpoint_that_the_operator_excludes_as_newer_casts_doubt_on_what_the_next_attempt_finds(tmp_path):
    one = Lone(tmp_path)
    for boundary in range(1, 3):
        await save(one, boundary)
    await one.close()
    two = Lone(tmp_path, after=one)
    restore = RestoreOrder(excluded=(ref(1, 3),))
    two.shared.order = dataclasses.replace(two.shared.order, restore=restore)
    for boundary in range(3, 5):
        await save(two, boundary)
    assert await places(two) == [1, 1]
    await two.close()


async def test_after_a_base_that_is_gone_from_the_store_the_next_save_leans_on_nothing(tmp_path):
    """B4: one save is lost to it, not all that come."""
    one = Lone(tmp_path)
    await save(one, 1)
    one.bucket.damage(f"{one.store.prefix}checkpoints/0000000001/0000000001/commit.json", None)
    with pytest.raises(SaveGivenUp):
        await save(one, 2)
    await save(one, 3)
    (record,) = one.commits()
    assert (record.progress.boundary, record.base, record.refers_to) == (3, None, ())
    assert not verify(one.store, record).problems
    await one.close()


async def test_in_an_emergency_age_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(reuse, "REWRITE_AFTER_CHECKPOINTS", 1)
    one = Lone(tmp_path)
    await save(one, 1)
    await save(one, 2, emergency=True)
    assert await places(one) == [1, 1]
    await one.close()


def test_the_age_of_what_earlier_attempts_wrote_is_found_by_their_claims(gang, monkeypatch):
    g = gang(workers=1).start().begin()
    g.wait_for_commit(20)
    kill_all(g)
    restart(g)
    newest = g.commits()[-1]
    g.wait_for_commit(newest[1] + 10)
    claims = g.store.claims()
    parent = CheckpointRef.parse(newest[0])
    assert g.store.stretches(2, oldest=1) == (
        Stretch(2, None, claims[2].created_at),
        Stretch(1, parent.save, claims[1].created_at),
    )
    assert g.store.stretches(2, oldest=2) == (Stretch(2, None, claims[2].created_at),)


def test_after_a_bad_chunk_no_worker_refers_to_what_was_stored_before(gang):
    """Also not the worker that has found nothing, because it has read its own part from memory."""
    g = gang().start().begin()
    g.wait_for_commit(20)
    kill_all(g)
    before = g.commits()
    bad = CheckpointRef.parse(before[-1][0])
    record = g.store.read_commit(bad)[0]
    own = {c.digest for c in g.store.read_manifest(record, 0).chunks if c.at == bad}
    damage(next(path for path in chunks_of(g, bad) if path.name in own))
    g.new_pod(0)
    g.pods[1].start()
    g.begin()
    g.wait_for_commit(before[-1][1] + 20)
    assert [CheckpointRef(r.attempt, r.save) for r in g.pods[0].report().rejections] == [bad]
    records = [g.store.read_commit(CheckpointRef.parse(name))[0] for name, _, _ in g.commits() if name.startswith("2/")]
    assert {r.attempt for record in records for r in record.refers_to} == {2}
    assert records[0].refers_to == ()
    assert not [p for record in records for p in verify(g.store, record).problems]


async def test_only_the_age_of_what_may_still_be_referred_to_is_remembered(tmp_path):
    """An agent's memory does not grow with the number of saves."""
    one = Lone(tmp_path)
    for boundary in range(1, 9):
        await save(one, boundary)
    assert set(one.shared.made_at) == {ref(1, 1), ref(1, 8)}, "the frozen chunk's checkpoint, and the newest"
    await one.close()
