"""A worker's part of restoring a checkpoint of another number of ranks.

    agent    reads every rank's manifest, and of every rank's image the chunks that hold its state (JSON); tells its own ranks where that lies (OtherWorld)
    rank     says which boxes of which tensors it needs (PartsWanted): only it knows how its model lies now
    agent    plans which chunks hold them (covering.py), fetches those and no other, and lays the boxes into the rank's slot (assembling.py)

From there on it is a restore like any other: no rank is handed anything before every member has every byte (C3).
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from holdfast_agent import covering, restore, targets
from holdfast_agent.assembling import Assembly, read_chunk
from holdfast_agent.clock import Deadline
from holdfast_agent.crew import Rank
from holdfast_agent.errors import CheckpointBad, NotCovered
from holdfast_agent.restore import Image, InStore, OnNode, Source, Tally
from holdfast_agent.shared import Shared
from holdfast_agent.stopping import Stop
from holdfast_api import codec
from holdfast_api import ranks as wire
from holdfast_api.manifest import CommitRecord, RankManifest
from holdfast_store.errors import Corrupt
from holdfast_store.samples import STATE_NAME

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Planned:
    covers: dict[int, covering.Cover]
    assembly: Assembly
    slots: dict[int, int]


class Reshaping:
    """One checkpoint's, for the ranks of this worker. Called on the event loop's thread."""

    def __init__(self, shared: Shared, record: CommitRecord, deliver: Callable[[], None]) -> None:
        """`deliver` is called when there is something to `tell`."""
        self._shared, self._record, self._deliver = shared, record, deliver
        self._manifests: dict[int, RankManifest] = {}
        self._message: wire.OtherWorld | None = None
        self._told: set[int] = set()
        self._wanted: dict[int, tuple[wire.Region, ...]] = {}
        self._planned: _Planned | None = None

    @property
    def why_not(self) -> str:
        """Why a rank of this worker cannot take part; empty if all can, as far as they have asked."""
        s = self._shared
        unable = next((r for r in s.crew if r.wants_restore and not r.reshards), None)
        if unable is None:
            return ""
        made = f"checkpoint {self._record.ref} was made by {len(self._record.ranks)} ranks"
        if unable.is_directory_mode:  # which has one, always
            return f"{made} through the library, which directory mode cannot read: run the script that made it, or start a job of another name"
        return (
            f"{made}, this attempt has {s.order.world_size}, and its script cannot load that: start as many ranks as made it "
            "(spec.workers times spec.processesPerWorker; --processes), or use the holdfast library of this release in the script"
        )

    def tell(self, rank: Rank) -> None:
        """What the checkpoint's ranks say of themselves, once it is there."""
        if self._message is not None and rank.number not in self._told and rank.reshards:
            self._told.add(rank.number)
            rank.send(self._message)

    def ask_again(self, rank: Rank) -> None:
        """It has refused what it was given, and waits for another checkpoint: this one, if it is offered again, is told anew."""
        self._told.discard(rank.number)
        self._wanted.pop(rank.number, None)

    def wanted(self, rank: Rank, message: wire.PartsWanted) -> None:
        ref = self._record.ref
        if (message.attempt, message.save) == (ref.attempt, ref.save) and self._planned is None:
            self._wanted[rank.number] = message.regions

    async def fetch(self, tally: Tally, stop: Stop) -> dict[int, Image]:
        """Ends when all ranks have said what they need and it is in their slots. Raises as `restore.fetch`, and NotCovered."""
        s = self._shared
        assert s.store is not None
        own = self._record.job_uid == s.settings.config.job_uid
        store = (s.store if own else s.store.for_job(self._record.job_uid)).until(0.0)
        sources: list[Source] = [OnNode(s.node)] if own and s.node is not None else []
        sources.append(InStore(store, stop))
        if not self._manifests:
            world = range(len(self._record.ranks))
            self._manifests = await restore.manifests_of(self._record, world, store, s.threads, stop)
        if self._message is None:
            try:
                self._message = await s.threads.call(self._write_states, sources, tally, stop)
            except NotCovered:
                # Not made by the library: what the ranks are decides what there is to say.
                await s.changes.until(lambda: s.crew.all(lambda r: r.wants_restore), Deadline.after(3600))
                raise
        self._deliver()
        while len(self._wanted) < len(s.crew.ranks):
            await s.changes.until(lambda: len(self._wanted) == len(s.crew.ranks), Deadline.after(3600))
        if self._planned is None:
            self._planned = await s.threads.call(self._plan)
        return await self._assemble(self._planned, sources, tally, stop)

    def forget(self) -> None:
        """Removes the file that ranks have read."""
        with contextlib.suppress(OSError):
            self._path.unlink()

    # ---- inside

    @property
    def _path(self) -> Path:
        return self._shared.arena.folder / f"states-{self._record.attempt}-{self._record.save}"

    def _write_states(self, sources: list[Source], tally: Tally, stop: Stop) -> wire.OtherWorld:
        """On a worker thread. Raises CheckpointBad, StoreError, OSError."""
        parts = []
        for left in self._path.parent.glob("states-*"):  # of an agent that was killed
            left.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._path, flags, 0o600), "wb") as file:
            for rank, manifest in sorted(self._manifests.items()):
                state = _state_of(manifest, sources, tally, stop)
                tensors = json.dumps(codec.to_plain(manifest.tensors), separators=(",", ":")).encode()
                at = file.tell()
                file.write(state)
                file.write(tensors)
                parts.append(wire.SourceRank(rank, at, len(state), at + len(state), len(tensors)))
        record = self._record
        return wire.OtherWorld(str(self._path), record.attempt, record.save, record.progress.boundary, tuple(parts))

    def _plan(self) -> _Planned:
        s = self._shared
        try:
            covers = {rank: covering.cover(regions, self._manifests) for rank, regions in self._wanted.items()}
        except Corrupt as e:  # manifests that verify, and contradict each other: an older one may be whole (C3)
            raise CheckpointBad(str(e)) from e
        assembly = Assembly(covering.jobs(covers, self._manifests), self._manifests)
        wanted = targets.Content(self._record.job_uid, self._record.ref)
        slots = {}
        for rank in covers:
            slot = targets.choose(s.arena.contents(rank), wanted)
            assert slot is not None  # nothing is spared
            slots[rank] = slot
        log.info(
            "checkpoint %s of %d ranks is loaded by %d: %d bytes of its chunks hold the %d bytes that ranks %s need",
            self._record.ref, len(self._record.ranks), s.order.world_size, assembly.bytes_to_read,
            sum(e.length_bytes for c in covers.values() for e in c.entries), sorted(covers),
        )  # fmt: skip
        return _Planned(covers, assembly, slots)

    async def _assemble(self, planned: _Planned, sources: list[Source], tally: Tally, stop: Stop) -> dict[int, Image]:
        s = self._shared
        sizes = {(r, planned.slots[r]): c.image_bytes for r, c in planned.covers.items()}
        await s.threads.call(s.arena.keep, s.ranks)
        await s.threads.call(s.arena.ensure, sizes)
        uses = {}
        try:
            for rank, slot in planned.slots.items():
                size = planned.covers[rank].image_bytes
                s.arena.forget(rank, slot)
                tally.contents.about_to_write(rank, slot, 0, size)
                uses[rank] = s.threads.slots.write(s.arena.path(rank, slot), size)
            views = {rank: use.view for rank, use in uses.items()}
            await planned.assembly.run(views, sources, s.threads, tally, stop)
        finally:
            for use in uses.values():
                use.close()
        return {rank: self._image(rank, planned) for rank in planned.covers}

    def _image(self, rank: int, planned: _Planned) -> Image:
        """With a manifest of what the slot holds: nobody stores it, and it has no chunks."""
        s, record, cover = self._shared, self._record, planned.covers[rank]
        manifest = RankManifest(
            record.job_uid, record.attempt, record.save, rank, s.order.world_size, record.progress.boundary,
            cover.image_bytes, self._manifests[0].chunk_bytes, (), cover.entries,
        )  # fmt: skip
        slot = planned.slots[rank]
        return Image(rank, slot, s.arena.path(rank, slot), manifest)


def _state_of(manifest: RankManifest, sources: list[Source], tally: Tally, stop: Stop) -> bytes:
    """A rank's state, without the spaces behind it. Raises NotCovered where it has none: that was not made by the library, and is no damage."""
    entry = next((t for t in manifest.tensors if t.name == STATE_NAME), None)
    if entry is None:
        raise NotCovered(
            f"the image of rank {manifest.rank} has no {STATE_NAME}: it was not made by the library, which alone loads another number of ranks"
        )
    first, last = (
        entry.offset_bytes // manifest.chunk_bytes,
        (entry.offset_bytes + entry.length_bytes - 1) // manifest.chunk_bytes,
    )
    parts = []
    for index in range(first, last + 1):
        buffer = bytearray(manifest.chunks[index].length)
        read_chunk(manifest, index, memoryview(buffer), sources, tally, stop)
        parts.append(buffer)
    begin = entry.offset_bytes - first * manifest.chunk_bytes
    return b"".join(parts)[begin : begin + entry.length_bytes].rstrip(b" \0")
