"""Fault scenarios 14 to 18, 63, 80: bytes that are not what was written, in any place: slots, node, store; chunks, manifests, commit records, claims.

Every damage ends in the newest checkpoint that is whole somewhere, or in words; never in a torn state, never in a start from zero (C1, C3).
"""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from holdfast_api import codec, layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Chunk, RankEntry, RankManifest
from holdfast_store.chunks import digest
from holdfast_store.errors import Corrupt, Misconfigured
from holdfast_store.records import self_proving
from tests.faults import points, saving
from tests.faults.saving import CHUNK, NEW, OLD, RANKS, UID, Place

SAMPLE = 40
pytestmark = pytest.mark.timeout(1800)
JOB = f"ns/job-{UID}"


@pytest.fixture(scope="module")
def twice_saved(job_with_a_checkpoint: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Two checkpoints in the store, the newer one on the node and in slots."""
    place = job_with_a_checkpoint.copy(tmp_path_factory.mktemp("twice") / "job")
    saving.second_save(str(place.root))
    return place


@pytest.fixture
def copy(twice_saved: Place, tmp_path: Path) -> Callable[[], Place]:
    numbers = iter(range(1_000_000))
    return lambda: twice_saved.copy(tmp_path / f"damaged-{next(numbers)}")


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def cut(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.choice([0, 1, len(data) // 2, len(data) - 1])])


def grow(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + bytes(rng.choice([1, 4096])))


def garbage(path: Path, rng: random.Random) -> None:
    path.write_bytes(
        rng.choice(
            [
                b"[" * 100_000,
                b'{"a":' * 5000,
                b"\xff\xfe",
                b"<html>",
                b"1" * 5000,
                b"null",
                b'{"schema":1,"schema":1}',
                b"NaN",
            ]
        )
    )


def zeros(path: Path, rng: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def missing(path: Path, rng: random.Random) -> None:
    path.unlink()


def a_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


KINDS = [flip, cut, grow, garbage, zeros, missing, a_folder]


def files(place: Place, folder: str) -> list[str]:
    return sorted(str(p.relative_to(place.root)) for p in (place.root / folder).rglob("*") if p.is_file())


def cases(
    place: Place, folder: str, keep: Callable[[str], bool] = lambda path: True
) -> Iterator[tuple[Callable[..., None], str, random.Random]]:
    every = [(kind, path) for path in files(place, folder) if keep(path) for kind in KINDS]
    for number, (kind, path) in enumerate(points.sample(every, SAMPLE)):
        yield kind, path, random.Random(f"{points.seed()}/{number}")


@pytest.mark.parametrize("folder", ["arena", "node"])
def test_damage_in_a_slot_or_on_the_node_costs_a_fetch_and_nothing_else(
    twice_saved: Place, copy: Callable[[], Place], folder: str
) -> None:
    for kind, path, rng in cases(twice_saved, folder):
        place = copy()
        if folder == "node":
            shutil.rmtree(place.root / "arena")
        elif kind is a_folder:
            continue  # the memory volume is the agent's own; it is refused in words when it is made (C3 does not speak of it)
        kind(place.root / path, rng)
        resumed = saving.next_start(place)
        assert (resumed.boundary, resumed.rejected) == (NEW, ()), (kind.__name__, path, resumed)
        shutil.rmtree(place.root)


def closure(place: Place, number: int) -> set[str]:
    """Every file of the store without which checkpoint 1/`number` is not whole."""
    store, ref = place.store(), CheckpointRef(1, number)
    record, _ = store.read_commit(ref)
    found = {layout.commit_key(ref), *(layout.manifest_key(ref, r) for r in range(RANKS))}
    for rank in range(RANKS):
        found |= {layout.chunk_key(c.at, c.digest) for c in store.read_manifest(record, rank).chunks}
    return {f"store/{JOB}/{key}" for key in found}


def test_damage_in_the_store_ends_in_the_newest_checkpoint_that_is_whole(
    twice_saved: Place, copy: Callable[[], Place]
) -> None:
    """Seen from another node. What both checkpoints need, and is bad, leaves nothing: said in words, and nothing starts from zero (C1)."""
    newer, older = closure(twice_saved, 2), closure(twice_saved, 1)
    assert newer & older, "the two share chunks"
    for kind, path, rng in cases(twice_saved, "store", lambda path: "/attempts/" not in path):
        place = copy()
        kind(place.root / path, rng)
        if kind is a_folder and path in newer and not path.endswith("commit.json"):
            with pytest.raises(
                Misconfigured, match="not a regular file"
            ):  # nothing that a store does by itself: a person looks
                start_elsewhere(place)
            continue
        resumed = start_elsewhere(place)
        expected = NEW if path not in newer else OLD if path not in older else 0
        assert resumed.boundary == expected, (kind.__name__, path, resumed)
        assert not resumed.fresh_allowed, (kind.__name__, path)
        if expected != NEW:
            gone = kind in (missing, a_folder) and path.endswith("commit.json")
            assert gone or resumed.rejected, (kind.__name__, path, "rejected without a word")
        shutil.rmtree(place.root)


def start_elsewhere(place: Place) -> saving.Resumed:
    shutil.rmtree(place.root / "arena", ignore_errors=True)
    return saving.next_start(place, claim=False, with_node=False)


def test_a_bad_chunk_of_the_store_is_taken_from_the_node(twice_saved: Place, copy: Callable[[], Place]) -> None:
    """Scenarios 14, 80."""
    shared = sorted(closure(twice_saved, 2) & closure(twice_saved, 1))
    for path in points.sample(shared, 3):
        place = copy()
        shutil.rmtree(place.root / "arena")
        flip(place.root / path, random.Random(0))
        resumed = saving.next_start(place, claim=False)
        assert (resumed.boundary, resumed.rejected) == (NEW, ())


def test_any_bit_of_a_claim_that_turns_over_is_seen(twice_saved: Place, copy: Callable[[], Place]) -> None:
    """A7: the claim says what is continued. A changed digit in it must not quietly continue something older."""
    place = copy()
    resumed = saving.next_start(place)
    key = place.store_folder / JOB / layout.claim_key(resumed.attempt)
    whole, claim = key.read_bytes(), place.store().newest_claim()
    for bit in points.sample(range(8 * len(whole)), 200):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        key.write_bytes(bytes(damaged))
        try:
            found = place.store().newest_claim()
        except Corrupt:
            continue
        assert found == claim, bytes(damaged)  # the bit lies in the name of a field that readers may do without


# ---- records that are consistent in themselves and absurd


@dataclass(frozen=True)
class Forged:
    """A third checkpoint, written past the code that would refuse to write it."""

    place: Place

    def commit(self, change: Callable[[RankManifest], RankManifest]) -> None:
        store = self.place.store()
        record, _ = store.read_commit(CheckpointRef(1, 2))
        entries = []
        for rank in range(RANKS):
            manifest = change(replace(store.read_manifest(record, rank), save=3))
            data = codec.to_json(manifest)
            store.bucket.create(store.prefix + f"checkpoints/0000000001/0000000003/rank-{rank}.json", data)
            entries.append(RankEntry(rank, digest(data), manifest.image_bytes))
        forged = replace(
            record,
            save=3,
            base=record.ref,
            refers_to=(CheckpointRef(1, 1), record.ref),
            ranks=tuple(entries),
            created_at=datetime.now(UTC),
        )
        store.bucket.create(store.prefix + layout.commit_key(CheckpointRef(1, 3)), self_proving(forged))


def one_chunk(length: int) -> Callable[[RankManifest], RankManifest]:
    return lambda m: replace(
        m, image_bytes=length, chunk_bytes=length, chunks=(Chunk("0" * 64, length, CheckpointRef(1, 3)),), tensors=()
    )


ABSURD: dict[str, Callable[[RankManifest], RankManifest]] = {
    "an image of an exabyte": one_chunk(1 << 60),
    "an image larger than any number of the machine": one_chunk(1 << 80),
    "a chunk of 64 GiB": one_chunk(1 << 36),
    "another job": lambda m: replace(m, job_uid="5f0c9d9e-0000-4000-8000-00000000000a"),
    "another number of ranks": lambda m: replace(m, world_size=3),
    "another boundary": lambda m: replace(m, boundary=m.boundary + 1),
    "another rank": lambda m: replace(m, rank=1 - m.rank),
    "chunks of a later save": lambda m: replace(m, chunks=tuple(replace(c, at=CheckpointRef(1, 4)) for c in m.chunks)),
    "a chunk of no length": lambda m: replace(m, chunks=(*m.chunks, Chunk("0" * 64, 0, CheckpointRef(1, 3)))),
    "a negative chunk": lambda m: replace(m, chunks=(Chunk("0" * 64, -CHUNK, CheckpointRef(1, 3)), *m.chunks)),
    "a tensor outside of the image": lambda m: replace(m, tensors=(replace(m.tensors[0], length_bytes=1 << 62),)),
    "a tensor before the image": lambda m: replace(m, tensors=(replace(m.tensors[0], offset_bytes=-1),)),
    "a chunk whose name leads elsewhere": lambda m: replace(
        m, chunks=(replace(m.chunks[0], digest="../" * 21 + "x"), *m.chunks[1:])
    ),
}


@pytest.mark.parametrize("name", ABSURD)
def test_a_manifest_with_true_digests_and_absurd_content_is_refused_before_anything_is_allocated(
    copy: Callable[[], Place], name: str
) -> None:
    place = copy()
    Forged(place).commit(ABSURD[name])
    resumed = saving.next_start(place)
    assert resumed.boundary == NEW
    assert any("1/3" in word or "0000000003" in word for word in resumed.rejected), resumed.rejected


def test_a_manifest_that_is_too_long_is_not_read(copy: Callable[[], Place]) -> None:
    place = copy()
    path = place.store_folder / JOB / layout.manifest_key(CheckpointRef(1, 2), 0)
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # a hole: it takes no room
    assert start_elsewhere(place).boundary == OLD


def test_what_does_not_belong_there_changes_nothing(copy: Callable[[], Place]) -> None:
    """Extra objects: strangers' files, a copied commit record, a save that nobody made (scenario 17)."""
    place = copy()
    job = place.store_folder / JOB
    second, third = (job / layout.checkpoint_prefix(CheckpointRef(1, n)) for n in (2, 3))
    third.mkdir()
    shutil.copy(second / "commit.json", third / "commit.json")
    (job / "checkpoints/0000000001/9999999999/chunks").mkdir(parents=True)
    (job / "checkpoints/0000000001/9999999999/rank-0.json").write_bytes(b"{}")
    for name in (
        "README",
        "checkpoints/x",
        "checkpoints/0000000001/y",
        "attempts/z.json",
        "attempts/0000000000.json",
        ".hidden",
    ):
        (job / name).write_bytes(b"?")
    (second / "chunks" / "notes").write_bytes(b"?")
    resumed = saving.next_start(place)
    assert (resumed.boundary, resumed.ref) == (NEW, CheckpointRef(1, 2))
    place.store().sweep(attempt=resumed.attempt)
    assert saving.next_start(place, claim=False).boundary == NEW
    assert (job / "README").exists()
