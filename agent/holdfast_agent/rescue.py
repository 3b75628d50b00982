"""A survivor takes what a doomed worker holds and cannot bring into the store in time (E6, F4): its part of a save, whole and verified, durable in a place that
stays. It is a part like one that a worker leaves on its own node: no checkpoint, finished by whoever finds it when the next attempt is joined (unfinished.py).

The survivor pulls: it asks what the part consists of, reads the manifests and then every chunk by its digest, writes the image beside its own, and last of all
what says that the part is whole (B9). So it takes what the manifests name and nothing else, as much at once as it has memory for, and what it holds itself it
does not ask for. Whoever dies meanwhile, nothing is left but an image without a name, which is swept.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from holdfast_agent.asking import Chunks
from holdfast_agent.clock import Deadline, monotonic, now
from holdfast_agent.errors import AgentError, PeerRefused, SaveGivenUp
from holdfast_agent.peers import LATER, LATER_SECONDS
from holdfast_agent.refuge import Refuge
from holdfast_agent.shared import Shared
from holdfast_agent.threads import Stop
from holdfast_api import peers
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import MAX_MANIFEST_BYTES, Pending, RankManifest
from holdfast_store.chunks import digest
from holdfast_store.errors import Corrupt, StoreError
from holdfast_store.folders import NewFile
from holdfast_store.local import LocalTier
from holdfast_store.records import manifest_problem, parse, parse_pending

log = logging.getLogger(__name__)
BUFFER_BYTES = 256 << 20
"""Chunks in memory on their way, of all threads."""
MOST_AT_ONCE = 8
TRIES = 3
PAUSE_SECONDS = 0.2
PROBE_BYTES = 64 << 20
"""Read from the next worker, once in an attempt, to see how fast that goes."""
PROBE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class _Piece:
    manifest: RankManifest
    index: int
    file: NewFile


@dataclass(frozen=True, slots=True)
class _Taking:
    """A part on its way here, or what came of it."""

    deadline: Deadline
    """Of the wait for the other worker's words."""
    stop: Stop
    """Of the threads."""
    task: asyncio.Task[peers.Rescued]

    def end(self, reason: str) -> None:
        self.stop.set(reason)
        self.deadline.at = now()


class Rescue:
    """One attempt's, in every worker. Called on the event loop's thread."""

    def __init__(self, shared: Shared, refuge: Refuge) -> None:
        self._shared = shared
        self._refuge = refuge
        self._running: dict[tuple[int, int], _Taking] = {}
        """By save and worker."""
        self._after: asyncio.Task[None] | None = None
        """A save."""

    async def ordered(self, order: peers.RescueOrder) -> object:
        """Rescued, or LATER. The same order again joins the one that runs; one that has failed is begun anew."""
        key = order.save, order.worker
        found = self._running.get(key)
        if found is None or (found.task.done() and found.task.result().error):
            deadline, stop = Deadline.of(order.deadline, otherwise_seconds=0.0), Stop()
            stop.at = monotonic() + deadline.remaining
            task = asyncio.ensure_future(self._run(order, deadline, stop))
            found = self._running[key] = _Taking(deadline, stop, task)
        elif order.deadline is not None and found.deadline.at != order.deadline and not found.stop.wanted:
            found.deadline.at = order.deadline
            found.stop.move(monotonic() + found.deadline.remaining)
        await asyncio.wait([found.task], timeout=LATER_SECONDS)
        return found.task.result() if found.task.done() else LATER

    def saved(self, ref: CheckpointRef) -> None:
        """It is a checkpoint: older parts, and its own, are given up, and beside training it is seen, once, how fast another worker's memory is read, and how
        much room there is."""
        for (save, _), taking in self._running.items():
            if save <= ref.save:
                taking.end(f"checkpoint {ref} is committed")
        if len(self._shared.order.members) > 1 and (self._after is None or self._after.done()):
            self._after = asyncio.ensure_future(self._settle_and_look(ref))

    async def given_up(self, save: int) -> None:
        """Nobody is to finish it: what was taken of it is dropped, durably, before its coordinator hears so and takes away what the store has (D4). Raises
        PeerRefused if that cannot be done now."""
        s = self._shared
        for key in [k for k in self._running if k[0] == save]:
            taking = self._running[key]
            taking.end(f"save {save} was given up")
            await asyncio.wait([taking.task])
            try:
                await s.threads.on_node(self._refuge.drop, CheckpointRef(s.attempt, save), key[1])
            except StoreError as e:
                raise PeerRefused(f"worker {key[1]}'s part of save {save} is not removed yet: {e}") from e
            self._running.pop(key, None)

    async def close(self) -> None:
        """No thread writes afterwards."""
        tasks: list[asyncio.Task[object]] = []
        for taking in self._running.values():
            taking.end("the attempt is over")
            tasks.append(taking.task)
        if self._after is not None:
            self._after.cancel()
            tasks.append(self._after)
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- inside

    async def _run(self, order: peers.RescueOrder, deadline: Deadline, stop: Stop) -> peers.Rescued:
        s = self._shared
        own = s.settings.config.worker
        try:
            part = await s.mesh.ask(order.worker, peers.PartWanted(order.attempt, order.save), until=deadline)
            pending = _checked(s, order, part)
            size = sum(e.image_bytes for e in pending.ranks)
            tier = await s.threads.on_node(self._refuge.choose, size, s.logical_bytes)
            if tier is None:
                raise SaveGivenUp(f"there is no room here for {size} bytes of worker {order.worker}")
            chunks = self._chunks_of(order.worker, stop)
            manifests = await self._manifests(chunks, part, pending)
            began = time.monotonic()
            read = await self._images(chunks, tier, pending, manifests, stop)
            if s.base is not None and s.base.ref >= pending.ref:
                raise SaveGivenUp(f"checkpoint {s.base.ref} is committed meanwhile")
            await s.threads.on_node(tier.leave, pending, manifests)
        except (AgentError, StoreError, OSError) as e:
            log.warning("worker %d's part of save %d is not taken: %s", order.worker, order.save, e)
            return peers.Rescued(s.attempt, order.save, own, f"{type(e).__name__}: {e}"[:1000])
        except Exception as e:  # a bug costs the rescue, and the coordinator hears it
            log.exception("worker %d's part of save %d is not taken", order.worker, order.save)
            return peers.Rescued(s.attempt, order.save, own, f"{type(e).__name__}: {e}"[:1000])
        seconds = time.monotonic() - began
        if 2 * read >= size:  # else it says little of the other worker's memory
            s.experience.taken(read, seconds)
        s.metrics.rescued_bytes.inc(size)
        s.record.takes(pending.ref, order.worker)
        log.warning(
            "worker %d's part of save %s, %d bytes, is whole here after %.1f s: it is finished from here when the next attempt is joined (E6)",
            order.worker, pending.ref, size, seconds,
        )  # fmt: skip
        return peers.Rescued(s.attempt, order.save, own)

    def _chunks_of(self, worker: int, stop: Stop) -> Chunks:
        s = self._shared
        member = next((m for m in s.order.members if m.worker == worker), None)
        if member is None:
            raise SaveGivenUp(f"worker {worker} is no member of attempt {s.attempt}")
        return Chunks(member, s.mesh.signed_get, stop)

    async def _manifests(self, chunks: Chunks, part: peers.Part, pending: Pending) -> list[RankManifest]:
        found = []
        for entry, size in zip(pending.ranks, part.manifest_bytes, strict=True):
            if not 0 < size <= MAX_MANIFEST_BYTES:
                raise SaveGivenUp(f"a manifest of {size} bytes")
            view = memoryview(bytearray(size))
            await self._shared.threads.send(_fetched, chunks, entry.manifest_digest, view)
            key = f"rank-{entry.rank}.json of worker {pending.worker}"
            manifest = parse(RankManifest, key, bytes(view), max_bytes=MAX_MANIFEST_BYTES)
            said = (
                manifest.job_uid,
                manifest.attempt,
                manifest.save,
                manifest.rank,
                manifest.world_size,
                manifest.boundary,
                manifest.image_bytes,
            )
            expected = (
                pending.job_uid, pending.attempt, pending.save, entry.rank, pending.world_size, pending.progress.boundary, entry.image_bytes,
            )  # fmt: skip
            if problem := manifest_problem(manifest) or (
                "" if said == expected else f"speaks of {said}, not of {expected}"
            ):
                raise Corrupt(key, problem)
            found.append(manifest)
        return found

    async def _images(
        self, chunks: Chunks, tier: LocalTier, pending: Pending, manifests: Sequence[RankManifest], stop: Stop
    ) -> int:
        """Durable, all of them. The bytes that came from the other worker."""
        s, files = self._shared, list[NewFile]()
        try:
            for manifest in manifests:
                files.append(
                    await s.threads.on_node(tier.begin_image, pending.ref, manifest.rank, manifest.image_bytes)
                )
            pieces = [_Piece(m, i, f) for m, f in zip(manifests, files, strict=True) for i in range(len(m.chunks))]
            largest = max(m.chunk_bytes for m in manifests)
            width = max(1, min(MOST_AT_ONCE, BUFFER_BYTES // largest, len(pieces)))
            loop, lanes = asyncio.get_running_loop(), []
            for n in range(width):
                work = partial(self._work, chunks, pieces[n::width], largest, stop)
                lanes.append(loop.run_in_executor(s.threads.chunks, work))
            try:
                read = sum(await asyncio.gather(*lanes))
            finally:
                stop.set("another part of the rescue failed, or all is there")
                await asyncio.gather(*lanes, return_exceptions=True)
            for file in files:
                await s.threads.on_node(file.keep)
            return read
        finally:
            for file in files:
                await s.threads.on_node(file.close)

    def _work(self, chunks: Chunks, pieces: Sequence[_Piece], largest: int, stop: Stop) -> int:
        """On a thread."""
        s, buffer, read = self._shared, memoryview(bytearray(largest)), 0
        for piece in pieces:
            if stop.wanted:
                raise SaveGivenUp(stop.reason or "the time is up")
            chunk = piece.manifest.chunks[piece.index]
            view = buffer[: chunk.length]
            if not (s.giving.copy(chunk.digest, view, s.threads.slots) and digest(view) == chunk.digest):
                _fetched(chunks, chunk.digest, view)
                read += chunk.length
            piece.file.write(view, piece.index * piece.manifest.chunk_bytes)
        return read

    async def _settle_and_look(self, ref: CheckpointRef) -> None:
        s = self._shared
        try:
            await s.threads.on_node(self._refuge.settled, ref)
            s.takes_bytes = await s.threads.on_node(self._refuge.room, s.logical_bytes)
        except (StoreError, OSError) as e:
            log.warning("parts of other workers that are given up are not removed: %s", e)
        if not (s.experience.taking_is_known or s.record.evacuating):
            await self._probe()

    async def _probe(self) -> None:
        """Reads from the next worker what it has just saved."""
        s = self._shared
        try:
            workers = sorted(m.worker for m in s.order.members)
            own = s.settings.config.worker
            after = workers[(workers.index(own) + 1) % len(workers)]
            until = Deadline.after(PROBE_SECONDS)
            stop = Stop()
            stop.at = monotonic() + PROBE_SECONDS
            part = await s.mesh.ask(after, peers.PartWanted(s.attempt, s.highest_save), until=until)
            chunks = self._chunks_of(after, stop)
            (manifest, *_) = await self._manifests(chunks, part, _pending(part))
            began = time.monotonic()
            count = await s.threads.send(_read_some, chunks, manifest)
            s.experience.taken(count, time.monotonic() - began)
            await s.experience.keep(s.threads)
        except (AgentError, StoreError, OSError, ValueError) as e:
            log.info("how fast another worker's memory is read is not known yet: %s", e)


def _pending(part: peers.Part) -> Pending:
    """Raises SaveGivenUp, Corrupt."""
    if not part.pending:
        raise SaveGivenUp(f"worker {part.worker} has no part of save {part.save}")
    return parse_pending(f"part of worker {part.worker}", part.pending.encode())


def _checked(shared: Shared, order: peers.RescueOrder, part: peers.Part) -> Pending:
    """What the part says of itself is what was ordered: of this job and this life of its attempt, and of that worker's ranks alone. Raises SaveGivenUp."""
    s = shared
    pending = _pending(part)
    each = s.order.processes_per_worker
    said = (
        pending.job_uid, pending.attempt, pending.save, pending.worker, pending.incarnation, pending.world_size, pending.progress.boundary,
        tuple(e.rank for e in pending.ranks), len(part.manifest_bytes),
    )  # fmt: skip
    expected = (
        s.settings.config.job_uid, s.attempt, order.save, order.worker, s.incarnation, s.order.world_size, order.boundary,
        tuple(s.order.ranks_of(order.worker)), each,
    )  # fmt: skip
    if said != expected:
        raise SaveGivenUp(f"worker {order.worker} speaks of {said} where {expected} was ordered")
    return pending


def _fetched(chunks: Chunks, name: str, view: memoryview) -> None:
    """On a thread. Raises SaveGivenUp when it cannot be had."""
    for left in reversed(range(TRIES)):
        why = chunks.fill(name, view)
        if not why:
            return
        if not left or chunks.stop.wanted:
            raise SaveGivenUp(f"{name[:16]} cannot be read from worker {chunks.member.worker}: {why}")
        chunks.stop.pause(PAUSE_SECONDS)


def _read_some(chunks: Chunks, manifest: RankManifest) -> int:
    count = 0
    for chunk in manifest.chunks:
        if count and count + chunk.length > PROBE_BYTES:
            break
        _fetched(chunks, chunk.digest, memoryview(bytearray(chunk.length)))
        count += chunk.length
    return count
