"""Verifies a whole checkpoint, byte by byte, as a restore would (C3), without loading it: for `holdfast verify` and for scrubbing."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Chunk, CommitRecord, RankManifest
from holdfast_store.errors import Absent, Corrupt
from holdfast_store.job import JobStore


@dataclass(frozen=True, slots=True)
class Verification:
    """`problems` is empty if and only if every byte is there and is what it was when it was saved."""

    ref: CheckpointRef
    chunks: int
    bytes_read: int
    problems: tuple[str, ...]


def plan(store: JobStore, record: CommitRecord) -> tuple[list[Chunk], list[str]]:
    """Every chunk that a checkpoint refers to, each once, and what is wrong with its manifests."""
    chunks: dict[tuple[CheckpointRef, str], Chunk] = {}
    problems = []
    for entry in record.ranks:
        try:
            manifest: RankManifest = store.read_manifest(record, entry.rank)
        except (Absent, Corrupt) as e:
            problems.append(f"rank {entry.rank}: {e}")
            continue
        chunks |= {(c.at, c.digest): c for c in manifest.chunks}
    return list(chunks.values()), problems


def verify(
    store: JobStore,
    record: CommitRecord,
    *,
    threads: int = 4,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Verification:
    """Reads and hashes everything that `record` names. `progress(bytes done, bytes in all)` is called from several threads, one at a time.

    Holds `threads` chunks in memory. Unavailable and Denied are raised: they say nothing about the checkpoint.
    """
    source = store.for_job(record.job_uid)
    chunks, problems = plan(source, record)
    total = sum(c.length for c in chunks)
    done, lock = 0, threading.Lock()

    def read(chunk: Chunk) -> str:
        nonlocal done
        problem = ""
        try:
            source.get_chunk_into(chunk, memoryview(bytearray(chunk.length)))
        except (Absent, Corrupt) as e:
            problem = str(e)
        with lock:
            done += chunk.length
            progress(done, total)
        return problem

    progress(0, total)
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="verify") as pool:
        problems += [p for p in pool.map(read, chunks) if p]
    return Verification(record.ref, len(chunks), total, tuple(problems))
