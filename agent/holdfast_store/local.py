"""The node-local tier (B9): whole images of ranks below one directory, so that a restart on the same node reads nothing from the store.

    <root>/<namespace>/<job>-<uid>/checkpoints/<attempt>/<save>/rank-<rank>.safetensors    the image, a real safetensors file (J1)
    <root>/<namespace>/<job>-<uid>/checkpoints/<attempt>/<save>/rank-<rank>.json           its manifest
    <root>/<namespace>/<job>-<uid>/checkpoints/<attempt>/<save>/commit.json                the commit record's exact text
    <root>/<namespace>/<job>-<uid>/checkpoints/<attempt>/<save>/pending-<worker>.json      what is not known to be committed, and may be finished (E6)

It is a copy, never the truth: whether a checkpoint exists is asked of the store (B2), and every byte is verified on its way out (C3).

The room of an image that was pruned is kept for the next one of its rank: a write into blocks that exist is faster, and the room cannot be missing when an
emergency needs it. No more than two images of a rank take up room that way, the newest and the one that is being written.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast_api import codec, layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import MAX_MANIFEST_BYTES, Pending, RankEntry, RankManifest
from holdfast_store.bucket import check_key
from holdfast_store.chunks import Digest, digest
from holdfast_store.direct import Mode
from holdfast_store.errors import Absent, Corrupt, Denied
from holdfast_store.folders import SPARE, Folder, NewFile
from holdfast_store.records import manifest_problem, parse, parse_pending, self_proving

_PENDING = re.compile(r"pending-(\d{1,10})\.json\Z")


@dataclass(frozen=True, slots=True)
class Left:
    """What lies on the node under the name of a worker's pending part: the part, or why it cannot be read."""

    ref: CheckpointRef
    worker: int
    pending: Pending | None
    problem: Corrupt | Denied | None = None
    """Corrupt: nobody can finish it. Denied: this process may not read it; another may."""


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

    # ---- what waits to be finished (E6)

    def leave(self, pending: Pending, manifests: Iterable[RankManifest]) -> None:
        """After the images: the manifests, then what says so, last (B9). Who finds that finds everything."""
        for manifest in manifests:
            self.write_manifest(manifest)
        self.write_pending(pending)

    def write_pending(self, pending: Pending) -> None:
        """Last: after its images and their manifests."""
        self._folder.write(
            self._prefix + layout.pending_key(pending.ref, pending.worker), self_proving(pending), create_only=False
        )

    def left(self) -> list[Left]:
        """Every pending part, newest first, of whatever worker. Raises what the disk says."""
        found = []
        for ref in self._refs():
            for worker in self._waiting(ref):
                key = self._prefix + layout.pending_key(ref, worker)
                try:
                    pending = parse_pending(key, self._folder.read(key, max_bytes=MAX_MANIFEST_BYTES))
                    if (pending.job_uid, pending.ref, pending.worker) != (self.job_uid, ref, worker):
                        raise Corrupt(key, f"speaks of {pending.job_uid} {pending.ref} worker {pending.worker}")
                    found.append(Left(ref, worker, pending))
                except Absent:
                    continue
                except (Corrupt, Denied) as e:
                    found.append(Left(ref, worker, None, e))
        return found

    def read_manifest(self, ref: CheckpointRef, entry: RankEntry) -> RankManifest:
        """Proved by the digest in `entry`, and consistent with itself. Absent, Corrupt."""
        key = self._prefix + layout.manifest_key(ref, entry.rank)
        data = self._folder.read(key, max_bytes=MAX_MANIFEST_BYTES)
        if digest(data) != entry.manifest_digest:
            raise Corrupt(key, "the digest is not the one that was written down with it")
        manifest = parse(RankManifest, key, data, max_bytes=MAX_MANIFEST_BYTES)
        if problem := manifest_problem(manifest):
            raise Corrupt(key, problem)
        return manifest

    def drop_pending(self, ref: CheckpointRef, worker: int) -> None:
        """It is committed, or can be finished never: its images are room like any others. Absent is fine."""
        self._folder.delete(self._prefix + layout.pending_key(ref, worker))

    def drop_older(self, committed: CheckpointRef) -> None:
        """Of everybody: up to a commit of the same attempt nothing of it can be finished any more (A8), of earlier attempts neither (A5)."""
        for ref in self._refs():
            if ref <= committed:
                for worker in self._waiting(ref):
                    self.drop_pending(ref, worker)

    def _waiting(self, ref: CheckpointRef) -> list[int]:
        """Workers whose parts of a save wait here."""
        prefix = self._prefix + layout.checkpoint_prefix(ref)
        names = (key.removeprefix(prefix) for key, _ in self._folder.level(prefix)[1])
        return sorted(int(m[1]) for name in names if (m := _PENDING.match(name)))

    # ---- room

    def prune(self, keep: set[CheckpointRef], *, spares_of: Collection[int] = ()) -> None:
        """Removes every checkpoint that is older than the newest of `keep` and not in it, and what writers that died have left of those; with nothing to
        keep, all. The manifest goes last. What is newer may be in the making, by another worker of the job too whose pod shares the directory.

        What waits to be finished stays as long as it can be: until an attempt saves that is later than its own, for that one has claimed (A6, E6).

        The room of one image of each rank in `spares_of` is kept for its next one; all other spare room is given back.
        """
        newest = max(keep, default=None)
        for ref in self._refs():
            if ref not in keep and (newest is None or ref < newest):
                if newest is not None and ref.attempt == newest.attempt and self._waiting(ref):
                    continue
                folder = self._prefix + layout.checkpoint_prefix(ref)
                _, files = self._folder.level(folder)
                spared = {self._image_key(ref, rank): self._spare(rank) for rank in spares_of}
                for key, _ in sorted(files, key=_turn):
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


def _turn(file: tuple[str, int]) -> int:
    """First what says that the images beside it are whole."""
    name = file[0].rpartition("/")[2]
    return 0 if _PENDING.match(name) else 2 if name.endswith(".json") else 1


def _numbers(folders: list[str]) -> list[int]:
    return sorted((int(n) for n in folders if n.isdecimal() and len(n) == 10 and int(n)), reverse=True)
