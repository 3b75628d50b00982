"""J4: ranks that should hold the same bytes are compared before each commit, and a checkpoint whose copies differ is committed as suspect, by name."""

import asyncio
import dataclasses
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lone import Lone

from holdfast_agent import flush, replicas
from holdfast_agent.clock import Deadline
from holdfast_agent.threads import Stop, Threads
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import RankManifest, TensorEntry
from holdfast_api.messages import Cause
from holdfast_api.peers import Flushed, FlushOrder, ReplicaDigest
from holdfast_store.job import JobStore
from holdfast_store.memory import MemoryBucket

CHUNK = 4096
HEADER = 100
ENTRIES = (
    ("head", HEADER, 1000, "0-2"),  # beside the header
    ("large", CHUNK, 2 * CHUNK, "0-2"),  # two chunks of its own
    ("first", 3 * CHUNK, 700, "0-2"),
    ("mean", 3 * CHUNK + 700, 700, ""),  # a buffer, in between
    ("second", 3 * CHUNK + 1400, 700, "0-2"),
)
SIZE = 4 * CHUNK


def entries(*, world: str = "0-2") -> tuple[TensorEntry, ...]:
    return tuple(TensorEntry(n, "uint8", (size,), at, size, None, (), (), g and world) for n, at, size, g in ENTRIES)


def written(folder: Path, images: list[bytes], tensors: tuple[TensorEntry, ...]) -> flush.Written:
    """What a flush of all ranks by one worker finds, for real."""
    for rank, image in enumerate(images):
        (folder / f"slot-{rank}").write_bytes(image)
    parts = tuple(flush.Part(r, folder / f"slot-{r}", SIZE, 7, tensors) for r in range(len(images)))
    job = flush.Job("uid", CheckpointRef(1, 1), len(parts), CHUNK, parts)
    store = JobStore(MemoryBucket(), "ns", "job", "uid")

    async def run() -> flush.Written:
        threads = Threads()
        try:
            return await flush.write(job, store, None, threads, Stop())
        finally:
            threads.close()

    return asyncio.run(run())


def copies(*flipped: tuple[int, int]) -> list[bytes]:
    """Images of three ranks: header and buffer are each rank's own. (rank, offset): a bit is turned there."""
    common, own = os.urandom(SIZE), [os.urandom(SIZE) for _ in range(3)]
    images = []
    for rank in range(3):
        image = bytearray(common)
        for begin, end in ((0, HEADER), (3 * CHUNK + 700, 3 * CHUNK + 1400), (3 * CHUNK + 2100, SIZE)):
            image[begin:end] = own[rank][begin:end]
        for at in (o for r, o in flipped if r == rank):
            image[at] ^= 1
        images.append(bytes(image))
    return images


def test_copies_agree_whatever_each_rank_has_of_its_own(tmp_path: Path) -> None:
    done = written(tmp_path, copies(), entries())
    assert replicas.is_compared(done.replicas)
    assert replicas.compare(done.replicas) == ()


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("head", HEADER + 999),
        ("large", CHUNK),
        ("large", 3 * CHUNK - 1),
        ("first", 3 * CHUNK),
        ("second", 3 * CHUNK + 2099),
    ],
)
def test_one_bit_is_found_with_the_rank_and_the_tensor(name: str, offset: int, tmp_path: Path) -> None:
    done = written(tmp_path, copies((1, offset)), entries())
    (found,) = replicas.compare(done.replicas)
    assert (found.odd, found.others) == ((1,), (0, 2))
    assert "of ranks 0-2, which hold copies of one state, 1 hold other bytes than 0, 2" in found.words
    assert replicas.names_of(done.manifests[1], done.manifests[0]) == (name,)
    assert replicas.names_of(done.manifests[2], done.manifests[0]) == ()


def test_ranks_whose_state_lies_otherwise_are_not_compared(tmp_path: Path) -> None:
    """One of them keeps something more: its chunks hold other things, which is no damage."""
    done = written(tmp_path, copies(), entries())
    moved = tuple(dataclasses.replace(e, name=e.name + "x") for e in entries())
    sides = replicas.compared(moved, SIZE, CHUNK)
    other = replicas.summary(
        sides,
        dataclasses.replace(done.manifests[1], loose=replicas.loose_digests(sides.values(), memoryview(bytes(SIZE)))),
    )
    assert replicas.compare([*(d for d in done.replicas if d.rank == 0), *other]) == ()


def test_parts_are_compared_with_copies_of_the_same_part_alone() -> None:
    """Ranks 0 and 2 hold the first half, 1 and 3 the second, and all of them a counter."""

    def told(rank: int, half: int, content: bytes, step: bytes = b"step") -> tuple[ReplicaDigest, ...]:
        tensors = (
            TensorEntry("w", "uint8", (CHUNK,), CHUNK, CHUNK, None, (2 * CHUNK,), (half * CHUNK,), "0-3"),
            TensorEntry("step", "uint8", (4,), 2 * CHUNK, 4, None, (), (), "0-3"),
        )
        image = bytes(CHUNK) + content + step + bytes(CHUNK - 4)
        sides = replicas.compared(tensors, len(image), CHUNK)
        chunks = tuple(
            flush.Chunk(flush.digest(image[i : i + CHUNK]), CHUNK, CheckpointRef(1, 1))
            for i in range(0, len(image), CHUNK)
        )
        loose = replicas.loose_digests(sides.values(), memoryview(image))
        manifest = RankManifest("uid", 1, 1, rank, 4, 7, len(image), CHUNK, chunks, tensors, loose)
        return replicas.summary(sides, manifest)

    one, two, bad = b"1" * CHUNK, b"2" * CHUNK, b"1" * (CHUNK - 1) + b"3"
    good = [*told(0, 0, one), *told(1, 1, two), *told(2, 0, one), *told(3, 1, two)]
    assert replicas.is_compared(good)
    assert replicas.compare(good) == ()
    (found,) = replicas.compare([*told(0, 0, one), *told(1, 1, two), *told(2, 0, bad), *told(3, 1, two)])
    assert (found.odd, found.others) == ((2,), (0,))
    (found,) = replicas.compare([*told(0, 0, one), *told(1, 1, two, b"stop"), *told(2, 0, one), *told(3, 1, two)])
    assert (found.odd, found.others) == ((1,), (0, 2, 3)), "the counter is all ranks', whatever part they hold"


def test_a_dtensor_that_every_rank_has_whole_is_compared_beside_parts_that_differ() -> None:
    """Tensor parallel: norms are replicated on the mesh on which weights are shared out."""

    def told(rank: int, norm: bytes) -> tuple[ReplicaDigest, ...]:
        tensors = (
            TensorEntry("norm", "uint8", (CHUNK,), CHUNK, CHUNK, None, (CHUNK,), (0,), "0-2"),
            TensorEntry("w", "uint8", (CHUNK,), 2 * CHUNK, CHUNK, None, (3 * CHUNK,), (rank * CHUNK,), "0-2"),
        )
        image = bytes(CHUNK) + norm + bytes([rank]) * CHUNK
        sides = replicas.compared(tensors, len(image), CHUNK)
        chunks = tuple(
            flush.Chunk(flush.digest(image[i : i + CHUNK]), CHUNK, CheckpointRef(1, 1))
            for i in range(0, len(image), CHUNK)
        )
        loose = replicas.loose_digests(sides.values(), memoryview(image))
        return replicas.summary(sides, RankManifest("uid", 1, 1, rank, 3, 7, len(image), CHUNK, chunks, tensors, loose))

    good, bad = b"1" * CHUNK, b"1" * (CHUNK - 1) + b"3"
    assert replicas.is_compared(told(0, good) + told(1, good) + told(2, good))
    assert replicas.compare(told(0, good) + told(1, good) + told(2, good)) == ()
    (found,) = replicas.compare(told(0, good) + told(1, bad) + told(2, good))
    assert (found.group, found.odd) == ("0-2", (1,))


def test_what_has_no_copy_says_nothing() -> None:
    assert replicas.compared(entries(world=""), SIZE, CHUNK) == {}
    lone = [ReplicaDigest(0, "0", "t", "c"), ReplicaDigest(1, "1", "t", "d")]
    assert not replicas.is_compared(lone)
    assert replicas.compare(lone) == ()


class Told(Lone):
    """Its only worker claims to hold two more ranks, whose copies are as ordered: damage that no rank makes on order."""

    contents = ("same", "same", "same")

    async def peer(self, message):
        answer = await super().peer(message)
        if isinstance(message, FlushOrder) and isinstance(answer, Flushed):
            digests = tuple(ReplicaDigest(r, "0-2", "table", c) for r, c in enumerate(self.contents))
            return dataclasses.replace(answer, replicas=digests)
        return answer


@pytest.mark.parametrize("emergency", [False, True])
async def test_a_checkpoint_whose_copies_differ_is_committed_as_suspect(emergency, tmp_path, caplog):
    one = Told(tmp_path)
    one.capture(0, 10)
    await one.saves.make(10, Cause.PERIODIC, deadline=Deadline.after(60))
    one.contents = ("same", "same", "other")
    one.capture(1, 20)
    await one.saves.make(20, Cause.PERIODIC, deadline=Deadline.after(60), emergency=emergency)
    first, second = one.commits()
    assert first.run["replicas"] == "agree"
    assert second.run["replicas"].startswith(
        "SUSPECT: of ranks 0-2, which hold copies of one state, 2 hold other bytes than 0, 1"
    )
    assert any("1/2 is SUSPECT" in r.getMessage() for r in caplog.records)
    assert one.shared.metrics.replicas_differ._value.get() == 1
    await one.close()
