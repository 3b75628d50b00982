"""A3, C3, E4: what would be continued is fetched before the claim, costs nothing twice, decides nothing, and overwrites nothing that may be worth more."""

import asyncio
import dataclasses
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast_agent import restore, restoring
from holdfast_agent.clock import now
from holdfast_agent.errors import PeerRefused
from holdfast_api import layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Claim
from holdfast_api.messages import AgentPhase, Exit, Stage
from holdfast_store import chunks, job
from holdfast_store.memory import Effect, Fault
from tests.agent.conftest import Gang, eventually
from tests.agent.members import IMAGE, Member, ref, until

NEWER = b"aaaabbbbXXXXdddd"
"""What IMAGE has become: one of four chunks has changed."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr(restoring, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(restoring, "LATER_SECONDS", 0.05)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every chunk that was hashed."""
    counted: list[int] = []
    real = restore.digest

    def digest(data: Any) -> str:
        counted.append(len(data))
        return real(data)

    real_add = chunks.Digest.add

    def add(self: chunks.Digest, data: Any) -> None:
        counted.append(len(data))
        real_add(self, data)

    for module in (restore, job):
        monkeypatch.setattr(module, "digest", digest)
    monkeypatch.setattr(chunks.Digest, "add", add)
    return counted


def hold_chunks(member: Member) -> tuple[list[str], threading.Event]:
    """Reads of chunks stand still until the event; the keys of those that have begun."""
    begun: list[str] = []
    go = threading.Event()

    def hold(_operation: str, key: str) -> None:
        if "/chunks/" in key:
            begun.append(key)
            go.wait(30)

    member.bucket.before_call = hold
    return begun, go


def chunk_reads(member: Member) -> int:
    return sum(operation == "get" and "/chunks/" in key for operation, key in member.bucket.calls)


async def test_what_was_fetched_ahead_is_neither_fetched_nor_hashed_again(tmp_path: Path, hashed: list[int]) -> None:
    member = Member(tmp_path)
    await member.prefetched()
    assert member.image() == IMAGE
    assert (member.record.resolved, member.record.blocked) == (False, None)
    reads, _ = chunk_reads(member), hashed.clear()
    assert (await member.fetched()).rejection is None
    assert chunk_reads(member) == reads
    assert hashed == []
    assert member.record.fetched_from == {"store": len(IMAGE)}


async def test_every_byte_is_hashed_once_whatever_happens_on_the_way(tmp_path: Path, hashed: list[int]) -> None:
    """Bytes read for validation / bytes of the checkpoint <= 1: a store that fails in the middle changes nothing."""
    member = Member(tmp_path)
    member.bucket.faults.append(Fault(Effect.UNAVAILABLE, "get", "/chunks/", first=3, times=6))
    hashed.clear()
    assert (await member.fetched()).rejection is None
    assert sum(hashed) == len(IMAGE)


async def test_a_commit_that_appears_between_prefetch_and_claim_costs_what_has_changed(tmp_path: Path) -> None:
    member = Member(tmp_path)
    await member.prefetched()
    member.world.saved(1, 2, NEWER)  # without a base: nothing but the content says that it is the same
    before = chunk_reads(member)
    assert (await member.fetched(save=2)).rejection is None
    assert member.image() == NEWER
    assert chunk_reads(member) == before + 1


async def test_a_newer_prefetch_replaces_the_one_that_runs(tmp_path: Path) -> None:
    member, go = Member(tmp_path), threading.Event()
    member.world.saved(1, 2, NEWER)

    def hold(operation: str, key: str) -> None:
        if operation == "get" and "/chunks/" in key:
            go.wait(30)

    member.bucket.before_call = hold
    member.prefetch(1)
    first = member.restoring._ahead
    assert first is not None
    await asyncio.sleep(0.05)
    member.prefetch(2)
    await asyncio.sleep(0.05)
    assert first.stop.wanted
    go.set()
    assert member.restoring._ahead is not None
    await member.restoring._ahead.task
    assert member.image() == NEWER


async def test_a_claim_in_the_middle_of_a_prefetch_goes_on_from_there(tmp_path: Path, hashed: list[int]) -> None:
    member, go = Member(tmp_path), threading.Event()
    last = member.world.store.read_manifest(member.world.store.read_commit(ref(1, 1))[0], 0).chunks[3].digest

    def hold(_operation: str, key: str) -> None:
        if key.endswith(last):
            go.wait(30)

    hashed.clear()
    member.bucket.before_call = hold
    member.prefetch()
    await until(lambda: sum(member.record.fetched_from.values()) == 12)
    asked = asyncio.ensure_future(member.fetched())
    await asyncio.sleep(0.05)
    assert not asked.done()
    go.set()
    assert (await asked).rejection is None
    assert member.image() == IMAGE
    assert sum(hashed) == len(IMAGE)


async def test_a_thread_of_the_prefetch_never_writes_into_what_was_resolved(tmp_path: Path) -> None:
    member, go = Member(tmp_path), threading.Event()
    member.world.saved(1, 2, NEWER)
    old = member.world.store.read_manifest(member.world.store.read_commit(ref(1, 1))[0], 0).chunks[2].digest

    def hold(_operation: str, key: str) -> None:
        if key.endswith(old):
            go.wait(30)

    member.bucket.before_call = hold
    member.prefetch(1)
    await until(lambda: sum(member.record.fetched_from.values()) == 12)
    asked = asyncio.ensure_future(member.fetched(save=2))
    await asyncio.sleep(0.1)
    assert not asked.done()
    go.set()
    assert (await asked).rejection is None
    assert member.image() == NEWER


async def test_bytes_that_were_overwritten_by_a_fetch_that_failed_are_not_believed_any_more(tmp_path: Path) -> None:
    member = Member(tmp_path)
    await member.prefetched(1)
    member.world.saved(1, 2, NEWER)
    changed = member.world.store.read_manifest(member.world.store.read_commit(ref(1, 2))[0], 0).chunks[2].digest
    member.bucket.damage(next(key for key in member.bucket.objects if key.endswith(changed)), b"zzzz")
    assert (await member.fetched(1, save=2)).rejection is not None
    assert (await member.fetched(2, save=1)).rejection is None
    assert member.image() == IMAGE


async def test_a_fetch_that_is_cancelled_ends_when_its_threads_have(tmp_path: Path) -> None:
    """Else a rank of the next attempt could capture into the slot while a thread of this one still writes there."""
    member = Member(tmp_path)
    begun, go = hold_chunks(member)
    asked = asyncio.ensure_future(member.fetched())
    await until(lambda: len(begun) == 4)
    closing = asyncio.ensure_future(member.restoring.close())
    await asyncio.sleep(0.1)
    assert not closing.done()
    go.set()
    await closing
    asked.cancel()


async def test_however_often_a_fetch_is_cancelled_it_ends_after_its_threads(tmp_path: Path) -> None:
    member = Member(tmp_path)
    record, _ = member.world.store.read_commit(ref(1, 1))
    begun, go = hold_chunks(member)
    fetching = asyncio.ensure_future(
        restore.fetch(
            record, range(1), store=member.world.store, node=None, arena=member.shared.arena, threads=member.shared.threads,
            tally=restore.Tally(lambda *_: None), stop=restoring.Stop(),
        )
    )  # fmt: skip
    await until(lambda: len(begun) == 4)
    for _ in range(3):
        fetching.cancel()
        await asyncio.sleep(0.05)
    assert not fetching.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert member.image() == IMAGE


async def test_an_attempt_that_ends_while_another_choice_begins_leaves_no_thread_behind_and_begins_nothing(
    tmp_path: Path,
) -> None:
    """The next attempt of this pod has the slots then, and what it has verified must not change."""
    member = Member(tmp_path)
    member.world.saved(1, 2, NEWER)
    begun, go = hold_chunks(member)
    asked = [asyncio.ensure_future(member.fetched(1, save=1))]
    await until(lambda: len(begun) == 4)
    asked.append(asyncio.ensure_future(member.fetched(2, save=2)))
    await asyncio.sleep(0.1)
    closing = asyncio.ensure_future(member.restoring.close())
    await asyncio.sleep(0.1)
    assert not closing.done()
    go.set()
    await closing
    with pytest.raises(PeerRefused):
        await asked[1]
    await asyncio.sleep(0.1)
    assert len(begun) == 4
    asked[0].cancel()


async def test_a_prefetch_that_fails_says_nothing_rejects_nothing_and_is_tried_again(tmp_path: Path) -> None:
    member = Member(tmp_path)
    member.bucket.faults.append(Fault(Effect.UNAVAILABLE, "get", "/chunks/", times=0))
    await member.prefetched()
    assert member.record.blocked is None
    assert member.record.rejections == []
    member.bucket.faults.clear()
    await member.prefetched()
    assert member.image() == IMAGE


async def test_a_damaged_chunk_is_found_ahead_but_rejected_only_when_it_is_resolved(tmp_path: Path) -> None:
    member = Member(tmp_path)
    chunk = next(key for key in member.bucket.objects if "/chunks/" in key)
    member.bucket.damage(chunk, b"xxxx")
    await member.prefetched()
    rejection = (await member.fetched()).rejection
    assert rejection is not None
    assert rejection.of_checkpoint
    assert "rank 0, chunk" in rejection.reason
    assert "store: " in rejection.reason


async def test_the_newest_state_in_memory_is_not_overwritten_by_a_prefetch_of_something_older(tmp_path: Path) -> None:
    """E4: its commit may be under way, and then it is the fastest source there is."""
    member = Member(tmp_path)
    arena = member.shared.arena
    for slot, save in ((0, 8), (1, 9)):
        arena.ensure({(0, slot): 16})
        arena.path(0, slot).write_bytes(b"new%d" % save * 4)
        arena.note(0, slot, member.world.uid, CheckpointRef(1, save))
    await member.prefetched()
    assert [member.image(slot) for slot in (0, 1)] == [b"new8" * 4, b"new9" * 4]
    assert (await member.fetched()).rejection is None, "the claim decides"
    assert member.image(0) == IMAGE
    assert member.image(1) == b"new9" * 4


async def test_a_prefetch_beside_a_newer_state_takes_the_other_slot(tmp_path: Path) -> None:
    member = Member(tmp_path)
    member.shared.arena.ensure({(0, 0): 16})
    member.shared.arena.note(0, 0, member.world.uid, CheckpointRef(1, 9))
    await member.prefetched()
    assert member.image(1) == IMAGE
    assert (await member.fetched()).rejection is None
    assert member.restoring._images[0].slot == 1


async def test_memory_that_does_not_suffice_costs_the_prefetch_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = Member(tmp_path)
    real = member.shared.arena.ensure

    def ensure(wanted: dict[tuple[int, int], int]) -> int:
        raise restoring.MemoryTooSmall("not now")

    monkeypatch.setattr(member.shared.arena, "ensure", ensure)
    await member.prefetched()
    assert member.record.blocked is None
    monkeypatch.setattr(member.shared.arena, "ensure", real)
    assert (await member.fetched()).rejection is None


@pytest.mark.parametrize("why", ["resolved", "closed", "evacuating", "no store"])
async def test_nothing_is_fetched_ahead_when_it_would_be_in_the_way(tmp_path: Path, why: str) -> None:
    member = Member(tmp_path)
    if why == "resolved":
        await member.fetched()
    elif why == "closed":
        await member.restoring.close()
    elif why == "evacuating":
        member.record.evacuating = True
    else:
        member.shared.store = None
    member.prefetch()
    assert member.restoring._ahead is None


async def test_after_close_no_thread_writes_into_a_slot(tmp_path: Path) -> None:
    member = Member(tmp_path)
    begun, go = hold_chunks(member)
    member.prefetch()
    await until(lambda: len(begun) == 4)
    closing = asyncio.ensure_future(member.restoring.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    go.set()
    await closing
    before = member.image()
    await asyncio.sleep(0.05)
    assert member.image() == before


async def test_replicas_of_one_worker_are_read_once(tmp_path: Path, hashed: list[int]) -> None:
    """J4: the parameters of eight DDP ranks are the same bytes."""
    member = Member(tmp_path)
    member.world.saved(1, 2, [IMAGE, IMAGE, b"aaaabbbbrankdddd"])
    record, _ = member.world.store.read_commit(ref(1, 2))
    member.bucket.calls.clear()
    hashed.clear()
    counted: dict[str, int] = {}
    images = await restore.fetch(
        record, range(3), store=member.world.store, node=None, arena=member.shared.arena, threads=member.shared.threads,
        tally=restore.Tally(lambda s, n: counted.update({s: counted.get(s, 0) + n})), stop=restoring.Stop(),
    )  # fmt: skip
    assert chunk_reads(member) == 5
    assert counted == {"store": 20, "arena": 28}
    assert sum(hashed) == 48
    assert [i.path.read_bytes()[:16] for i in images.values()] == [IMAGE, IMAGE, b"aaaabbbbrankdddd"]


# Real agents


def begin_without_claim(g: Gang, **restore: Any) -> None:
    """The operator has told every member, and the old attempt is not sealed yet."""
    g.attempt += 1
    for pod in g.pods.values():
        status, _ = pod.order("/v1/attempt", g.orders(**restore))
        assert status == 200


def allow(g: Gang) -> None:
    g.attempt -= 1
    g.begin()


def job_keys(g: Gang) -> set[str]:
    """Everything that a claim or a save would write."""
    return {str(p) for kind in ("attempts/*.json", "checkpoints/*/*/**/*") for p in g.bucket.glob(f"ns/job-*/{kind}")}


def stopped(gang: Callable[..., Gang], workers: int = 2) -> Gang:
    """A job with a few checkpoints whose nodes are all lost."""
    g = gang(workers=workers, trainer=("100000",)).start().begin()
    g.wait_for_commit(20)
    for pod in g.pods.values():
        pod.kill()
        pod.wait()
    return g


def image_bytes(g: Gang) -> int:
    ref = CheckpointRef.parse(g.commits()[-1][0])
    return g.store.read_commit(ref)[0].ranks[0].image_bytes


def restored(g: Gang) -> set[str]:
    return {x.split(maxsplit=2)[2] for x in g.lines() if x.split()[0] == str(g.attempt) and "restored" in x}


def test_members_fetch_before_the_claim_and_nothing_is_written_in_the_store(gang: Callable[..., Gang]) -> None:
    g = stopped(gang)
    for worker in list(g.pods):
        g.new_pod(worker)
    before, newest, size = job_keys(g), g.commits()[-1][1], image_bytes(g)
    begin_without_claim(g)
    for pod in g.pods.values():
        eventually(lambda p=pod: p.report().bytes_fetched == size, f"fetched ahead; {pod.words()}")  # type: ignore[misc]
        assert pod.report().claim is None
        assert pod.report().phase is AgentPhase.STARTING
    assert job_keys(g) == before
    allow(g)
    g.wait_for_commit(newest + 1)
    assert restored(g) == {f"restored {newest}"}
    assert all(p.report().fetched_from == {"store": size} for p in g.pods.values()), "nothing twice"


def test_the_commit_that_the_old_attempt_makes_while_it_is_being_sealed_is_what_is_loaded(
    gang: Callable[..., Gang],
) -> None:
    """Handover: the replacement fetches what is durable; then the emergency save appears."""
    g = gang(workers=1, trainer=("100000",)).start().begin()
    g.wait_for_commit(20)
    old = g.pods[0]
    g.new_pod(0)
    g.attempt = 2
    order = g.orders()
    assert g.pods[0].order("/v1/attempt", order)[0] == 200
    eventually(lambda: g.pods[0].report().bytes_fetched, "something is fetched ahead")
    fetched = g.pods[0].report().bytes_fetched
    old.kill(signal.SIGTERM)
    old.wait()
    newest = g.commits()[-1][1]
    allow(g)
    g.wait_for_commit(newest + 1)
    assert restored(g) == {f"restored {newest}"}
    assert fetched
    assert not [line for line in g.lines() if "TORN" in line]


@pytest.mark.parametrize("seed", range(2))
def test_an_agent_killed_in_the_middle_of_a_prefetch_begins_anew(gang: Callable[..., Gang], seed: int) -> None:
    g = stopped(gang, workers=1)
    newest = g.commits()[-1][1]
    pod = g.new_pod(0)
    for n in range(2):
        begin_without_claim(g)
        time.sleep(0.05 * (seed + 1) * (n + 1))
        pod.kill()
        pod.wait()
        pod.start()
    g.begin()
    g.wait_for_commit(newest + 1)
    assert restored(g) == {f"restored {newest}"}


def test_an_attempt_that_is_superseded_while_it_fetches_ahead_claims_nothing(gang: Callable[..., Gang]) -> None:
    g = stopped(gang, workers=1)
    g.new_pod(0)
    begin_without_claim(g)
    eventually(lambda: g.pods[0].report().bytes_fetched, "something is fetched ahead")
    g.store.claim(Claim(g.job_uid, 9, "another", (g.pods[0].member,), None, now()))
    commits = g.commits()
    g.pods[0].order("/v1/attempt", dataclasses.replace(g.orders(), may_claim=True))
    assert g.pods[0].wait() == 74
    assert g.pods[0].last_report().exit is Exit.SUPERSEDED
    assert g.commits() == commits
    assert not (g.bucket / "ns" / f"job-{g.job_uid}" / layout.claim_key(g.attempt)).exists()


def test_stages_say_that_the_bytes_were_there_when_the_claim_was_made(gang: Callable[..., Gang]) -> None:
    g = stopped(gang, workers=1)
    g.new_pod(0)
    begin_without_claim(g)
    eventually(lambda: Stage.PREFETCHED.value in g.pods[0].report().stages, f"prefetched; {g.pods[0].words()}")
    allow(g)
    eventually(lambda: Stage.LOADED.value in g.pods[0].report().stages, "loaded")
    stages = g.pods[0].report().stages
    assert stages[Stage.PREFETCHED.value] <= stages[Stage.CLAIMED.value] <= stages[Stage.FETCHED.value]
