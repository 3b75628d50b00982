"""Re-reads what a job has stored, at a bounded rate, so that damage is found before anybody needs the bytes, and mends it from wherever the same bytes still
are (B5, C3). Every checkpoint, newest first; a chunk that several refer to is read once a round.

What is found is written down as the verdict `intact` of each checkpoint, passed or not: a start tries a damaged one only where nothing better is left, and no
deletion takes the newest that is not (soundness.py). What was mended, passes.

It can be ended at any moment, by anything, and goes on from its notes. The notes are no truth: whoever cannot read them begins the round anew. Several may run
at once; they do the work twice and no harm. Nothing waits for it, and nothing is deleted.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from holdfast_api import codec, layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import (
    INTACT,
    Chunk,
    CommitRecord,
    DamagedChunk,
    RankManifest,
    ScrubNotes,
    Verdict,
)
from holdfast_store import inventory
from holdfast_store.chunks import digest
from holdfast_store.errors import Absent, Corrupt, Misconfigured, StoreError
from holdfast_store.job import JobStore
from holdfast_store.local import LocalTier
from holdfast_store.records import Records

log = logging.getLogger(__name__)
NOTE_SECONDS = 10.0
"""So much work is done twice at most after an end."""
LONGEST_PAUSE_SECONDS = 0.5
MOST_DAMAGED = 10_000
"""Chunks in the notes."""
TRIES = 2
"""A chunk that was damaged on the way is read again before the store is blamed."""


class Ended(Exception):
    """The caller wants it to end. What was done is in the notes."""


class _Gone(Exception):
    """The checkpoint has been deleted meanwhile: what is absent of it is no damage."""


class Pace:
    """So many bytes a second on average from now on; 0: no limit. One thread."""

    def __init__(
        self,
        bytes_per_second: float = 0.0,
        *,
        ended: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._ended, self._clock, self._sleep = bytes_per_second, ended, clock, sleep
        self._free_at = clock()

    def pay(self, size: int) -> None:
        """Returns when so many more bytes may be read. Raises Ended."""
        while True:
            if self._ended():
                raise Ended
            left = self._free_at - self._clock()
            if left <= 0:
                break
            self._sleep(min(left, LONGEST_PAUSE_SECONDS))
        if self._rate:
            # Time that was not used is not saved up: after a pause it reads no faster than before.
            self._free_at = max(self._free_at, self._clock()) + size / self._rate


class Source(Protocol):
    """Where the bytes of a chunk may still be. Raises Absent or Corrupt; what else it raises is taken for Absent. Every byte is verified by who asks."""

    name: str

    def read(self, manifest: RankManifest, index: int, view: memoryview) -> None: ...


class OnNode:
    """A node's directory (B9): the images of the checkpoints that were saved there last."""

    def __init__(self, node: LocalTier) -> None:
        self.name = f"the node's directory {node.root}"
        self._node = node

    def read(self, manifest: RankManifest, index: int, view: memoryview) -> None:
        self._node.read_chunk_into(manifest, index, view)


class ElsewhereInStore:
    """The same content below another checkpoint: what comes back is written anew (B4), so it often lies there more than once."""

    name = "another checkpoint in the store"

    def __init__(self, store: JobStore, found: dict[CheckpointRef, inventory.Lying]) -> None:
        self._store, self._found = store, found

    def read(self, manifest: RankManifest, index: int, view: memoryview) -> None:
        chunk = manifest.chunks[index]
        for at, lying in self._found.items():
            if at != chunk.at and lying.chunks.get(chunk.digest) == chunk.length:
                try:
                    return self._store.get_chunk_into(replace(chunk, at=at), view)
                except (Absent, Corrupt):
                    continue
        raise Absent(f"no other checkpoint holds {chunk.digest}")


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """One checkpoint that was read to its end."""

    ref: CheckpointRef
    chunks: int
    """Read for it: those that were not read before in this round."""
    bytes_read: int
    mended: tuple[str, ...]
    """What was damaged and is whole again, with the place that it came from."""
    problems: tuple[str, ...]
    """What is damaged."""


@dataclass(frozen=True, slots=True)
class Round:
    """`done` are those of this call. `whole`: the round has been read to its end."""

    done: tuple[Scrubbed, ...]
    before: tuple[Scrubbed, ...]
    """Read in this round by earlier calls, with what their verdicts say now; nothing of them was read again."""
    whole: bool

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(p for each in (*self.before, *self.done) for p in each.problems)


Progress = Callable[[CheckpointRef, int, int], None]
"""The checkpoint, bytes of it that are done, and in all."""


def scrub(
    store: JobStore,
    *,
    pace: Pace,
    sources: Sequence[Source] = (),
    mend: bool = True,
    anew: bool = False,
    progress: Progress = lambda _ref, _done, _all: None,
) -> Round:
    """One round, or what is left of the one that was begun; `anew` forgets that. `mend=False` writes nothing but notes and verdicts.

    Holds one chunk in memory. Unavailable and Denied are raised: they say nothing about what is stored, and the next call goes on from here.
    """
    return _Scrubbing(store, pace, sources, mend, progress).run(anew=anew)


def read_notes(store: JobStore) -> ScrubNotes | None:
    """None where there are none, or none that can be read."""
    records = Records(store.bucket, store.prefix, store.job_uid)
    try:
        notes = records.read(ScrubNotes, layout.scrub_key())
    except Absent:
        return None
    except (Corrupt, Misconfigured) as e:
        log.warning("the notes of the scrub cannot be read, it begins anew: %s", e)
        return None
    return notes if notes.job_uid == store.job_uid else None


def is_due(notes: ScrubNotes | None, every_seconds: int, now: datetime) -> bool:
    """A round that was cut short, or one whose time has come. Pure. The notes of a round that is over say when that was."""
    if notes is None or notes.done or notes.current is not None:
        return True
    return (now - notes.begun_at).total_seconds() >= every_seconds


@dataclass(slots=True)
class _Read:
    """What has been found of the checkpoint that is being read."""

    chunks: int = 0
    bytes_read: int = 0
    mended: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class _Scrubbing:
    def __init__(self, store: JobStore, pace: Pace, sources: Sequence[Source], mend: bool, progress: Progress) -> None:
        self._store, self._pace, self._mend, self._progress = store, pace, mend, progress
        self._records = Records(store.bucket, store.prefix, store.job_uid)
        self._found: dict[CheckpointRef, inventory.Lying] = {}
        self._sources = sources
        self._notes = ScrubNotes(store.job_uid, datetime.now(UTC))
        self._noted_at = time.monotonic()
        self._seen: set[tuple[CheckpointRef, str]] = set()
        self._bad: dict[tuple[CheckpointRef, str], str] = {}

    def run(self, *, anew: bool) -> Round:
        self._found = inventory.scan(self._records)
        there = sorted((r for r, lying in self._found.items() if lying.committed and not lying.expired), reverse=True)
        if not there:
            return Round((), (), whole=True)
        begun = None if anew else read_notes(self._store)
        if begun is not None:
            self._notes = replace(begun, done=tuple(r for r in begun.done if r in there))
            self._bad = {(d.at, d.digest): d.problem for d in begun.damaged}
        before = tuple(map(self._remembered, self._notes.done))
        read = {each.ref for each in before}
        done = [result for ref in there if ref not in read and (result := self._one(ref)) is not None]
        self._end()
        return Round(tuple(done), before, whole=True)

    def _remembered(self, ref: CheckpointRef) -> Scrubbed:
        """What a part of this round has read before. The manifests say which chunks that were, and the verdict what was found."""
        with contextlib.suppress(Absent, Corrupt, Misconfigured):
            record = self._records.commit(ref)[0]
            for manifest in self._manifests(record, _Read()):
                self._seen |= {(c.at, c.digest) for c in manifest.chunks}
        failed = (v.detail for v in self._store.read_verdicts(ref) if v.check == INTACT and not v.passed)
        return Scrubbed(ref, 0, 0, (), tuple(failed))

    def _one(self, ref: CheckpointRef) -> Scrubbed | None:
        """None if it is deleted meanwhile."""
        found = _Read()
        try:
            record = self._records.commit(ref)[0]
            self._read(ref, list(self._manifests(record, found)), found)
        except (Absent, Corrupt, Misconfigured) as e:
            found.problems.append(f"the commit record: {e}")
        except _Gone:
            return None
        if not inventory.state(self._records, ref).exists:
            return None
        self._verdict(ref, found)
        self._notes = replace(self._notes, done=(*self._notes.done, ref), current=None, chunks=0, chunks_done=0)
        self._note()
        return Scrubbed(ref, found.chunks, found.bytes_read, tuple(found.mended), tuple(found.problems))

    def _manifests(self, record: CommitRecord, found: _Read) -> Iterator[RankManifest]:
        for entry in record.ranks:
            try:
                yield self._records.manifest(record, entry.rank)
            except (Absent, Corrupt) as e:
                found.problems.append(f"rank {entry.rank}, its manifest: {e}")

    def _read(self, ref: CheckpointRef, manifests: list[RankManifest], found: _Read) -> None:
        wanted: dict[tuple[CheckpointRef, str], tuple[RankManifest, int]] = {}
        for manifest in manifests:
            for index, chunk in enumerate(manifest.chunks):
                wanted.setdefault((chunk.at, chunk.digest), (manifest, index))
        known = (self._notes.current, self._notes.chunks) == (ref, len(wanted))
        skip = self._notes.chunks_done if known else 0
        total = sum(m.chunks[i].length for m, i in wanted.values())
        done = 0
        for number, (place, (manifest, index)) in enumerate(wanted.items(), 1):
            chunk = manifest.chunks[index]
            if number > skip and place not in self._seen:
                self._notes = replace(self._notes, current=ref, chunks=len(wanted), chunks_done=number - 1)
                self._pay(chunk)
                self._chunk(ref, manifest, index, found)
            self._seen.add(place)
            if place in self._bad:
                found.problems.append(self._bad[place])
            done += chunk.length
            self._progress(ref, done, total)

    def _pay(self, chunk: Chunk) -> None:
        try:
            self._pace.pay(chunk.length)
        except Ended:
            self._note()
            raise
        if time.monotonic() - self._noted_at >= NOTE_SECONDS:
            self._note()

    def _chunk(self, ref: CheckpointRef, manifest: RankManifest, index: int, found: _Read) -> None:
        chunk = manifest.chunks[index]
        place = (chunk.at, chunk.digest)
        view = memoryview(bytearray(chunk.length))
        found.chunks += 1
        found.bytes_read += chunk.length
        self._bad.pop(place, None)
        problem = self._why_bad(chunk, view)
        if not problem:
            return
        if not inventory.state(self._records, ref).exists:
            raise _Gone
        where = f"rank {manifest.rank}, chunk {index} of {len(manifest.chunks)}: {problem}"
        source = self._mended(ref, manifest, index, view) if self._mend else ""
        if source:
            log.warning("checkpoint %s, %s; written anew from %s", ref, where, source)
            found.mended.append(f"{where}; written anew from {source}")
            return
        log.error("checkpoint %s, %s", ref, where)
        self._bad[place] = problem

    def _why_bad(self, chunk: Chunk, view: memoryview) -> str:
        for left in reversed(range(TRIES)):
            try:
                self._store.get_chunk_into(chunk, view)
            except (Absent, Corrupt) as e:
                if not left:
                    return str(e)
            else:
                return ""
        return ""

    def _mended(self, ref: CheckpointRef, manifest: RankManifest, index: int, view: memoryview) -> str:
        """Where the bytes were found; "" if nowhere. Only what has the digest that names it is ever written, so doing it twice is harmless."""
        chunk = manifest.chunks[index]
        for source in (*self._sources, ElsewhereInStore(self._store, self._found)):
            try:
                source.read(manifest, index, view)
            except (StoreError, OSError) as e:
                log.info("chunk %s is not to be had from %s: %s", chunk.digest, source.name, e)
                continue
            if digest(view) != chunk.digest or not inventory.state(self._records, ref).exists:
                continue
            self._store.bucket.put(self._store.prefix + layout.chunk_key(chunk.at, chunk.digest), view)
            if not self._why_bad(chunk, memoryview(bytearray(chunk.length))):
                return source.name
        return ""

    def _verdict(self, ref: CheckpointRef, found: _Read) -> None:
        words = "; ".join(found.problems) or (
            f"mended: {'; '.join(found.mended)}" if found.mended else "every byte was read"
        )
        self._store.write_verdict(
            Verdict(
                self._store.job_uid, ref.attempt, ref.save, INTACT, not found.problems, words[:2000], datetime.now(UTC)
            )
        )

    def _note(self) -> None:
        damaged = tuple(DamagedChunk(at, name, why[:500]) for (at, name), why in self._bad.items())[:MOST_DAMAGED]
        self._notes = replace(self._notes, damaged=damaged)
        self._store.bucket.put(self._store.prefix + layout.scrub_key(), codec.to_json(self._notes))
        self._noted_at = time.monotonic()

    def _end(self) -> None:
        """The next call begins a new round."""
        self._notes = ScrubNotes(self._store.job_uid, datetime.now(UTC))
        self._bad = {}
        self._note()
