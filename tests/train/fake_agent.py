"""An agent reduced to its socket: it keeps what ranks capture as files and hands them back as restore images. It commits nothing and talks to nobody."""

import json
import os
import shutil
import socket
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast_agent import covering
from holdfast_api import codec, names, ranks
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Chunk, RankManifest, TensorEntry
from holdfast_store.chunks import digest
from holdfast_store.samples import STATE_NAME

WAIT = 60.0
LONGEST_PATH = 100
"""Bytes of a socket's; the kernel takes 107."""
CHUNK = 64 << 10
"""Small, so that the images of small models span many chunks."""


@dataclass(frozen=True)
class Image:
    path: Path
    boundary: int
    kind: str
    entries: tuple[TensorEntry, ...]
    message: ranks.CapturedSlot

    def chunks(self) -> list[bytes]:
        data = self.path.read_bytes()
        return [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]


@dataclass
class Connection:
    socket: socket.socket
    rank: int = -1
    plan: ranks.Plan | None = None
    slots: tuple[Path, ...] = ()
    messages: list[Any] = field(default_factory=list)
    offers: list[Image] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: ranks.FromAgent) -> None:
        with self.lock, suppress(OSError):
            self.socket.sendall(ranks.to_line(message))


class FakeAgent:
    """Use as a context manager. `restore_from` are, per rank, the images to offer, best first."""

    def __init__(self, directory: Path, *, every_steps: int = 0, slots: int = 2) -> None:
        self.directory, self.every_steps, self.slot_count = directory, every_steps, slots
        directory.mkdir(parents=True, exist_ok=True)
        self.path = str(directory / "agent.sock")
        if len(self.path) > LONGEST_PATH:
            self._short = tempfile.TemporaryDirectory(prefix="hf-")
            self.path = f"{self._short.name}/agent.sock"
        self.restore_from: dict[int, list[Image]] = {}
        self.other_world: list[Image] = []
        """Of all ranks of a checkpoint that another number of ranks has made: offered instead."""
        self.parts_wanted: dict[int, ranks.PartsWanted] = {}
        self.chunk_bytes_read: dict[int, int] = {}
        """By rank: of the chunks that hold what it wanted."""
        self.refuse_restore = self.refuse_plan = ""
        self.seen_finite = False
        self.keep_slots = False
        self.forget_images = False
        """For runs that capture often and restore seldom."""
        self.connections: dict[int, Connection] = {}
        self.images: dict[int, dict[int, Image]] = defaultdict(dict)
        self.captured: list[tuple[int, ranks.CapturedSlot]] = []
        self.votes: dict[tuple[int, int], ranks.Vote] = {}
        self._changed = threading.Condition()
        self._ever: list[Connection] = []
        self._dead = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "FakeAgent":
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        for thread in threading.enumerate():  # ranks of this process have heard it: what they log belongs to this test
            if thread.name == "holdfast-agent-link":
                thread.join(WAIT)

    def die(self) -> None:
        """Closes every connection, as the end of the process would."""
        self._dead = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._ever):
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
            connection.socket.close()

    @contextmanager
    def as_environment(self, rank: int = 0, world: int = 1) -> Iterator[None]:
        """For ranks inside the test's own process."""
        wanted = {names.ENV_SOCKET: self.path, "RANK": str(rank), "WORLD_SIZE": str(world)}
        before = {k: os.environ.get(k) for k in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for key, value in before.items():
                os.environ.pop(key, None) if value is None else os.environ.update({key: value})

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT), f"waited {WAIT} s for {what}"

    def newest(self, rank: int = 0) -> Image:
        return self.images[rank][max(self.images[rank])]

    def start_round(self, number: int, *, lease_seconds: float = WAIT, world: int) -> int:
        """Closes all gates, takes the maximum of the votes, releases; returns the target (E2)."""
        for connection in self.connections.values():
            connection.send(ranks.CloseGate(round=number, lease_seconds=lease_seconds))
        self.wait(lambda: sum(r == number for _, r in self.votes) == world, "all votes")
        target = max(v.boundary for (_, r), v in self.votes.items() if r == number)
        for connection in self.connections.values():
            connection.send(ranks.ReleaseGate(round=number, target=target))
        return target

    def await_round(self, number: int, *, world: int) -> dict[int, int]:
        """Rank -> boundary captured for the round."""

        def found() -> dict[int, int]:
            return {rank: c.boundary for rank, c in self.captured if c.kind == "round" and c.round == number}

        self.wait(lambda: len(found()) == world, f"all ranks to capture for round {number}")
        return found()

    def open_gates(self, number: int) -> None:
        for connection in self.connections.values():
            connection.send(ranks.OpenGate(round=number))

    def free(self, rank: int, slot: int) -> None:
        self.connections[rank].send(ranks.SlotFree(slot=slot, boundary=0, committed=True))

    def heard(self, kind: type, rank: int = 0) -> list[Any]:
        return [m for m in self.connections[rank].messages if isinstance(m, kind)]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self._ever.append(Connection(peer))
                if self._dead:  # it has come while the others were being closed
                    peer.shutdown(socket.SHUT_RDWR)
                threading.Thread(target=self._serve, args=(self._ever[-1],), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        with suppress(OSError, ValueError), connection.socket.makefile("rb") as lines:
            for line in lines:
                message = ranks.from_line(line)
                answer = self._answer(connection, message)
                with self._changed:
                    connection.messages.append(message)
                    self._changed.notify_all()
                if answer is not None:
                    connection.send(answer)

    def _answer(self, connection: Connection, message: Any) -> ranks.FromAgent | None:
        match message:
            case ranks.Hello():
                connection.rank = message.rank
                connection.offers = list(self.restore_from.get(message.rank, []))
                self.connections[message.rank] = connection
                return ranks.Welcome(attempt=message.attempt, chunk_bytes=CHUNK, every_steps=self.every_steps)
            case ranks.RestoreWanted() if self.other_world:
                return self._tell_of_the_others(connection)
            case ranks.RestoreWanted() | ranks.LoadFailed(of_checkpoint=True):
                return self._next_offer(connection)
            case ranks.PartsWanted():
                return self._assemble(connection, message)
            case ranks.Plan():
                return self._make_slots(connection, message)
            case ranks.CapturedSlot():
                return self._keep(connection, message)
            case ranks.Vote():
                with self._changed:
                    self.votes[(connection.rank, message.round)] = message
            case ranks.Done():
                return ranks.FinishAllowed()
        return None

    def _next_offer(self, connection: Connection) -> ranks.FromAgent:
        if self.refuse_restore:
            return ranks.Refused(message=self.refuse_restore)
        if not connection.offers:
            return ranks.StartFresh()
        image = connection.offers.pop(0)
        size = image.path.stat().st_size
        return ranks.RestoreReady(str(image.path), size, 1, 1, image.boundary, image.entries, self.seen_finite)

    def _tell_of_the_others(self, connection: Connection) -> ranks.FromAgent:
        path, sources, at = self.directory / f"states-for-{connection.rank}", [], 0
        with path.open("wb") as file:
            for number, image in enumerate(self.other_world):
                entry = next(e for e in image.entries if e.name == STATE_NAME)
                data = image.path.read_bytes()
                state = data[entry.offset_bytes : entry.offset_bytes + entry.length_bytes].rstrip()
                tensors = json.dumps(codec.to_plain(image.entries)).encode()
                file.write(state + tensors)
                sources.append(ranks.SourceRank(number, at, len(state), at + len(state), len(tensors)))
                at += len(state) + len(tensors)
        return ranks.OtherWorld(str(path), 1, 1, self.other_world[0].boundary, tuple(sources))

    def _assemble(self, connection: Connection, message: ranks.PartsWanted) -> ranks.FromAgent:
        """By the agent's own plan, from the images as files."""
        manifests = {n: _manifest(n, len(self.other_world), image) for n, image in enumerate(self.other_world)}
        cover = covering.cover(message.regions, manifests)
        plan = covering.jobs({connection.rank: cover}, manifests)
        made = bytearray(b"\xee" * cover.image_bytes)
        for job in plan:
            at = job.index * CHUNK
            data = self.other_world[job.rank].path.read_bytes()[at : at + CHUNK]
            for cut in job.cuts:
                cut.copy(memoryview(data), memoryview(made))
        path = self.directory / f"parts-of-{connection.rank}"
        path.write_bytes(made)
        self.parts_wanted[connection.rank] = message
        self.chunk_bytes_read[connection.rank] = sum(manifests[j.rank].chunks[j.index].length for j in plan)
        boundary = self.other_world[0].boundary
        return ranks.RestoreReady(str(path), len(made), 1, 1, boundary, cover.entries)

    def _make_slots(self, connection: Connection, plan: ranks.Plan) -> ranks.FromAgent:
        if self.refuse_plan:
            return ranks.Refused(message=self.refuse_plan)
        connection.plan = plan
        connection.slots = tuple(
            self.directory / f"rank{connection.rank}-plan{plan.plan}-{i}" for i in range(self.slot_count)
        )
        for path in connection.slots:
            path.write_bytes(b"\xee" * plan.image_bytes)  # never zero by luck
        return ranks.Slots(plan=plan.plan, paths=tuple(str(p) for p in connection.slots), slot_bytes=plan.image_bytes)

    def _keep(self, connection: Connection, message: ranks.CapturedSlot) -> ranks.FromAgent | None:
        plan, rank = connection.plan, connection.rank
        assert plan is not None
        assert plan.plan == message.plan
        path = self.directory / f"rank{rank}-boundary{message.boundary}.safetensors"
        if not self.forget_images:
            shutil.copyfile(connection.slots[message.slot], path)
        with self._changed:
            self.images[rank][message.boundary] = Image(path, message.boundary, message.kind, plan.tensors, message)
            self.captured.append((rank, message))
            self._changed.notify_all()
        return None if self.keep_slots else ranks.SlotFree(slot=message.slot, boundary=message.boundary, committed=True)


def _manifest(rank: int, world: int, image: Image) -> RankManifest:
    data = image.chunks()
    chunks = tuple(Chunk(digest(memoryview(c)), len(c), CheckpointRef(1, 1)) for c in data)
    whole = sum(map(len, data))
    return RankManifest("uid", 1, 1, rank, world, image.boundary, whole, CHUNK, chunks, image.entries)
