"""B9: whole images on the node, verified on their way out, never the truth by themselves."""

from pathlib import Path

import numpy
import pytest
from safetensors import safe_open
from safetensors.numpy import save
from worlds import World, ref

from holdfast_api import codec, layout
from holdfast_store.errors import Absent, Corrupt, Misconfigured
from holdfast_store.folders import TEMPORARY
from holdfast_store.local import LocalTier
from holdfast_store.memory import MemoryBucket


@pytest.fixture
def tier(tmp_path: Path) -> LocalTier:
    return LocalTier(tmp_path, "ns", "job", "uid-1")


@pytest.fixture
def world() -> World:
    return World(MemoryBucket()).claimed(1)


def keep(world: World, tier: LocalTier, save_number: int, image: bytes, *, commit: bool = True) -> None:
    """Saves to the store and to the node, as an agent does."""
    record = world.prepared(1, save_number, image)
    key = world.store.prefix + layout.manifest_key(ref(1, save_number), 0)
    manifest = codec.from_json(type(world.manifest(1, 1, 0, 1, b"", {})), world.store.bucket.get(key, max_bytes=10_000))
    tier.write_image(ref(1, save_number), 0, memoryview(image))
    tier.write_manifest(manifest)
    if commit:
        tier.write_commit(ref(1, save_number), world.store.commit(record))


def read(tier: LocalTier, rank: int = 0) -> bytes:
    manifest = tier.find_images(rank)[0].manifest
    data, at = bytearray(manifest.image_bytes), 0
    for index, chunk in enumerate(manifest.chunks):
        tier.read_chunk_into(manifest, index, memoryview(data)[at : at + chunk.length])
        at += chunk.length
    return bytes(data)


def test_what_was_written_is_found_newest_first_and_read_back(world: World, tier: LocalTier) -> None:
    keep(world, tier, 1, b"aaaabbbbcc")
    keep(world, tier, 2, b"ddddeeeeff")
    found = tier.find_images(0)
    assert [(str(i.ref), i.committed) for i in found] == [("1/2", True), ("1/1", True)]
    assert read(tier) == b"ddddeeeeff"
    assert tier.find_images(1) == []
    assert tier.read_commit(ref(1, 2))[1] == world.store.read_commit(ref(1, 2))[1]


def test_an_image_without_a_commit_is_found_and_said_to_be_so(world: World, tier: LocalTier) -> None:
    keep(world, tier, 1, b"aaaa", commit=False)
    assert [i.committed for i in tier.find_images(0)] == [False]


def test_the_image_is_a_file_that_safetensors_reads(tier: LocalTier) -> None:
    image = save({"weight": numpy.arange(12, dtype=numpy.float32)})
    tier.write_image(ref(1, 1), 3, memoryview(image))
    path = tier.root / "ns/job-uid-1/checkpoints/0000000001/0000000001/rank-3.safetensors"
    with safe_open(path, framework="numpy") as tensors:
        assert tensors.get_tensor("weight").sum() == 66


def test_an_image_may_be_written_again(world: World, tier: LocalTier) -> None:
    tier.write_image(ref(1, 1), 0, memoryview(b"first, and longer"))
    keep(world, tier, 1, b"aaaa")
    assert read(tier) == b"aaaa"


def test_a_damaged_cut_or_missing_image_is_never_read_as_whole(world: World, tier: LocalTier) -> None:
    keep(world, tier, 1, b"aaaabbbb")
    image = tier.find_images(0)[0]
    view = memoryview(bytearray(4))
    image.path.write_bytes(b"aaaabbbX")
    tier.read_chunk_into(image.manifest, 0, view)
    with pytest.raises(Corrupt, match="chunk 1"):
        tier.read_chunk_into(image.manifest, 1, view)
    image.path.write_bytes(b"aaaab")
    with pytest.raises(Corrupt):
        tier.read_chunk_into(image.manifest, 0, view)
    assert tier.find_images(0) == []
    image.path.unlink()
    with pytest.raises(Absent):
        tier.read_chunk_into(image.manifest, 0, view)
    with pytest.raises(ValueError):
        tier.read_chunk_into(image.manifest, 0, memoryview(bytearray(5)))


def test_a_damaged_manifest_hides_the_image(world: World, tier: LocalTier) -> None:
    keep(world, tier, 1, b"aaaa")
    path = tier.find_images(0)[0].path.with_suffix(".json")
    path.write_bytes(path.read_bytes().replace(b'"rank":0', b'"rank":1'))
    assert tier.find_images(0) == []
    path.write_bytes(b"?")
    assert tier.find_images(0) == []


def test_a_commit_that_names_another_manifest_does_not_make_an_image_committed(world: World, tier: LocalTier) -> None:
    keep(world, tier, 1, b"aaaa")
    image = tier.find_images(0)[0]
    path = image.path.with_suffix(".json")
    path.write_bytes(path.read_bytes().replace(b'"boundary":1', b'"boundary":7'))
    assert [i.committed for i in tier.find_images(0)] == [False]


def test_pruning_keeps_what_is_to_be_kept_and_removes_the_rest_with_its_folders(world: World, tier: LocalTier) -> None:
    for number in (1, 2):
        keep(world, tier, number, b"aaaa" * number)
    tier.prune({ref(1, 2)})
    assert [str(i.ref) for i in tier.find_images(0)] == ["1/2"]
    assert sorted(p.name for p in tier.root.glob("ns/*/checkpoints/*/*")) == ["0000000002"]


def test_pruning_leaves_what_is_newer_because_it_may_be_in_the_making(world: World, tier: LocalTier) -> None:
    """Of this worker, or of another whose pod shares the directory."""
    for number in (1, 2, 3):
        keep(world, tier, number, b"aaaa" * number, commit=number < 3)
    tier.prune({ref(1, 2)})
    assert [str(i.ref) for i in tier.find_images(0)] == ["1/3", "1/2"]
    tier.prune(set())
    assert tier.find_images(0) == []


def test_an_unfinished_image_of_a_save_that_never_counts_any_more_goes_at_once(world: World, tier: LocalTier) -> None:
    """It is as large as a whole one: a day of restarts would fill the disk (D4)."""
    older = tier.root / "ns/job-uid-1/checkpoints/0000000001/0000000001"
    newer = tier.root / "ns/job-uid-1/checkpoints/0000000001/0000000003"
    for folder in (older, newer):
        folder.mkdir(parents=True)
        (folder / f"{TEMPORARY}0123").write_bytes(b"half")
    keep(world, tier, 2, b"aaaa")
    tier.prune({ref(1, 2)})
    assert not older.exists()
    assert list(newer.iterdir())


def test_the_jobs_of_a_node_do_not_see_each_other(world: World, tier: LocalTier, tmp_path: Path) -> None:
    keep(world, tier, 1, b"aaaa")
    other = LocalTier(tmp_path, "ns", "job", "uid-2")
    assert other.find_images(0) == []
    other.prune(set())
    assert len(tier.find_images(0)) == 1


def test_a_symbolic_link_in_the_directory_is_not_followed(world: World, tier: LocalTier, tmp_path: Path) -> None:
    """S6, S19: whoever may write to the directory cannot make the agent read or write elsewhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "ns").symlink_to(outside)
    with pytest.raises(Misconfigured):
        tier.write_image(ref(1, 1), 0, memoryview(b"aaaa"))
    with pytest.raises(Misconfigured):
        tier.find_images(0)
    assert list(outside.iterdir()) == []


def test_a_directory_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    tier = LocalTier(tmp_path / "none", "ns", "job", "uid-1")
    with pytest.raises(Misconfigured, match="none"):
        tier.check()
    with pytest.raises(Misconfigured):
        tier.write_image(ref(1, 1), 0, memoryview(b"aaaa"))


def test_a_writer_that_died_leaves_nothing_that_is_found(tier: LocalTier, tmp_path: Path) -> None:
    folder = tmp_path / "ns/job-uid-1/checkpoints/0000000001/0000000001"
    folder.mkdir(parents=True)
    (folder / f"{TEMPORARY}0123").write_bytes(b"half")
    assert tier.find_images(0) == []
