"""A2, J4, C3: what survivors hold alike is given to a replacement from memory before anybody asks the store; signed for, verified, never waited for long."""

import asyncio
import dataclasses
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast_agent import asking
from holdfast_agent.asking import PATH, FromMembers
from holdfast_agent.giving import Giving, NotHere, NotYet
from holdfast_agent.mappings import Mappings
from holdfast_agent.threads import Stop
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Chunk, RankManifest, TensorEntry
from holdfast_api.messages import AgentPhase, Member
from holdfast_api.signing import Role
from holdfast_store.chunks import digest
from holdfast_store.errors import Absent
from holdfast_store.plain_get import Broken, Refusal, Stalled
from tests.agent.conftest import Gang, Pod, eventually

COPIES = ("1000", "--copies")
STATE_BYTES = 300_000
MakeGang = Callable[..., Gang]


def one_is_lost(gang: MakeGang, trainer: tuple[str, ...] = COPIES, workers: int = 2) -> tuple[Gang, int]:
    """Sealed, and the last worker has gone; its boundary."""
    g = gang(workers=workers, trainer=trainer).start().begin()
    g.wait_for_commit(10)
    g.notice(workers - 1)
    g.wait_for_phase(AgentPhase.SEALED)
    g.pods[workers - 1].kill(signal.SIGTERM)
    assert g.pods[workers - 1].wait() == 72
    return g, g.commits()[-1][1]


def all_restored(g: Gang, boundary: int) -> None:
    for rank in range(g.workers * g.processes):
        eventually(
            lambda r=rank: f"{g.attempt} {r} restored {boundary}" in g.lines(),  # type: ignore[misc]
            "".join(p.words() for p in g.pods.values()),
        )
    assert not [line for line in g.lines() if "TORN" in line]


def slots_of(pod: Pod) -> list[Path]:
    return sorted((pod.folder / "memory").glob("rank-*-slot-*"))


# ---- real agents


def test_a_replacement_reads_no_byte_of_what_survivors_hold_from_the_store(gang: MakeGang) -> None:
    g, boundary = one_is_lost(gang, workers=3)
    g.new_pod(2)
    g.begin()
    all_restored(g, boundary)
    assert g.pods[2].report().fetched_from == {"peer": STATE_BYTES}
    assert [set(g.pods[w].report().fetched_from) for w in (0, 1)] == [{"arena"}, {"arena"}]


def test_state_of_which_each_rank_has_its_own_part_comes_from_the_store(gang: MakeGang) -> None:
    g, boundary = one_is_lost(gang, ("1000",))
    g.new_pod(1)
    g.begin()
    all_restored(g, boundary)
    assert set(g.pods[1].report().fetched_from) == {"store"}


def test_a_survivor_whose_memory_is_damaged_costs_a_fetch_from_the_store_and_never_a_byte(gang: MakeGang) -> None:
    g, boundary = one_is_lost(gang)
    for slot in slots_of(g.pods[0]):
        data = bytearray(slot.read_bytes())
        for at in range(0, len(data), 10_000):
            data[at] ^= 1
        with slot.open("r+b") as file:
            file.write(data)
    g.new_pod(1)
    g.begin()
    all_restored(g, boundary)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_survivors_that_die_or_hang_while_they_are_asked_cost_a_moment(gang: MakeGang, number: signal.Signals) -> None:
    """The giver goes; the next attempt, with a new pod in its place as well, resumes from the same checkpoint."""
    g, boundary = one_is_lost(gang, workers=3)
    g.new_pod(2)
    giver = g.pods[1]
    g.attempt += 1
    for pod in g.pods.values():
        pod.order("/v1/attempt", g.orders())
    giver.kill(number)
    eventually(lambda: g.pods[2].report().bytes_fetched == STATE_BYTES, "the replacement has everything all the same")
    giver.kill()
    giver.wait()
    g.new_pod(1)
    g.begin()
    all_restored(g, boundary)


def test_only_a_member_of_the_attempt_is_given_anything_and_only_what_a_manifest_names(gang: MakeGang) -> None:
    g, boundary = one_is_lost(gang)
    g.new_pod(1)
    g.begin()
    all_restored(g, boundary)
    survivor = g.pods[0]
    record = g.store.read_commit(CheckpointRef.parse(g.commits()[-1][0]))[0]
    name = g.store.read_manifest(record, 0).chunks[0].digest

    def ask(path: str = PATH + name, **fields: object) -> int:
        return survivor.request("GET", path, **({"attempt": g.attempt, "role": Role.PEER} | fields))[0]

    assert ask() == 200
    assert ask(header="") == 401
    assert ask(role=Role.OPERATOR) == 401
    assert ask(job_uid="another") == 401
    assert ask(receiver_pod_uid="another") == 401
    assert ask(attempt=g.attempt - 1) == 409
    assert ask(PATH + "0" * 64) == 404, "what no manifest of this worker names"
    assert ask(PATH + "../../v1/status") in (401, 404)
    assert ask(PATH + name[:-1]) == 404


# ---- the giver


def image_in(folder: Path, *pieces: bytes, rank: int = 0) -> tuple[RankManifest, Path]:
    path = folder / f"slot-{rank}"
    path.write_bytes(b"".join(pieces))
    at, n = CheckpointRef(1, 1), len(pieces[0])
    chunks = tuple(Chunk(digest(p), len(p), at) for p in pieces)
    tensors = (TensorEntry("w", "uint8", (n * len(pieces),), 0, n * len(pieces), group="0-3"),)
    return RankManifest("uid", 1, 1, rank, 4, 7, n * len(pieces), n, chunks, tensors), path


async def test_who_asks_before_anything_is_known_is_told_so_and_later_what_is_not_there(tmp_path: Path) -> None:
    giving, slots = Giving(), Mappings()
    manifest, path = image_in(tmp_path, b"aaaa", b"bbbb")
    with pytest.raises(NotYet):
        async with giving.open(manifest.chunks[0].digest, slots):
            pass
    giving.holds(manifest, path)
    giving.known()
    async with giving.open(manifest.chunks[1].digest, slots) as view:
        assert bytes(view) == b"bbbb"
    with pytest.raises(NotHere):
        async with giving.open("0" * 64, slots):
            pass
    path.unlink()
    with pytest.raises(NotHere):
        async with giving.open(manifest.chunks[0].digest, slots):
            pass
    giving.close()
    with pytest.raises(NotHere):
        async with giving.open(manifest.chunks[1].digest, slots):
            pass


async def test_a_giver_has_a_few_chunks_in_hand_and_the_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    giving, slots = Giving(), Mappings()
    manifest, path = image_in(tmp_path, b"aaaa")
    giving.holds(manifest, path)
    go, inside = asyncio.Event(), 0

    async def take() -> None:
        nonlocal inside
        async with giving.open(manifest.chunks[0].digest, slots):
            inside += 1
            await go.wait()

    tasks = [asyncio.ensure_future(take()) for _ in range(20)]
    await asyncio.sleep(0.05)
    assert inside == 8
    go.set()
    await asyncio.gather(*tasks)


# ---- who asks


class FakeWorkers:
    """Stands in for the others' servers: what each answers to which digest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: object) -> None:
        self.answers = {int(k[1:]): v for k, v in answers.items()}
        self.asked: list[int] = []
        self.forgotten: list[int] = []
        workers = self

        class FakeGet:
            def __init__(self, host: str, port: int, *, connect_seconds: float) -> None:
                self.worker = port

            def fill(self, target: str, headers: object, view: memoryview, limits: object) -> Refusal | None:
                workers.asked.append(self.worker)
                answer = workers.answers[self.worker]
                if callable(answer):
                    answer = answer()
                if isinstance(answer, Exception):
                    raise answer
                if isinstance(answer, int):
                    return Refusal(answer, b"")
                view[:] = answer
                return None

            def forget(self) -> None:
                workers.forgotten.append(self.worker)

        monkeypatch.setattr(asking, "PlainGet", FakeGet)


def asks(own: int = 3, stop: Stop | None = None, ahead: bool = False) -> FromMembers:
    members = [Member(w, f"pod-{w}", f"uid-{w}", 1, "node", f"10.0.0.1:{w}" if w else "10.0.0.1:9") for w in range(4)]
    return FromMembers(members, own, 1, lambda m, path: {}, stop or Stop(), ahead=ahead)


def read(source: FromMembers, manifest: RankManifest, index: int = 0) -> bytes:
    view = memoryview(bytearray(manifest.chunks[index].length))
    source.read(manifest, index, view)
    return bytes(view)


def test_another_worker_is_asked_first_for_each_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = FakeWorkers(monkeypatch, w1=b"aaaa", w2=b"aaaa", w9=b"aaaa")
    manifest, _ = image_in(tmp_path, *[b"aaaa"] * 6)
    source = asks()
    assert [read(source, manifest, i) for i in range(6)] == [b"aaaa"] * 6
    assert sorted(workers.asked) == [1, 1, 2, 2, 9, 9]


@pytest.mark.parametrize("bad", [404, 500, b"zzzz", Stalled("not a byte"), Broken("reset")])
def test_who_does_not_give_what_it_should_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: object
) -> None:
    workers = FakeWorkers(monkeypatch, w9=bad, w1=bad, w2=b"aaaa")
    manifest, _ = image_in(tmp_path, *[b"aaaa"] * 6)
    source = asks()
    assert [read(source, manifest, i) for i in range(6)] == [b"aaaa"] * 6
    assert (workers.asked.count(9), workers.asked.count(1), workers.asked.count(2)) == (1, 1, 6)
    assert set(workers.forgotten) == ({1, 9} if isinstance(bad, bytes) else set()), (
        "a connection that gave another's bytes"
    )


def test_when_nobody_has_it_it_is_absent_and_when_the_restore_is_given_up_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = FakeWorkers(monkeypatch, w9=404, w1=404, w2=404)
    manifest, _ = image_in(tmp_path, b"aaaa")
    with pytest.raises(Absent):
        read(asks(), manifest)
    assert sorted(workers.asked) == [1, 2, 9]
    stop = Stop()
    stop.set("over")
    with pytest.raises(Absent):
        read(asks(stop=stop), manifest)
    assert len(workers.asked) == 3


def test_a_worker_that_does_not_know_yet_is_asked_again_for_a_while_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PAUSE_SECONDS", 0.001)
    later = iter([503, 409, 503, b"aaaa"])
    FakeWorkers(monkeypatch, w9=lambda: next(later), w1=404, w2=404)
    manifest, _ = image_in(tmp_path, b"aaaa")
    assert read(asks(), manifest) == b"aaaa"
    monkeypatch.setattr(asking, "WAIT_SECONDS", 0.05)
    FakeWorkers(monkeypatch, w9=503, w1=503, w2=503)
    with pytest.raises(Absent):
        read(asks(), manifest)


def test_before_the_claim_workers_that_have_not_joined_are_hardly_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be writing the old attempt's last state for minutes."""
    monkeypatch.setattr(asking, "JOIN_AHEAD_SECONDS", 0.0)
    monkeypatch.setattr(asking, "WAIT_SECONDS", 1e9)
    workers = FakeWorkers(monkeypatch, w9=409, w1=409, w2=409)
    manifest, _ = image_in(tmp_path, b"aaaa")
    with pytest.raises(Absent):
        read(asks(ahead=True), manifest)
    assert len(workers.asked) == 3


def test_chunks_that_are_a_ranks_own_ask_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = FakeWorkers(monkeypatch, w9=b"aaaa", w1=b"aaaa", w2=b"aaaa")
    manifest, _ = image_in(tmp_path, b"aaaa", b"bbbb")
    own = TensorEntry("v", "uint8", (4,), 4, 4)
    manifest = dataclasses.replace(manifest, tensors=(dataclasses.replace(manifest.tensors[0], length_bytes=4), own))
    source = asks()
    assert read(source, manifest, 0) == b"aaaa"
    with pytest.raises(Absent):
        read(source, manifest, 1)
    assert len(workers.asked) == 1


def test_many_threads_at_once_get_their_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeWorkers(monkeypatch, w9=404, w1=b"aaaa", w2=Stalled("x"))
    manifest, _ = image_in(tmp_path, *[b"aaaa"] * 32)
    source, got = asks(), []
    threads = [threading.Thread(target=lambda i=i: got.append(read(source, manifest, i))) for i in range(32)]  # type: ignore[misc]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == [b"aaaa"] * 32


def test_workers_whose_numbers_have_gaps_are_counted_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that goes on with fewer workers: ranks 0 to 3 are those of workers 0, 2, 5 and 7."""
    workers = FakeWorkers(monkeypatch, w9=404, w2=b"aaaa", w5=404)
    members = [Member(w, f"pod-{w}", f"uid-{w}", 1, "node", f"10.0.0.1:{w or 9}") for w in (0, 2, 5, 7)]
    source = FromMembers(members, 7, 1, lambda m, path: {}, Stop())
    manifest, _ = image_in(tmp_path, b"aaaa")
    assert read(source, manifest) == b"aaaa"
    assert 2 in workers.asked
