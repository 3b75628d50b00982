"""E6, G2, A5 in one survivor: it takes what was ordered and nothing else, only where there is room, and keeps in memory only what somebody may still finish."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lone import UID, Lone, image
from test_agent_unfinished import kept, waiting, with_node

from holdfast_agent import memory, rescue
from holdfast_agent.clock import Deadline, now
from holdfast_agent.errors import PeerRefused, PeerSilent
from holdfast_agent.experience import Experience
from holdfast_agent.giving import Giving
from holdfast_agent.memory import Room
from holdfast_agent.metrics import Metrics
from holdfast_agent.peers import LATER
from holdfast_agent.record import Record
from holdfast_agent.refuge import Refuge
from holdfast_agent.rescue import Rescue
from holdfast_agent.threads import Stop, Threads
from holdfast_agent.unfinished import Unfinished
from holdfast_api import codec, peers
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Claim, Pending, RankManifest
from holdfast_api.messages import AttemptOrder, Member, RestoreOrder
from holdfast_store.chunks import digest
from holdfast_store.errors import Unavailable
from holdfast_store.folders import NewFile
from holdfast_store.local import LocalTier
from holdfast_store.records import self_proving

MIB = 1 << 20


class Doomed:
    """A worker that holds boundary 10 as save 1, and answers what a survivor asks."""

    def __init__(self, one: Lone) -> None:
        (self.pending,) = waiting(one)
        assert one.shared.node is not None
        self.manifest = one.shared.node.read_manifest(self.pending.ref, self.pending.ranks[0])
        self.store = one.store
        self.asked: list[str] = []
        self.bytes: dict[str, bytes] = {}
        self.holds(self.manifest)

    def holds(self, manifest: RankManifest) -> None:
        text, data, at = codec.to_json(manifest), image(10), 0
        self.bytes[digest(text)] = text
        for chunk in manifest.chunks:
            self.bytes[chunk.digest] = data[at : at + chunk.length]
            at += chunk.length

    def part(self, pending: Pending | None = None, *lengths: int) -> peers.Part:
        text = self_proving(pending or self.pending).decode()
        return peers.Part(1, 1, 0, text, lengths or (len(codec.to_json(self.manifest)),))


class Survivor:
    """The worker that takes it."""

    def __init__(
        self, doomed: Doomed, folder: Path, monkeypatch: pytest.MonkeyPatch, part: peers.Part | None = None
    ) -> None:
        memory_dir = folder / "memory"
        memory_dir.mkdir(parents=True)
        (folder / "local").mkdir()
        self.node = LocalTier(folder / "local", "ns", "job", UID)
        self.refuge = Refuge(self.node, memory_dir, "ns", "job", UID)
        self.giving = Giving()

        async def ask(worker: int, message: object, *, until: Deadline) -> peers.Part:
            assert message == peers.PartWanted(1, 1)
            return part or doomed.part()

        self.shared = shared = SimpleNamespace(
            base=None,
            attempt=1, incarnation="life", logical_bytes=0, threads=Threads(), giving=self.giving, experience=Experience(),
            metrics=Metrics(1), record=Record(UID, 1, "pod-1"), mesh=SimpleNamespace(ask=ask, signed_get=lambda member, path: {}),
            settings=SimpleNamespace(config=SimpleNamespace(worker=1, job_uid=UID)),
            order=AttemptOrder(UID, 1, (Member(0, "pod", "uid", 1, "node", "127.0.0.1:9"),), 1, True, RestoreOrder()),
        )  # fmt: skip
        self.rescue = Rescue(shared, self.refuge)  # type: ignore[arg-type]

        class FakeChunks:
            """Stands in for the other worker's server."""

            def __init__(self, member: Member, sign: object, stop: Stop) -> None:
                self.member, self.stop = member, stop

            def fill(self, name: str, view: memoryview) -> str:
                doomed.asked.append(name)
                data = doomed.bytes.get(name)
                if data is None or len(data) != len(view):
                    return "status 404"
                view[:] = data
                return ""

        monkeypatch.setattr(rescue, "Chunks", FakeChunks)
        monkeypatch.setattr(rescue, "PAUSE_SECONDS", 0.001)

    async def take(self, **fields: object) -> peers.Rescued:
        order = replace(peers.RescueOrder(1, 1, 10, 0, Deadline.after(30).at), **fields)  # type: ignore[arg-type]
        answer = await self.rescue.ordered(order)
        assert isinstance(answer, peers.Rescued)
        return answer

    def parts(self) -> list[Pending]:
        tiers = [self.node] + ([self.refuge.in_memory] if self.refuge.in_memory.root.is_dir() else [])
        return [left.pending for tier in tiers for left in tier.left() if left.pending is not None]


@pytest.fixture
async def doomed(tmp_path: Path) -> Doomed:
    one = with_node(tmp_path)
    await kept(one, 0, 10)
    found = Doomed(one)
    await one.close()
    return found


async def test_a_part_that_was_taken_is_the_part_that_was_left(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Survivor(doomed, tmp_path / "s", monkeypatch)
    assert (await one.take()).error == ""
    assert [replace(p, check="") for p in one.parts()] == [replace(doomed.pending, check="")]
    for index, chunk in enumerate(doomed.manifest.chunks):
        view = memoryview(bytearray(chunk.length))
        one.node.read_chunk_into(doomed.manifest, index, view)
    before = len(doomed.asked)
    assert (await one.take()).error == ""
    assert len(doomed.asked) == before, "asked twice it is done once"


async def test_what_the_survivor_holds_itself_it_does_not_ask_for(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Survivor(doomed, tmp_path / "s", monkeypatch)
    slot = tmp_path / "slot"
    slot.write_bytes(
        image(10)[: len(image(10)) // 2] + b"\0" * (len(image(10)) // 2)
    )  # the second half is another boundary's
    one.giving.saved([(doomed.manifest, slot)], [])
    assert (await one.take()).error == ""
    chunks = [c.digest for c in doomed.manifest.chunks]
    assert chunks[0] not in doomed.asked
    assert chunks[1] in doomed.asked, "what is not what it should be is asked for all the same"
    assert len(one.parts()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"job_uid": "5f0c9d9e-0000-4000-8000-00000000000a"}, {"attempt": 2}, {"save": 2}, {"worker": 1}, {"incarnation": "another"},
        {"world_size": 2},
    ],
    ids=lambda w: next(iter(w)),
)  # fmt: skip
async def test_a_part_that_is_not_the_one_that_was_ordered_is_refused_before_a_byte_is_read(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, object]
) -> None:
    one = Survivor(doomed, tmp_path / "s", monkeypatch, doomed.part(replace(doomed.pending, **wrong)))  # type: ignore[arg-type]
    assert "was ordered" in (await one.take()).error
    assert doomed.asked == []
    assert one.parts() == []


async def test_another_boundary_than_the_one_that_was_ordered_is_refused(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Survivor(doomed, tmp_path / "s", monkeypatch)
    assert "was ordered" in (await one.take(boundary=11)).error


async def test_nonsense_is_an_error_in_words_and_leaves_nothing(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = self_proving(doomed.pending).decode()
    for n, part in enumerate(
        [
            peers.Part(1, 1, 0, ""), peers.Part(1, 1, 0, "{}", (1,)), peers.Part(1, 1, 0, text.replace('"life"', '"lifE"'), (1,)),
            peers.Part(1, 1, 0, text), doomed.part(None, 1 << 40), doomed.part(None, -1), doomed.part(None, 5),
        ]
    ):  # fmt: skip
        one = Survivor(doomed, tmp_path / f"s{n}", monkeypatch, part)
        assert (await one.take()).error, n
        assert one.parts() == []


async def test_a_manifest_of_another_rank_or_save_is_refused_although_its_digest_fits(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(doomed.manifest, boundary=11)
    doomed.holds(wrong)
    entry = replace(doomed.pending.ranks[0], manifest_digest=digest(codec.to_json(wrong)))
    part = doomed.part(replace(doomed.pending, ranks=(entry,)), len(codec.to_json(wrong)))
    one = Survivor(doomed, tmp_path / "s", monkeypatch, part)
    assert "speaks of" in (await one.take()).error
    assert one.parts() == []


async def test_a_chunk_that_cannot_be_read_ends_the_rescue_and_the_next_order_begins_anew(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Survivor(doomed, tmp_path / "s", monkeypatch)
    name = doomed.manifest.chunks[1].digest
    data = doomed.bytes.pop(name)
    assert "cannot be read" in (await one.take()).error
    assert doomed.asked.count(name) == rescue.TRIES
    assert one.parts() == []
    assert list((tmp_path / "s" / "local").rglob("*rank-*")) == [], "no image without a name stays"
    doomed.bytes[name] = data
    assert (await one.take()).error == ""


async def test_a_disk_that_fails_at_the_last_moment_leaves_no_part(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(self: NewFile, **_: object) -> None:
        raise Unavailable("EIO")

    monkeypatch.setattr(NewFile, "keep", keep)
    one = Survivor(doomed, tmp_path / "s", monkeypatch)
    assert "EIO" in (await one.take()).error
    assert one.parts() == []


async def test_after_the_deadline_nothing_is_taken(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Survivor(doomed, tmp_path / "s", monkeypatch)
    assert (await one.take(deadline=now())).error
    assert one.parts() == []


# ---- room (G2)


async def test_what_the_node_has_no_room_for_goes_into_memory_and_else_nowhere(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Survivor(doomed, tmp_path / "s", monkeypatch)
    monkeypatch.setattr(Refuge, "_on_node", lambda self, own: 10)
    monkeypatch.setattr(Refuge, "_in_memory", lambda self: 10)
    assert "no room" in (await one.take()).error
    assert one.parts() == []
    assert doomed.asked == []
    monkeypatch.setattr(Refuge, "_in_memory", lambda self: 1 << 40)
    assert (await one.take()).error == ""
    assert one.node.left() == []
    assert len(one.parts()) == 1


def test_room_on_the_node_is_what_its_own_images_leave(tmp_path: Path) -> None:
    refuge = Refuge(LocalTier(tmp_path, "ns", "job", UID), tmp_path, "ns", "job", UID)
    assert refuge._on_node(1 << 60) < 0
    assert refuge.room(1 << 60) == refuge._in_memory()
    assert refuge.choose(1 << 60, 0) is None
    assert Refuge(None, tmp_path / "gone", "ns", "job", UID).room(0) == 0, "a directory that is not there has none"


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (Room(1000 * MIB, 700 * MIB, 900 * MIB, True, 5000 * MIB), 200 * MIB),
        (Room(1000 * MIB, 950 * MIB, 900 * MIB, True, 5000 * MIB), 0),
        (Room(1000 * MIB, 100 * MIB, 300 * MIB, True, 5000 * MIB), 200 * MIB),
        (Room(None, 0, 9000 * MIB, True, 2000 * MIB), 1800 * MIB),
        (Room(1000 * MIB, 999 * MIB, 500 * MIB, False, 5000 * MIB), 400 * MIB),
    ],
    ids=["limit", "limit is near", "small volume", "machine", "on a disk"],
)
def test_a_tenth_of_the_memory_is_left_for_training(room: Room, expected: int) -> None:
    assert memory.left(room) == expected


# ---- what lies in memory is finished like what lies on a node, and goes


def finisher(doomed: Doomed, tier: LocalTier, attempt: int = 2) -> Unfinished:
    found = Unfinished(
        None, lambda: doomed.store, Threads(), Experience(), Metrics(0), Record(UID, 0, "pod-2"), in_memory=tier
    )  # fmt: skip
    found.begin(attempt)
    return found


def there(tier: LocalTier) -> list[Path]:
    return [p for p in tier.root.rglob("*") if p.is_file()]


async def test_what_was_taken_into_memory_is_finished_from_there_and_its_memory_is_given_back(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Survivor(doomed, tmp_path / "s", monkeypatch)
    monkeypatch.setattr(Refuge, "_on_node", lambda self, own: 0)
    await one.take()
    finishing = finisher(doomed, one.refuge.in_memory)
    await asyncio.wait_for(finishing._task, 30)  # type: ignore[arg-type]
    assert [c.state for c in await finishing.copies()] == ["committed"]
    assert doomed.store.read_commit(doomed.pending.ref)[0].progress.boundary == 10
    assert there(one.refuge.in_memory) == []


async def test_after_a_claim_its_memory_is_given_back_and_before_one_it_waits_for_the_next_attempt(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A5."""
    one = Survivor(doomed, tmp_path / "s", monkeypatch)
    monkeypatch.setattr(Refuge, "_on_node", lambda self, own: 0)
    await one.take()
    tier, closed = (
        one.refuge.in_memory,
        Unfinished(
            None, lambda: None, Threads(), Experience(), Metrics(0), Record(UID, 0, "p"), in_memory=one.refuge.in_memory
        ),
    )
    closed.begin(2)
    await asyncio.wait_for(closed._looked.wait(), 10)
    closed.end("attempt 3 is joined")
    await asyncio.wait_for(closed._task, 10)  # type: ignore[arg-type]
    assert there(tier), "somebody may still finish it"
    closed.begin(3)
    await asyncio.wait_for(closed._looked.wait(), 10)
    closed.end("attempt 3 has claimed", claimed=True)
    await asyncio.wait_for(closed._task, 10)  # type: ignore[arg-type]
    assert there(tier) == []


async def test_a_part_that_is_found_after_a_later_claim_is_dropped(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Survivor(doomed, tmp_path / "s", monkeypatch)
    monkeypatch.setattr(Refuge, "_on_node", lambda self, own: 0)
    await one.take()
    doomed.store.claim(Claim(UID, 2, "another", (), None, now()))
    finishing = finisher(doomed, one.refuge.in_memory, 3)
    await asyncio.wait_for(finishing._task, 30)  # type: ignore[arg-type]
    assert [c.state for c in await finishing.copies()] == ["given-up"]
    assert there(one.refuge.in_memory) == []


async def test_a_later_commit_of_the_same_attempt_gives_the_memory_back(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A8: the notice was withdrawn, and training goes on."""
    one = Survivor(doomed, tmp_path / "s", monkeypatch)
    one.refuge.settled(CheckpointRef(1, 1))  # nothing was ever taken
    monkeypatch.setattr(Refuge, "_on_node", lambda self, own: 0)
    await one.take()
    one.refuge.settled(CheckpointRef(1, 1))
    assert there(one.refuge.in_memory) == []


async def test_of_a_save_that_was_given_up_nothing_stays_that_somebody_could_finish(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its coordinator takes away chunks of what becomes a checkpoint after all (D4)."""
    one = Survivor(doomed, tmp_path / "s", monkeypatch)
    await one.rescue.given_up(1)
    await one.take()
    assert len(one.parts()) == 1
    await one.rescue.given_up(2)
    assert len(one.parts()) == 1
    await one.rescue.given_up(1)
    assert one.parts() == []

    def fails(self: LocalTier, *_: object) -> None:
        raise Unavailable("EIO")

    await one.take()
    monkeypatch.setattr(LocalTier, "drop_pending", fails)
    with pytest.raises(PeerRefused):  # so the coordinator knows that not everybody has dropped it
        await one.rescue.given_up(1)


async def test_what_is_committed_while_it_is_taken_is_not_kept_as_a_part(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Survivor(doomed, tmp_path / "s", monkeypatch)
    one.shared.base = SimpleNamespace(ref=CheckpointRef(1, 1))
    assert "committed" in (await one.take()).error
    assert one.parts() == []


async def test_an_attempt_that_is_over_does_not_wait_for_a_worker_that_says_nothing(
    doomed: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Survivor(doomed, tmp_path / "s", monkeypatch)

    async def ask(worker: int, message: object, *, until: Deadline) -> peers.Part:
        while not until.passed:
            await asyncio.sleep(0.01)
        raise PeerSilent("nothing")

    one.shared.mesh.ask = ask
    monkeypatch.setattr(rescue, "LATER_SECONDS", 0.05)
    assert await one.rescue.ordered(peers.RescueOrder(1, 1, 10, 0, Deadline.after(3600).at)) is LATER
    await asyncio.wait_for(one.rescue.close(), 30)
    assert one.parts() == []
