"""Makes a checkpoint of state that was saved by other means: the first save of a job of its own, which another job continues (spec.resumeFrom, A9).

It never writes into a job that has begun: what that job continues is decided by its claims alone (A7).
"""

import mmap
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import CheckpointKind, Chunk, Claim, CommitRecord, Progress, RankManifest, TensorEntry
from holdfast_api.messages import Cause
from holdfast_store.chunks import digest, ranges
from holdfast_store.errors import Misconfigured
from holdfast_store.fetching import NOBODY_LOOKS
from holdfast_store.job import JobStore

REF = CheckpointRef(1, 1)


@dataclass(frozen=True, slots=True)
class Foreign:
    """State that is to become a checkpoint: one image for all ranks, and each rank's own bytes of one range of it."""

    image: Path
    image_bytes: int
    chunk_bytes: int
    tensors: tuple[TensorEntry, ...]
    state_offset: int
    states: tuple[bytes, ...]
    """Of each rank, all of the same length, to lie at `state_offset`."""
    progress: Progress


def refuse_a_job_that_has_begun(store: JobStore) -> None:
    """Misconfigured if anything has been claimed or committed below the prefix."""
    if store.newest_claim() is not None or store.ever_committed():
        raise Misconfigured(
            f"job uid {store.job_uid} has checkpoints or attempts already; an import makes a job of its own: leave the uid out, or give one that is new"
        )


def adopt(
    store: JobStore,
    foreign: Foreign,
    run: dict[str, str],
    *,
    threads: int = 4,
    progress: Callable[[int, int], None] = NOBODY_LOOKS,
) -> CommitRecord:
    """Chunks, then the claim (A3: as late as possible), manifests, commit. `progress(bytes done, bytes in all)` as in `fetching.fetch`.

    Misconfigured where the job has begun; else what the store raises. Cut short it leaves chunks that nothing refers to, and no checkpoint."""
    refuse_a_job_that_has_begun(store)
    pieces = ranges(foreign.image_bytes, foreign.chunk_bytes)
    sent: dict[str, int] = {}
    done, lock = 0, threading.Lock()
    manifests = []
    progress(0, foreign.image_bytes * len(foreign.states))
    for rank, state in enumerate(foreign.states):
        with (
            foreign.image.open("rb") as file,
            mmap.mmap(file.fileno(), foreign.image_bytes, access=mmap.ACCESS_COPY) as m,
        ):
            m[foreign.state_offset : foreign.state_offset + len(state)] = state

            def send(piece: tuple[int, int], image: mmap.mmap = m) -> Chunk:
                nonlocal done
                start, length = piece
                data = image[start : start + length]
                name = digest(data)
                with lock:
                    new = name not in sent
                    sent[name] = length
                if new:
                    store.put_chunk(REF, name, memoryview(data))
                with lock:
                    done += length
                    progress(done, foreign.image_bytes * len(foreign.states))
                return Chunk(name, length, REF)

            with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="adopt") as pool:
                chunks = tuple(pool.map(send, pieces))
        manifests.append(_manifest(store, foreign, rank, chunks))
    incarnation = secrets.token_hex(16)
    store.claim(Claim(store.job_uid, REF.attempt, incarnation, (), None, datetime.now(UTC)))
    entries = tuple(store.create_manifest(m) for m in manifests)
    record = CommitRecord(
        job_uid=store.job_uid,
        namespace=store.namespace,
        job=store.job,
        attempt=REF.attempt,
        save=REF.save,
        kind=CheckpointKind.FULL,
        cause=Cause.MANUAL,
        created_at=datetime.now(UTC),
        progress=foreign.progress,
        ranks=entries,
        base=None,
        refers_to=(),
        bytes_logical=foreign.image_bytes * len(foreign.states),
        bytes_sent=sum(sent.values()),
        bytes_stored=sum(sent.values()),
        run=run,
    )
    store.commit(record, incarnation=incarnation)
    return record


def _manifest(store: JobStore, foreign: Foreign, rank: int, chunks: Sequence[Chunk]) -> RankManifest:
    return RankManifest(
        store.job_uid,
        REF.attempt,
        REF.save,
        rank,
        len(foreign.states),
        foreign.progress.boundary,
        foreign.image_bytes,
        foreign.chunk_bytes,
        tuple(chunks),
        foreign.tensors,
    )
