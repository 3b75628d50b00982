"""docs/format.md is enough to read a checkpoint: a reader written from that page alone, with nothing of ours but the files."""

import json
from pathlib import Path

import blake3
from worlds import World, ref

from holdfast_store.file import FileBucket
from holdfast_store.memory import MemoryBucket


def digest(data: bytes) -> str:
    return str(blake3.blake3(data).hexdigest())


def read_newest(job: Path) -> tuple[str, list[bytes]]:
    """The name of the newest checkpoint and the image of each rank, by the steps of "Reading the newest checkpoint"."""
    attempt = max(int(p.stem) for p in (job / "attempts").glob("*.json"))
    last_save = None
    while True:
        folder = job / "checkpoints" / f"{attempt:010d}"
        for save in sorted(
            (p for p in folder.glob("*") if last_save is None or int(p.name) <= last_save), reverse=True
        ):
            if (save / "commit.json").exists() and not (save / "expired.json").exists():
                return f"{attempt}/{int(save.name)}", images(job, save)
        parent = json.loads((job / "attempts" / f"{attempt:010d}.json").read_bytes())["parent"]
        attempt, last_save = parent["attempt"], parent["save"]


def images(job: Path, save: Path) -> list[bytes]:
    text = (save / "commit.json").read_bytes()
    record = json.loads(text)
    before, _, after = text.rpartition(f'"check":"{record["check"]}"'.encode())
    assert digest(before + b'"check":""' + after) == record["check"]
    found = []
    for entry in record["ranks"]:
        stored = (save / f"rank-{entry['rank']}.json").read_bytes()
        assert digest(stored) == entry["manifest_digest"]
        image = b""
        for chunk in json.loads(stored)["chunks"]:
            place = f"{chunk['at']['attempt']:010d}/{chunk['at']['save']:010d}"
            piece = (job / "checkpoints" / place / "chunks" / chunk["digest"]).read_bytes()
            assert (len(piece), digest(piece)) == (chunk["length"], chunk["digest"])
            image += piece
        assert len(image) == entry["image_bytes"]
        found.append(image)
    return found


def test_a_reader_made_from_the_page_reads_what_the_store_has_written(tmp_path: Path) -> None:
    world = World(FileBucket(tmp_path)).claimed(1)
    world.saved(1, 1, [b"aaaabbbb", b"xx"]).saved(1, 2, [b"aaaacccc", b"yy"], base=ref(1, 1)).saved(
        1, 3, [b"zzzz", b"zz"]
    )
    job = tmp_path / "ns" / "job-uid-1"
    assert read_newest(job) == ("1/3", [b"zzzz", b"zz"])
    world.claimed(2, ref(1, 2))  # a rollback: 1/3 is off the lineage
    assert read_newest(job) == ("1/2", [b"aaaacccc", b"yy"])
    world.saved(2, 1, [b"aaaadddd", b"yy"], base=ref(1, 2)).saved(2, 2, [b"ffff", b"gg"]).claimed(3, ref(2, 1))
    assert world.store.expire(ref(1, 1), by_attempt=3, reason="retention").deleted
    assert read_newest(job) == ("2/1", [b"aaaadddd", b"yy"])


def test_the_page_names_every_field_that_is_stored() -> None:
    page = (Path(__file__).parents[2] / "docs/format.md").read_text()
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1).saved(1, 2, base=ref(1, 1)).saved(1, 3).claimed(2, ref(1, 3))
    world.saved(2, 1)
    world.store.expire(ref(1, 1), by_attempt=2, reason="retention")
    for key, data in bucket.objects.items():
        if key.endswith(".json"):
            missing = [name for name in json.loads(data) if name not in page]
            assert not missing, f"{key}: {missing}"
