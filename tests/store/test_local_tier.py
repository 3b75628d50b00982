"""B9: whole images on the node, verified on their way out, never the truth by themselves."""

from pathlib import Path

import numpy
import pytest
from on_node import images_on, put_image
from safetensors import safe_open
from safetensors.numpy import save
from worlds import World, ref

from holdfast_api import layout
from holdfast_api.manifest import RankManifest
from holdfast_store import direct_read
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


def keep(world: World, tier: LocalTier, save_number: int, image: bytes, *, commit: bool = True) -> RankManifest:
    """Saves to the store and to the node, as an agent does."""
    record = world.prepared(1, save_number, image)
    manifest = world.store.read_manifest(record, 0)
    put_image(tier, ref(1, save_number), 0, image)
    tier.write_manifest(manifest)
    if commit:
        tier.write_commit(ref(1, save_number), world.store.commit(record))
    return manifest


def read(tier: LocalTier, manifest: RankManifest) -> bytes:
    data, at = bytearray(manifest.image_bytes), 0
    for index, chunk in enumerate(manifest.chunks):
        tier.read_chunk_into(manifest, index, memoryview(data)[at : at + chunk.length])
        at += chunk.length
    return bytes(data)


def names(tier: LocalTier) -> list[str]:
    return [str(i.ref) for i in images_on(tier)]


def test_what_was_written_lies_under_the_names_of_the_store_and_is_read_back(world: World, tier: LocalTier) -> None:
    one, two = keep(world, tier, 1, b"aaaabbbbcc"), keep(world, tier, 2, b"ddddeeeeff")
    assert (read(tier, one), read(tier, two)) == (b"aaaabbbbcc", b"ddddeeeeff")
    for name in (layout.manifest_key(ref(1, 2), 0), layout.commit_key(ref(1, 2))):
        in_store = world.store.bucket.get(world.store.prefix + name, max_bytes=100_000)
        assert (tier.root / world.store.prefix / name).read_bytes() == in_store


def test_a_chunk_of_several_pieces_is_verified_over_all_of_them(
    world: World, tier: LocalTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_read, "PIECE_BYTES", 1)
    manifest = keep(world, tier, 1, b"aaaabbbb")
    assert read(tier, manifest) == b"aaaabbbb"
    [image] = images_on(tier)
    for damaged in (b"Xaaabbbb", b"aXaabbbb", b"aaaXbbbb", b"abaabbbb"):
        image.path.write_bytes(damaged)
        with pytest.raises(Corrupt, match="chunk 0"):
            tier.read_chunk_into(manifest, 0, memoryview(bytearray(4)))


def test_the_image_is_a_file_that_safetensors_reads(tier: LocalTier) -> None:
    image = save({"weight": numpy.arange(12, dtype=numpy.float32)})
    put_image(tier, ref(1, 1), 3, image)
    path = tier.root / "ns/job-uid-1/checkpoints/0000000001/0000000001/rank-3.safetensors"
    with safe_open(path, framework="numpy") as tensors:
        assert tensors.get_tensor("weight").sum() == 66


def test_an_image_may_be_written_again(world: World, tier: LocalTier) -> None:
    put_image(tier, ref(1, 1), 0, b"first, and longer")
    assert read(tier, keep(world, tier, 1, b"aaaa")) == b"aaaa"


def test_a_damaged_cut_or_missing_image_is_never_read_as_whole(world: World, tier: LocalTier) -> None:
    manifest = keep(world, tier, 1, b"aaaabbbb")
    [image] = images_on(tier)
    view = memoryview(bytearray(4))
    image.path.write_bytes(b"aaaabbbX")
    tier.read_chunk_into(manifest, 0, view)
    with pytest.raises(Corrupt, match="chunk 1"):
        tier.read_chunk_into(manifest, 1, view)
    image.path.write_bytes(b"aaaab")
    with pytest.raises(Corrupt):
        tier.read_chunk_into(manifest, 0, view)
    image.path.unlink()
    with pytest.raises(Absent):
        tier.read_chunk_into(manifest, 0, view)
    with pytest.raises(ValueError):
        tier.read_chunk_into(manifest, 0, memoryview(bytearray(5)))


def test_pruning_keeps_what_is_to_be_kept_and_removes_the_rest_with_its_folders(world: World, tier: LocalTier) -> None:
    for number in (1, 2):
        keep(world, tier, number, b"aaaa" * number)
    tier.prune({ref(1, 2)})
    assert names(tier) == ["1/2"]
    assert sorted(p.name for p in tier.root.glob("ns/*/checkpoints/*/*")) == ["0000000002"]


def test_pruning_leaves_what_is_newer_because_it_may_be_in_the_making(world: World, tier: LocalTier) -> None:
    """Of this worker, or of another whose pod shares the directory."""
    for number in (1, 2, 3):
        keep(world, tier, number, b"aaaa" * number, commit=number < 3)
    tier.prune({ref(1, 2)})
    assert names(tier) == ["1/3", "1/2"]
    tier.prune(set())
    assert names(tier) == []


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
    other.prune(set())
    assert names(tier) == ["1/1"]


def test_a_symbolic_link_in_the_directory_is_not_followed(world: World, tier: LocalTier, tmp_path: Path) -> None:
    """S6, S19: whoever may write to the directory cannot make the agent read or write elsewhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "ns").symlink_to(outside)
    with pytest.raises(Misconfigured):
        put_image(tier, ref(1, 1), 0, b"aaaa")
    with pytest.raises(Misconfigured):
        tier.prune(set())
    assert list(outside.iterdir()) == []


def test_a_directory_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    tier = LocalTier(tmp_path / "none", "ns", "job", "uid-1")
    with pytest.raises(Misconfigured, match="none"):
        tier.check()
    with pytest.raises(Misconfigured):
        put_image(tier, ref(1, 1), 0, b"aaaa")
