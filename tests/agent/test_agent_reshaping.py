"""A checkpoint of two ranks that one rank loads: what is read, what is tried instead, what is refused with which words; what is in the slots afterwards."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast_agent import restore, restoring
from holdfast_agent.targets import Content
from holdfast_api import layout, peers
from holdfast_api.manifest import ParentRef, TensorEntry
from holdfast_api.messages import BlockedReason
from holdfast_api.ranks import Hello, OtherWorld, PartsWanted, Refused, Region, RestoreReady, RestoreWanted
from holdfast_store.chunks import digest
from holdfast_store.memory import Effect, Fault
from holdfast_store.samples import STATE_NAME
from tests.agent.members import IMAGE, Member, World, ref, until
from tests.store.on_node import put_image

WHOLE = bytes(range(16))
"""Four rows of four: the tensor `w`, of which each rank holds two."""
STATES = (b'{"of":0}    ', b'{"of":1}    ')


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr(restoring, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(restoring, "LATER_SECONDS", 0.05)


def tensors(rank: int) -> tuple[TensorEntry, ...]:
    return (
        TensorEntry(STATE_NAME, "uint8", (12,), 0, 12),
        TensorEntry("w", "uint8", (2, 4), 12, 8, None, (4, 4), (2 * rank, 0)),
        TensorEntry("own", "uint8", (4,), 20, 4),
    )


def images() -> list[bytes]:
    """Of chunks of four bytes: three of the state, a row of `w` in each of two, the rank's own."""
    return [STATES[r] + WHOLE[8 * r : 8 * r + 8] + bytes([200 + r] * 4) for r in (0, 1)]


def member(folder: Path, *, node: bool = False, save: int = 2) -> Member:
    """Beside 1/1 of one rank there is 1/2 of two."""
    found = Member(folder, node=node)
    found.world.tensors_of = {0: tensors(0), 1: tensors(1)}
    found.world.saved(1, save, images())
    found.bucket.calls.clear()
    return found


def rows(first: int, end: int) -> Region:
    return Region("w", "w", (), "uint8", (end - first, 4), (4, 4), (first, 0))


OWN = Region("own", "own", (1,), "uint8", (4,), (), ())


class Asks:
    """Rank 0 of the worker as it speaks to its agent; says at once what it needs. `mode`: of what it says of itself."""

    open, rank = True, 0

    def __init__(self, member: Member, *regions: Region, reshards: bool = True, mode: str = "") -> None:
        self.member, self.regions, self.heard = member, regions, list[Any]()
        self._rank = member.shared.crew.ranks[0]
        self._rank.link = self  # type: ignore[assignment]
        self._rank.hello = Hello(0, 0, 1, 2, 1, {"mode": mode} if mode else {})
        member.restoring.wanted(self._rank, RestoreWanted(reshards))

    def send(self, message: Any) -> None:
        self.heard.append(message)
        if isinstance(message, OtherWorld):
            parts = PartsWanted(message.attempt, message.save, self.regions)
            self.member.restoring.parts_wanted(self._rank, parts)
            self.member.shared.changes.bump()

    def of(self, kind: type) -> list[Any]:
        return [m for m in self.heard if isinstance(m, kind)]


def chunks_read(member: Member) -> list[str]:
    return [
        key.rpartition("/")[2] for operation, key in member.bucket.calls if operation == "get" and "/chunks/" in key
    ]


async def handed(member: Member, asks: Asks) -> dict[str, bytes]:
    """What the rank is given once every member has everything, by name."""
    message = member.resolved(9, 2)
    message = message.__class__(*(getattr(message, f) for f in message.__slots__[:4]), True, 9)
    assert (await member.restoring.resolved(message)).rejection is None
    (ready,) = asks.of(RestoreReady)
    data = Path(ready.path).read_bytes()[: ready.image_bytes]
    return {t.name: data[t.offset_bytes : t.offset_bytes + t.length_bytes] for t in ready.tensors}


async def test_only_chunks_with_what_is_wanted_are_read_beside_the_states(tmp_path: Path) -> None:
    m = member(tmp_path)
    asks = Asks(m, rows(1, 3), OWN)
    assert (await m.fetched(9, 2)).rejection is None
    parts = [STATES[0][i : i + 4] for i in (0, 4, 8)] + [STATES[1][i : i + 4] for i in (0, 4, 8)]
    wanted = {digest(memoryview(p)) for p in (*parts, WHOLE[4:8], WHOLE[8:12], bytes([201] * 4))}
    assert set(chunks_read(m)) == wanted
    assert chunks_read(m).count(digest(memoryview(WHOLE[4:8]))) == 1
    assert await handed(m, asks) == {"w": WHOLE[4:12], "own": bytes([201] * 4)}
    (told,) = asks.of(OtherWorld)
    assert [(s.rank, s.state_bytes) for s in told.sources] == [(0, 8), (1, 8)]


async def test_the_states_of_all_ranks_are_there_until_the_rank_has_what_it_asked_for(tmp_path: Path) -> None:
    m = member(tmp_path)
    leftover = m.shared.arena.folder / "states-1-1"
    leftover.write_bytes(b"of an agent that was killed")
    asks = Asks(m, rows(0, 4))
    await m.fetched(9, 2)
    (told,) = asks.of(OtherWorld)
    text = Path(told.path).read_bytes()
    assert [text[s.state_at : s.state_at + s.state_bytes] for s in told.sources] == [s.strip() for s in STATES]
    assert not leftover.exists()
    m.restoring.loaded(m.shared.crew.ranks[0])
    assert not Path(told.path).exists()


async def test_the_nodes_copy_is_read_first_and_the_store_where_it_is_damaged(tmp_path: Path) -> None:
    m = member(tmp_path, node=True)
    assert m.node is not None
    for rank, image in enumerate(images()):
        put_image(m.node, ref(1, 2), rank, image)
    found = next(p for p in (tmp_path / "local").rglob("*.safetensors") if "rank-0" in p.name)
    found.chmod(0o600)
    content = bytearray(found.read_bytes())
    content[12] ^= 1
    found.write_bytes(content)
    asks = Asks(m, rows(0, 4))
    assert (await m.fetched(9, 2)).rejection is None
    assert chunks_read(m) == [digest(memoryview(WHOLE[:4]))]
    assert (await handed(m, asks))["w"] == WHOLE


@pytest.mark.parametrize("what", ["a wanted chunk", "a chunk of a state"])
async def test_a_chunk_that_is_bad_everywhere_rejects_the_checkpoint_and_the_older_one_is_loaded(
    tmp_path: Path, what: str
) -> None:
    m = member(tmp_path)
    bad = WHOLE[12:16] if what == "a wanted chunk" else STATES[1][4:8]
    m.bucket.damage(m.world.store.prefix + layout.chunk_key(ref(1, 2), digest(memoryview(bad))), b"xxxx")
    asks = Asks(m, rows(0, 4))
    rejection = (await m.fetched(1, 2)).rejection
    assert rejection.of_checkpoint
    assert "rank 1, chunk" in rejection.reason
    assert asks.of(RestoreReady) == []
    assert (await m.fetched(2, 1)).rejection is None, "of as many ranks as there are: by the usual way"
    assert m.image() == IMAGE
    assert digest(memoryview(bad)) in m.shared.distrusted


async def test_a_chunk_that_nobody_wants_may_be_bad(tmp_path: Path) -> None:
    m = member(tmp_path)
    for bad in (WHOLE[:4], bytes([200] * 4)):
        m.bucket.damage(m.world.store.prefix + layout.chunk_key(ref(1, 2), digest(memoryview(bad))), b"xxxx")
    asks = Asks(m, rows(2, 4))
    assert (await m.fetched(9, 2)).rejection is None
    assert (await handed(m, asks))["w"] == WHOLE[8:]


async def test_a_manifest_that_is_gone_rejects_the_checkpoint(tmp_path: Path) -> None:
    m = member(tmp_path)
    m.bucket.delete([m.world.store.prefix + layout.manifest_key(ref(1, 2), 1)])
    Asks(m, rows(0, 2))  # which rank 0 holds alone
    rejection = (await m.fetched(1, 2)).rejection
    assert rejection.of_checkpoint
    assert "manifest" in rejection.reason


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"global_offset": (1, 0)}, "rank 1 holds [1:3, 0:4] of it, which overlaps what rank 0 holds"),
        ({"global_offset": (0, 0)}, "no rank holds [2:4, 0:4] of it"),
        ({"global_offset": (3, 0)}, "which is no box of (4, 4)"),
        ({"global_offset": (2,)}, "which is no box of (4, 4)"),
        ({"shape": (1, 4), "length_bytes": 4}, "no rank holds [3:4, 0:4] of it"),
        ({"length_bytes": 4}, "4 bytes in rank 1's image do not hold (2, 4) elements"),
        ({"shape": (1 << 40, 1 << 40)}, "which is no box of (4, 4)"),
        ({"global_shape": (5, 4)}, "is uint8 of (5, 4) in rank 1's image"),
        ({"dtype": "int8"}, "is int8 of (4, 4) in rank 1's image"),
        ({"name": "v"}, "no rank holds [2:4, 0:4] of it"),
    ],
)
async def test_images_that_contradict_each_other_reject_the_checkpoint_and_the_older_one_is_loaded(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    """With true digests: nobody else would see it."""
    m = Member(tmp_path)
    state, w, own = tensors(1)
    odd = TensorEntry(*(changed.get(f, getattr(w, f)) for f in w.__slots__))
    m.world.tensors_of = {0: tensors(0), 1: (state, odd, own)}
    m.world.saved(1, 2, images())
    asks = Asks(m, rows(0, 4))
    rejection = (await m.fetched(1, 2)).rejection
    assert rejection.of_checkpoint
    assert f"w: {words}" in rejection.reason or words in rejection.reason
    assert asks.of(RestoreReady) == asks.of(Refused) == []
    assert (await m.fetched(2, 1)).rejection is None


@pytest.mark.parametrize(
    ("region", "words"),
    [
        (Region("v", "v", (), "uint8", (4, 4), (4, 4), (0, 0)), "v: no image has a tensor of that name"),
        (
            Region("w", "w", (), "uint8", (5, 4), (5, 4), (0, 0)),
            "w is uint8 of shape (4, 4) in rank 0's image, and uint8 of shape (5, 4) is wanted",
        ),
        (
            Region("w", "w", (), "uint8", (3, 4), (4, 4), (2, 0)),
            "w: (3, 4) at (2, 0) is wanted, which is not inside of (4, 4)",
        ),
        (Region("own", "own", (7,), "uint8", (4,), (), ()), "own: no image of ranks 7"),
    ],
)
async def test_what_the_checkpoint_never_had_is_said_to_the_rank_and_blames_no_checkpoint(
    tmp_path: Path, region: Region, words: str
) -> None:
    m = member(tmp_path)
    asks = Asks(m, region)
    asked = asyncio.ensure_future(m.fetched(1, 2))
    await until(lambda: asks.of(Refused))
    assert words in asks.of(Refused)[0].message
    assert "checkpoint 1/2 of 2 ranks" in asks.of(Refused)[0].message
    assert m.record.blocked is not None
    assert m.record.blocked.reason is BlockedReason.STATE_MISMATCH
    assert not asked.done()
    await m.restoring.close()
    asked.cancel()


@pytest.mark.parametrize("able", [True, False])
async def test_images_without_a_state_of_the_library_are_not_blamed_and_whoever_asks_is_told(
    tmp_path: Path, able: bool
) -> None:
    """Whether the rank asks before that was seen or after it."""
    for first in (True, False):
        (tmp_path / str(first)).mkdir()
        m = Member(tmp_path / str(first))
        m.world.tensors_of = {0: tensors(0), 1: tensors(1)[1:]}
        m.world.saved(1, 2, images())
        asks = [Asks(m, rows(0, 4), reshards=able)] if first else []
        asked = asyncio.ensure_future(m.fetched(1, 2))
        if not first:
            await asyncio.sleep(0.1)
            assert m.record.blocked is None
            asks = [Asks(m, rows(0, 4), reshards=able)]
            m.shared.changes.bump()
        await until(lambda asks=asks: asks[0].of(Refused))  # type: ignore[misc]
        words = "the image of rank 1 has no holdfast.state.json" if able else "its script cannot load that"
        assert words in asks[0].of(Refused)[0].message
        await asyncio.sleep(0.1)
        assert m.record.blocked is not None
        assert words in m.record.blocked.message
        assert not asked.done()
        await m.restoring.close()
        asked.cancel()


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (
            "",
            "start as many ranks as made it (spec.workers times spec.processesPerWorker; --processes), or use the holdfast library of this release",
        ),
        ("directory", "through the library, which directory mode cannot read: run the script that made it"),
    ],
)
async def test_who_cannot_load_that_is_refused_and_nothing_of_it_is_offered(
    tmp_path: Path, mode: str, words: str
) -> None:
    """An older release of the library, and directory mode, which puts files back as one process wrote them."""
    m = member(tmp_path)
    asks = Asks(m, reshards=False, mode=mode)
    asked = asyncio.ensure_future(m.fetched(1, 2))
    await until(lambda: asks.heard)
    assert {type(x) for x in asks.heard} == {Refused}
    assert chunks_read(m) == []
    assert not any("/rank-" in key for _, key in m.bucket.calls)
    assert "checkpoint 1/2 was made by 2 ranks" in asks.heard[0].message
    assert words in asks.heard[0].message
    assert m.record.blocked is not None
    assert m.record.blocked.reason is BlockedReason.STATE_MISMATCH
    await asyncio.sleep(0.1)
    assert not asked.done(), "no rejection: the checkpoint is as good as it was"
    await m.restoring.close()
    asked.cancel()


async def test_a_checkpoint_of_another_job_is_read_where_that_job_has_it(tmp_path: Path) -> None:
    """An explicit resume (A9), a branch (D6): its images lie on no node of this job's."""
    m = Member(tmp_path, node=True)
    other = World(m.bucket, "uid-2")
    other.tensors_of = {0: tensors(0), 1: tensors(1)}
    other.claimed(1).saved(1, 2, images())
    _, text = other.store._records.commit(ref(1, 2))
    asks = Asks(m, rows(0, 4))
    message = peers.Resolved(2, "life", ParentRef("uid-2", 1, 2), text, True, 1)
    assert (await m.restoring.resolved(message)).rejection is None
    (ready,) = asks.of(RestoreReady)
    assert Path(ready.path).read_bytes()[:16] == WHOLE
    m.restoring.loaded(m.shared.crew.ranks[0])
    assert m.shared.base is None


@pytest.mark.parametrize("seen", [(True, True), (True, None), (None, True), (None, None)])
async def test_what_was_seen_to_be_finite_is_so_if_it_was_seen_of_every_rank(
    tmp_path: Path, seen: tuple[bool | None, ...]
) -> None:
    """What this rank is given comes from all of them (C4); else it looks by itself."""
    m = Member(tmp_path)
    m.world.tensors_of = {0: tensors(0), 1: tensors(1)}
    record = m.world.prepared(1, 2, images())
    m.world.store.commit(
        replace(record, ranks=tuple(replace(e, finite=f) for e, f in zip(record.ranks, seen, strict=True)))
    )
    asks = Asks(m, rows(0, 4))
    await m.fetched(9, 2)
    await handed(m, asks)
    assert asks.of(RestoreReady)[0].finite is (seen == (True, True))


async def test_a_store_that_is_away_is_waited_for_and_nothing_is_fetched_twice(tmp_path: Path) -> None:
    m = member(tmp_path)
    away = digest(memoryview(WHOLE[12:16]))
    m.bucket.faults.append(Fault(Effect.UNAVAILABLE, "get", away, times=0))
    asks = Asks(m, rows(0, 4))
    asked = asyncio.ensure_future(m.fetched(9, 2))
    await until(lambda: m.record.blocked)
    assert m.record.blocked is not None
    assert m.record.blocked.reason is BlockedReason.STORAGE_UNREACHABLE
    m.bucket.faults.clear()
    assert (await asked).rejection is None
    assert (await handed(m, asks))["w"] == WHOLE
    assert m.record.blocked is None
    assert len(asks.of(OtherWorld)) == 1
    rows_read = [digest(memoryview(WHOLE[at : at + 4])) for at in (0, 4, 8)]
    assert [chunks_read(m).count(row) for row in rows_read] == [1, 1, 1]


class TestTheSlots:
    """What lies in them is no image of a checkpoint: nobody may take it for one, in whatever number of ranks he comes back."""

    async def test_a_slot_that_held_the_rank_s_image_of_the_same_checkpoint_is_not_believed_to_hold_it_any_more(
        self, tmp_path: Path
    ) -> None:
        m = member(tmp_path)
        arena = m.shared.arena
        arena.ensure({(0, 0): len(images()[0])})
        arena.note(0, 0, m.world.uid, ref(1, 2))
        Asks(m, rows(0, 4))
        assert (await m.fetched(9, 2)).rejection is None
        assert arena.contents(0) == {0: None}
        assert arena.__class__(arena.folder).contents(0) == {0: None}, "nor by the next agent"

    async def test_what_the_next_start_of_the_old_number_finds_is_verified_and_not_believed(
        self, tmp_path: Path
    ) -> None:
        """1/1 is of one rank and lies in slot 0 after a restore; then 1/2 of two ranks is loaded; then 1/1 again."""
        m = member(tmp_path)
        assert (await m.fetched(1, 1)).rejection is None
        assert m.shared.arena.contents(0) == {0: Content(m.world.uid, ref(1, 1))}
        asks = Asks(m, rows(0, 4))
        assert (await m.fetched(2, 2)).rejection is None
        assert m.shared.arena.contents(0) == {0: None}
        asks.heard.clear()
        assert (await m.fetched(3, 1)).rejection is None
        assert m.image() == IMAGE

    async def test_a_hint_that_was_left_by_mistake_costs_a_fetch_and_nothing_else(self, tmp_path: Path) -> None:
        m = member(tmp_path)
        Asks(m, rows(0, 4))
        assert (await m.fetched(1, 2)).rejection is None
        m.shared.arena.note(0, 0, m.world.uid, ref(1, 1))  # as if 1/1 lay there
        assert (await m.fetched(2, 1)).rejection is None
        assert m.image() == IMAGE

    async def test_of_ranks_that_are_no_more_the_memory_is_given_back(self, tmp_path: Path) -> None:
        m = member(tmp_path)
        m.shared.arena.ensure({(1, 0): 4096, (7, 1): 4096, (0, 1): 4096})
        m.shared.arena.note(1, 0, m.world.uid, ref(1, 2))
        Asks(m, rows(0, 4))
        assert (await m.fetched(9, 2)).rejection is None
        assert {p.name for p in m.shared.arena.folder.glob("rank-*")} <= {"rank-0-slot-0", "rank-0-slot-1"}
        assert m.shared.arena.find(1, m.world.uid, ref(1, 2)) is None

    async def test_nothing_of_it_is_a_base_for_the_next_save(self, tmp_path: Path) -> None:
        """B4: its chunks are those of other images."""
        m = member(tmp_path)
        Asks(m, rows(0, 4))
        assert (await m.fetched(9, 2)).rejection is None
        m.restoring.loaded(m.shared.crew.ranks[0])
        assert m.record.restored is not None
        assert m.record.restored.save == 2
        assert m.shared.base is None
        assert m.shared.base_manifests == {}

    async def test_nothing_is_fetched_ahead(self, tmp_path: Path) -> None:
        """What is needed is known once the ranks are there; and a slot that holds something is not overwritten for it."""
        m = member(tmp_path)
        assert (await m.fetched(1, 1)).rejection is None
        again = restoring.Restoring(m.shared)
        m.restoring = again
        m.bucket.calls.clear()
        await m.prefetched(2)
        assert chunks_read(m) == []
        assert m.image() == IMAGE

    async def test_no_thread_writes_into_a_slot_after_a_restore_was_given_up(self, tmp_path: Path) -> None:
        m = member(tmp_path)
        m.bucket.faults.append(Fault(Effect.UNAVAILABLE, "get", digest(memoryview(WHOLE[12:16])), times=0))
        Asks(m, rows(0, 4))
        asked = asyncio.ensure_future(m.fetched(9, 2))
        await until(lambda: m.record.blocked)
        await m.restoring.close()
        m.bucket.faults.clear()
        m.shared.arena.ensure({(0, 0): 16})
        before = m.shared.arena.path(0, 0).read_bytes()
        await asyncio.sleep(0.1)
        assert m.shared.arena.path(0, 0).read_bytes() == before
        assert not list(m.shared.arena.folder.glob("states-*"))
        asked.cancel()
