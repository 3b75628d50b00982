"""Builds the jobs that tests of the store start from, through the store's own code: `World(bucket).claimed(1).saved(1, 1, b"aaaabbbb")`."""

from dataclasses import replace
from datetime import UTC, datetime

from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import (
    REPLICAS,
    SUSPECT,
    CheckpointKind,
    Chunk,
    Claim,
    CommitRecord,
    ParentRef,
    Pending,
    Progress,
    RankEntry,
    RankManifest,
    TensorEntry,
)
from holdfast_api.messages import Cause, RestoreOrder
from holdfast_store.bucket import Bucket
from holdfast_store.chunks import digest, ranges
from holdfast_store.job import JobStore
from holdfast_store.records import entry_of

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
CHUNK = 4


def ref(attempt: int, save: int) -> CheckpointRef:
    return CheckpointRef(attempt, save)


class World:
    """One job in a bucket. Chunks have four bytes, so that images can be read: b"aaaabbbb" is two chunks."""

    def __init__(self, bucket: Bucket, uid: str = "uid-1") -> None:
        self.uid = uid
        self.store = JobStore(bucket, "ns", "job", uid)
        self.tensors: tuple[TensorEntry, ...] = ()
        """Of the images that are saved from now on."""
        self.tensors_of: dict[int, tuple[TensorEntry, ...]] = {}
        """Of those of some ranks, where they differ."""

    def a_claim(
        self, attempt: int, parent: CheckpointRef | None = None, *, incarnation: str = "", parent_uid: str = ""
    ) -> Claim:
        above = ParentRef(parent_uid or self.uid, parent.attempt, parent.save) if parent else None
        return Claim(self.uid, attempt, incarnation or f"life-{attempt}", (), above, NOW)

    def claimed(self, attempt: int, parent: CheckpointRef | None = None, *, parent_uid: str = "") -> "World":
        self.store.claim(self.a_claim(attempt, parent, parent_uid=parent_uid))
        return self

    def saved(
        self, attempt: int, save: int, image: bytes | list[bytes] = b"aaaabbbb", *, base: CheckpointRef | None = None
    ) -> "World":
        self.store.commit(self.prepared(attempt, save, image, base=base))
        return self

    def told(
        self, attempt: int, save: int, finite: bool | None, *, base: CheckpointRef | None = None, suspect: str = ""
    ) -> "World":
        """A checkpoint of which is known, or not, whether it is finite, and perhaps that copies in it differ."""
        record = self.prepared(attempt, save, b"%04d" % save, base=base)
        names = ("model.w",) if finite is False else ()
        ranks = tuple(replace(entry, finite=finite, not_finite=names) for entry in record.ranks)
        self.store.commit(replace(record, ranks=ranks, run={REPLICAS: SUSPECT + suspect} if suspect else {}))
        return self

    def prepared(
        self,
        attempt: int,
        save: int,
        image: bytes | list[bytes] = b"aaaabbbb",
        *,
        base: CheckpointRef | None = None,
        kind: CheckpointKind = CheckpointKind.FULL,
    ) -> CommitRecord:
        """Writes chunks and manifests; returns the record that only has to be committed."""
        reuse = self.referable(base) if base else {}
        images = [image] if isinstance(image, bytes) else image
        entries: list[RankEntry] = []
        places: set[CheckpointRef] = set()
        for rank, content in enumerate(images):
            manifest = self.manifest(attempt, save, rank, len(images), content, reuse)
            places |= {c.at for c in manifest.chunks}
            entries.append(self.store.create_manifest(manifest))
        return CommitRecord(
            self.uid, "ns", "job", attempt, save, kind, Cause.PERIODIC, NOW, Progress(save), tuple(entries), base,
            tuple(sorted(places - {ref(attempt, save)})),
        )  # fmt: skip

    def referable(self, base: CheckpointRef) -> dict[str, CheckpointRef]:
        """Digest -> where it lies, of the chunks that a save on `base` may refer to (B4)."""
        record, _ = self.store.read_commit(base)
        manifests = [self.store.read_manifest(record, entry.rank) for entry in record.ranks]
        return {c.digest: c.at for m in manifests for c in m.chunks}

    def manifest(
        self,
        attempt: int,
        save: int,
        rank: int,
        ranks: int,
        content: bytes,
        reuse: dict[str, CheckpointRef],
        *,
        put: bool = True,
    ) -> RankManifest:
        """`put`: with its chunks, into the store."""
        view, chunks = memoryview(content), []
        for start, length in ranges(len(content), CHUNK):
            piece = view[start : start + length]
            name = digest(piece)
            at = reuse.get(name)
            if at is None:
                at = ref(attempt, save)
                if put:
                    self.store.put_chunk(at, name, piece)
            chunks.append(Chunk(name, length, at))
        return RankManifest(
            self.uid, attempt, save, rank, ranks, save, len(content), CHUNK, tuple(chunks),
            self.tensors_of.get(rank, self.tensors),
        )  # fmt: skip

    def left(
        self,
        attempt: int,
        save: int,
        images: list[bytes],
        *,
        worker: int,
        base: CheckpointRef | None = None,
        incarnation: str = "",
    ) -> tuple[Pending, RankManifest]:
        """What the worker of rank `worker` would have left whole on its node of this save, and the manifest beside it. Nothing goes to the store."""
        reuse = self.referable(base) if base else {}
        manifest = self.manifest(attempt, save, worker, len(images), images[worker], reuse, put=False)
        pending = Pending(
            self.uid, attempt, save, worker, incarnation or f"life-{attempt}", len(images), base, Cause.EVICTION,
            Progress(save), (entry_of(manifest),), NOW,
        )  # fmt: skip
        return pending, manifest

    def sent(self, pending: Pending, manifest: RankManifest, image: bytes) -> CommitRecord | None:
        """As whoever returns to the node does it (E6): the checkpoint, if it is one now."""
        store = self.store
        if not store.look_at(pending).committed:
            for _, index in store.missing([manifest]):
                start = index * manifest.chunk_bytes
                chunk = manifest.chunks[index]
                store.put_chunk(pending.ref, chunk.digest, memoryview(image)[start : start + chunk.length])
            store.create_manifest(manifest)
        return store.finish(pending)

    def candidates(self, attempt: int, order: RestoreOrder | None = None) -> list[str]:
        found = self.store.resolve(order or RestoreOrder(), attempt)
        return [str(c.record.ref) for c in found.candidates]

    def image(self, checkpoint: CheckpointRef, rank: int = 0) -> bytes:
        """What a restore would load: every byte verified."""
        record, _ = self.store.read_commit(checkpoint)
        manifest = self.store.read_manifest(record, rank)
        data, at = bytearray(manifest.image_bytes), 0
        for chunk in manifest.chunks:
            self.store.get_chunk_into(chunk, memoryview(data)[at : at + chunk.length])
            at += chunk.length
        return bytes(data)

    def stored(self, part: str = "") -> list[str]:
        """Every key of the job that contains `part`, without the job's prefix."""
        found = (info.key.removeprefix(self.store.prefix) for info in self.store.bucket.list(self.store.prefix))
        return sorted(key for key in found if part in key)
