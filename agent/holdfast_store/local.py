"""The node-local tier (B9): whole images of ranks below one directory, so that a restart on the same node reads nothing from the store.

    <root>/<namespace>/<job>-<uid>/checkpoints/<attempt>/<save>/rank-<rank>.safetensors    the image, a real safetensors file (J1)
    <root>/<namespace>/<job>-<uid>/checkpoints/<attempt>/<save>/rank-<rank>.json           its manifest
    <root>/<namespace>/<job>-<uid>/checkpoints/<attempt>/<save>/commit.json                the commit record's exact text

It is a copy, never the truth: whether a checkpoint exists is asked of the store (B2), and every byte is verified on its way out (C3).

The room of an image that was pruned is kept for the next one of its rank: a write into blocks that exist is faster, and the room cannot be missing when an
emergency needs it. No more than two images of a rank take up room that way, the newest and the one that is being written.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from holdfast_api import codec, layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import RankManifest
from holdfast_store.bucket import check_key
from holdfast_store.chunks import Digest
from holdfast_store.direct import Mode
from holdfast_store.errors import Corrupt
from holdfast_store.folders import SPARE, Folder, NewFile


class LocalTier:
    """One job's part of the directory. Thread-safe. `root` must exist. Raises as the store does: Absent, Corrupt, Full, Denied, Unavailable."""

    def __init__(self, root: Path, namespace: str, job: str, job_uid: str) -> None:
        self.root = root
        self.job_uid = job_uid
        self._prefix = layout.job_prefix(namespace, job, job_uid)
        self._folder = Folder(root)

    def check(self) -> None:
        """Misconfigured if the directory is not there."""
        self._folder.check()

    def mode(self) -> Mode:
        """How images are written here; looked at once (J5)."""
        return self._folder.mode()

    def begin_image(self, ref: CheckpointRef, rank: int, image_bytes: int) -> NewFile:
        """An image to be filled in pieces, from any threads. Full here, not later, if there is no room for it."""
        return self._folder.begin(self._image_key(ref, rank), image_bytes, spare=self._spare(rank))

    def write_manifest(self, manifest: RankManifest) -> None:
        """After its image."""
        key = layout.manifest_key(CheckpointRef(manifest.attempt, manifest.save), manifest.rank)
        self._folder.write(self._prefix + key, codec.to_json(manifest), create_only=False)

    def write_commit(self, ref: CheckpointRef, text: str) -> None:
        """The commit record as the store has it, once it is known there."""
        self._folder.write(self._prefix + layout.commit_key(ref), text.encode(), create_only=False)

    def read_chunk_into(self, manifest: RankManifest, index: int, view: memoryview) -> None:
        """Chunk `index` of the image, verified in this thread (C3). `manifest` comes from the store or was verified against a commit record."""
        chunk = manifest.chunks[index]
        if view.nbytes != chunk.length:
            raise ValueError(f"chunk {index} has {chunk.length} bytes, the view {view.nbytes}")
        key = self._image_key(CheckpointRef(manifest.attempt, manifest.save), manifest.rank)
        found, whole, offset = Digest(), manifest.image_bytes, index * manifest.chunk_bytes
        self._folder.read_range_into(key, view, offset=offset, whole_bytes=whole, seen=found.add)
        if str(found) != chunk.digest:
            raise Corrupt(key, f"chunk {index} does not fit its digest")

    def prune(self, keep: set[CheckpointRef], *, spares_of: Collection[int] = ()) -> None:
        """Removes every checkpoint that is older than the newest of `keep` and not in it, and what writers that died have left of those; with nothing to
        keep, all. The manifest goes last. What is newer may be in the making, by another worker of the job too whose pod shares the directory.

        The room of one image of each rank in `spares_of` is kept for its next one; all other spare room is given back.
        """
        newest = max(keep, default=None)
        for ref in self._refs():
            if ref not in keep and (newest is None or ref < newest):
                folder = self._prefix + layout.checkpoint_prefix(ref)
                _, files = self._folder.level(folder)
                spared = {self._image_key(ref, rank): self._spare(rank) for rank in spares_of}
                for key, _ in sorted(files, key=lambda f: f[0].endswith(".json")):
                    if key in spared:
                        self._folder.set_aside(key, spared[key])
                    self._folder.delete(key)
                # However young: such a save never counts any more (A8), and an unfinished image is as large as a whole one.
                self._folder.discard_unfinished(folder, older_than_seconds=0)
                self._folder.remove_if_empty(folder)
        self._folder.discard_spares(self._prefix, keep={self._spare(rank) for rank in spares_of})
        self._folder.discard_unfinished(self._prefix)

    def _refs(self) -> Iterator[CheckpointRef]:
        base = f"{self._prefix}checkpoints/"
        for attempt in _numbers(self._folder.level(base)[0]):
            for save in _numbers(self._folder.level(f"{base}{attempt:010d}/")[0]):
                yield CheckpointRef(attempt, save)

    def _spare(self, rank: int) -> str:
        return f"{self._prefix}{SPARE}rank-{rank}"

    def _image_key(self, ref: CheckpointRef, rank: int) -> str:
        return check_key(f"{self._prefix}{layout.checkpoint_prefix(ref)}rank-{rank}.safetensors")


def _numbers(folders: list[str]) -> list[int]:
    return sorted((int(n) for n in folders if n.isdecimal() and len(n) == 10 and int(n)), reverse=True)
