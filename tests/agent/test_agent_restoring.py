"""C3: what a member does while it fetches, when the store is away, the node's disk fails, or a checkpoint that was refused has been mended."""

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast_agent import restore, restoring
from holdfast_agent.peers import LATER
from holdfast_api import layout
from holdfast_api.messages import BlockedReason
from holdfast_api.ranks import Hello, RestoreReady
from holdfast_store.errors import Denied, Misconfigured, StoreError, Unavailable
from holdfast_store.local import LocalTier
from holdfast_store.memory import Effect, Fault
from tests.agent.members import IMAGE, Member, ref, until
from tests.store.on_node import put_image


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr(restoring, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(restoring, "LATER_SECONDS", 0.05)


@pytest.mark.parametrize("key", ["rank-0.json", "/chunks/"])
async def test_a_store_that_is_away_while_a_member_fetches_is_reported_and_the_restore_goes_on_by_itself(
    tmp_path: Path, key: str
) -> None:
    member = Member(tmp_path)
    member.bucket.faults.append(Fault(Effect.UNAVAILABLE, "get", key, times=0))
    asked = asyncio.ensure_future(member.fetched())
    await until(lambda: member.record.blocked)
    assert member.record.blocked is not None
    assert member.record.blocked.reason is BlockedReason.STORAGE_UNREACHABLE
    assert not asked.done()
    member.bucket.faults.clear()
    assert (await asked).rejection is None
    assert member.image() == IMAGE
    assert member.record.blocked is None


async def test_blocked_ends_with_the_first_bytes_and_what_was_fetched_before_is_not_fetched_again(
    tmp_path: Path,
) -> None:
    member, go = Member(tmp_path), threading.Event()
    manifest = member.world.store.read_manifest(member.world.store.read_commit(ref(1, 1))[0], 0)
    away = manifest.chunks[2].digest, manifest.chunks[3].digest
    member.bucket.calls.clear()
    member.bucket.faults += [Fault(Effect.UNAVAILABLE, "get", name, times=0) for name in away]
    asked = asyncio.ensure_future(member.fetched())
    await until(lambda: member.record.blocked and sum(member.record.fetched_from.values()) == 8)

    def hold(_operation: str, key: str) -> None:
        if key.endswith(away[1]):
            go.wait(30)

    member.bucket.before_call = hold
    member.bucket.faults.clear()
    await until(lambda: member.record.blocked is None)
    assert not asked.done()
    go.set()
    assert (await asked).rejection is None
    assert member.image() == IMAGE
    assert member.record.fetched_from == {"store": len(IMAGE)}
    assert [k for _, k in member.bucket.calls].count(
        member.world.store.prefix + layout.chunk_key(ref(1, 1), manifest.chunks[0].digest)
    ) == 1


async def test_one_chunk_that_has_waited_long_enough_ends_the_try_for_all(tmp_path: Path) -> None:
    """Else a thousand chunks on a few threads would each wait for themselves before anything is said."""
    member = Member(tmp_path)
    member.world.saved(1, 2, b"".join(b"%04d" % n for n in range(500)))
    record, _ = member.world.store.read_commit(ref(1, 2))
    member.bucket.faults.append(Fault(Effect.UNAVAILABLE, "get", "/chunks/", times=0))
    stop = restoring.Stop()
    with pytest.raises(Unavailable):
        await restore.fetch(
            record, range(1), store=member.world.store, node=None, arena=member.shared.arena,
            threads=member.shared.threads, tally=restore.Tally(lambda *_: None), stop=stop,
        )  # fmt: skip
    assert len({key for operation, key in member.bucket.calls if operation == "get" and "/chunks/" in key}) < 500


@pytest.mark.parametrize("error", [Unavailable, Denied, Misconfigured, OSError])
async def test_whatever_the_nodes_disk_says_the_store_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    """Fault scenarios 13 and 14: EIO, no permission, a link in its place."""

    def fails(*_: object) -> None:
        raise error("Input/output error")

    monkeypatch.setattr(LocalTier, "read_chunk_into", fails)
    member = Member(tmp_path, node=True)
    assert (await member.fetched()).rejection is None
    assert member.image() == IMAGE
    assert member.record.fetched_from == {"store": len(IMAGE)}
    assert member.record.blocked is None
    assert sum("Input/output error" in r.getMessage() for r in caplog.records) == 1


async def test_a_link_where_the_nodes_image_should_be_is_not_followed_and_blocks_nothing(tmp_path: Path) -> None:
    member = Member(tmp_path, node=True)
    assert member.node is not None
    put_image(member.node, ref(1, 1), 0, IMAGE)
    image = next((tmp_path / "local").rglob("*.safetensors"))
    image.rename(image.with_suffix(".moved"))
    image.symlink_to(image.with_suffix(".moved"))
    with pytest.raises(StoreError):
        member.node._folder.size(str(image.relative_to(tmp_path / "local")))
    assert (await member.fetched()).rejection is None
    assert member.record.fetched_from == {"store": len(IMAGE)}


async def test_what_a_rank_is_loading_is_not_overwritten_because_another_one_has_refused_it(tmp_path: Path) -> None:
    """C3: its tensors would be of two checkpoints, all of them finite."""
    member = Member(tmp_path)
    member.world.saved(1, 2, b"AAAABBBBCCCCDDDD")
    assert (await member.fetched(save=2)).rejection is None
    rank = member.shared.crew.ranks[0]
    rank.handed = True
    asked = asyncio.ensure_future(member.fetched(2, save=1))
    await asyncio.sleep(0.1)
    assert member.image() == b"AAAABBBBCCCCDDDD"
    rank.handed = False
    member.shared.changes.bump()
    assert (await asked).rejection is None
    assert member.image() == IMAGE


async def test_a_rank_that_has_loaded_meanwhile_needs_a_new_attempt(tmp_path: Path) -> None:
    member = Member(tmp_path)
    member.world.saved(1, 2, b"AAAABBBBCCCCDDDD")
    assert (await member.fetched(save=2)).rejection is None
    rank = member.shared.crew.ranks[0]
    rank.handed = True
    asked = asyncio.ensure_future(member.fetched(2, save=1))
    await asyncio.sleep(0.05)
    member.restoring.loaded(rank)
    member.shared.changes.bump()
    rejection = (await asked).rejection
    assert rejection is not None
    assert not rejection.of_checkpoint
    assert member.image() == b"AAAABBBBCCCCDDDD"


async def test_what_every_rank_has_loaded_is_known_to_be_finite(tmp_path: Path) -> None:
    """Each has looked before it said so (C4); of an emergency checkpoint nobody had known it."""
    member = Member(tmp_path)
    assert (await member.fetched()).rejection is None
    member.restoring.loaded(member.shared.crew.ranks[0])
    assert member.record.restored is not None
    assert member.record.restored.finite is True


@pytest.mark.parametrize("seen", [True, False, None])
async def test_a_rank_is_told_whether_somebody_has_looked_at_what_it_is_to_load(
    tmp_path: Path, seen: bool | None
) -> None:
    """C4: only what was seen to be finite when it was saved needs no second look."""
    member, sent = Member(tmp_path), []
    rank = member.shared.crew.ranks[0]
    rank.link = SimpleNamespace(open=True, send=sent.append)  # type: ignore[assignment]
    rank.wants_restore = True
    offer = member.resolved()
    commit = json.loads(offer.commit)
    commit["ranks"][0]["finite"] = seen
    offer = replace(offer, commit=json.dumps(commit), load=True)
    while (answer := await member.restoring.resolved(offer)) is LATER:
        pass
    assert answer.rejection is None
    (ready,) = sent
    assert isinstance(ready, RestoreReady)
    assert ready.finite is (seen is True)


async def test_what_directory_mode_puts_back_is_not_known_to_be_finite(tmp_path: Path) -> None:
    """Nobody looks into a script's own files."""
    member = Member(tmp_path)
    member.shared.crew.ranks[0].hello = Hello(0, 0, 1, 2, 1, {"holdfast": "1", "mode": "directory"})
    assert (await member.fetched()).rejection is None
    member.restoring.loaded(member.shared.crew.ranks[0])
    assert member.record.restored is not None
    assert member.record.restored.finite is None


async def test_a_checkpoint_that_was_mended_is_tried_again_when_the_lead_offers_it_again(tmp_path: Path) -> None:
    member = Member(tmp_path)
    chunk = next(key for key in member.bucket.objects if "/chunks/" in key)
    good = member.bucket.objects[chunk]
    member.bucket.damage(chunk, b"xxxx")
    assert (await member.fetched(1)).rejection.of_checkpoint
    member.bucket.damage(chunk, good)
    assert (await member.fetched(1)).rejection is not None, "the same offer, said twice, has the same answer"
    assert (await member.fetched(2)).rejection is None
    assert member.image() == IMAGE


async def test_an_error_that_nobody_has_foreseen_is_said_and_the_restore_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member, real, tries = Member(tmp_path), restore.fetch, []

    async def fetch(*args: Any, **named: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise LookupError("nobody has thought of this")
        return await real(*args, **named)

    monkeypatch.setattr(restore, "fetch", fetch)
    said: list[str] = []
    member.record.on_change = lambda: said.append(member.record.blocked.message if member.record.blocked else "")
    assert (await member.fetched()).rejection is None
    assert any("nobody has thought of this" in s for s in said)
    assert member.record.blocked is None


async def test_a_chunk_that_was_bad_in_the_store_is_remembered_whatever_becomes_of_the_try(tmp_path: Path) -> None:
    """B5: no later save refers to it, also when the attempt goes on from an older checkpoint that has the same chunk."""
    member = Member(tmp_path)
    manifest = member.world.store.read_manifest(member.world.store.read_commit(ref(1, 1))[0], 0)
    bad = manifest.chunks[1]
    member.bucket.damage(member.world.store.prefix + layout.chunk_key(ref(1, 1), bad.digest), b"xxxx")
    assert (await member.fetched()).rejection.of_checkpoint
    assert member.shared.distrusted == {bad.digest}
    s = member.shared
    s.base, s.base_manifests = member.world.store.read_commit(ref(1, 1))[0], {0: manifest}
    usable = s.base_has(ref(1, 1), ref(2, 1), emergency=True)
    assert bad.digest not in usable
    assert set(usable) == {c.digest for c in manifest.chunks} - {bad.digest}
