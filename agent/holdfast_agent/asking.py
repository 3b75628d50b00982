"""A source of chunks for a restore: what the manifest says other workers hold alike is read from their memory, before anybody asks the store (J4, C3).

Which workers those are stands in the manifest (shares.py), so state of which everybody has another part asks nobody. The workers are asked in turn, another one
first for each chunk, so that many survivors share the work. Whoever does not have what it should, answers nonsense, or is silent, is not asked again in this
try; a worker that does not know yet what it holds is waited for, for a moment. What arrives is verified like the bytes of any other source.

Called on the threads of a restore; the answer goes from the socket into the slot, with no copy in between.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from holdfast_agent import address, replicas, shares
from holdfast_agent.threads import Stop
from holdfast_api.manifest import RankManifest
from holdfast_api.messages import Member
from holdfast_store.chunks import digest
from holdfast_store.errors import Absent
from holdfast_store.patience import Limits
from holdfast_store.plain_get import Broken, PlainGet, Stalled, Unusual

log = logging.getLogger(__name__)
PATH = "/v1/peer/chunks/"
"""And the digest. GET, signed like any message of a peer; the answer is the chunk's bytes, 404 where it is not here, 409 or 503 where that is not known yet."""
MOST_ASKED = 16
"""Workers, of a job of many: the next ones in their order, so that several replacements ask different ones."""
CONNECT_SECONDS = 2.0
SILENT_SECONDS = 5.0
LEAST_SPEED = 20e6
"""Bytes a second; who gives more slowly is taken for silent."""
WAIT_SECONDS = 5.0
"""So long, from the begin of a try, for workers that do not know yet what they hold (503), or have not joined the attempt (409)."""
JOIN_AHEAD_SECONDS = 0.5
"""So long for the latter before the claim: they may be writing the state that is to come for minutes."""
PAUSE_SECONDS = 0.05
Sign = Callable[[Member, str], Mapping[str, str]]
"""Headers of a GET of that path at that member."""


class Chunks:
    """What one other worker has in memory, by digest. Any thread."""

    def __init__(self, member: Member, sign: Sign, stop: Stop) -> None:
        """Raises ValueError for a member that has no address yet."""
        host, port = address.split(member.address)
        self.member = member
        self.stop = stop
        self._sign = sign
        self._host = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._get = PlainGet(host, port, connect_seconds=CONNECT_SECONDS)
        self.status = 0
        """Of the last refusal."""

    def fill(self, name: str, view: memoryview) -> str:
        """Why `view` does not hold it now; empty if it does."""
        path = PATH + name
        whole = min(SILENT_SECONDS + len(view) / LEAST_SPEED, max(self.stop.left, 0.05))
        limits = Limits(min(SILENT_SECONDS, whole), whole)
        try:
            refused = self._get.fill(path, {"Host": self._host, **self._sign(self.member, path)}, view, limits)
        except (Unusual, Stalled, Broken) as e:
            self.status = 0
            return str(e)
        if refused is not None:
            self.status = refused.status
            return f"status {refused.status}"
        if digest(view) == name:
            return ""
        self.status = 0
        self._get.forget()
        return "what it gave is not what was asked for"


class FromMembers:
    """One try's. Any thread."""

    name = "peer"

    def __init__(
        self,
        members: Sequence[Member],
        own: int,
        ranks_per_worker: int,
        sign: Sign,
        stop: Stop,
        *,
        ahead: bool = False,
    ) -> None:
        """`own`: this worker. `ahead`: before the claim."""
        self._ranks_per_worker = ranks_per_worker
        self._stop = stop
        began = time.monotonic()
        self._wait_until = {
            503: began + WAIT_SECONDS,
            409: began + (JOIN_AHEAD_SECONDS if ahead else WAIT_SECONDS),
        }
        self._lock = threading.Lock()
        placed = enumerate(sorted(members, key=lambda m: m.worker))
        self._others = {place: Chunks(m, sign, stop) for place, m in placed if m.worker != own and m.address}
        """By their place among the members, from which their ranks follow."""
        places = sorted(self._others)
        first = sum(self._others[p].member.worker < own for p in places)
        self._order = [*places[first:], *places[:first]]
        self._sharing: dict[int, Mapping[int, tuple[int, ...]]] = {}

    def read(self, manifest: RankManifest, index: int, view: memoryview) -> None:
        """Raises Absent."""
        chunk = manifest.chunks[index]
        while not self._stop.wanted:
            other = self._next(manifest, index)
            if other is None:
                raise Absent(f"chunk {index} is in no other worker's memory")
            if self._ask(other, chunk.digest, view):
                return
        raise Absent("the restore was given up")

    def _next(self, manifest: RankManifest, index: int) -> Chunks | None:
        """Whose turn it is."""
        with self._lock:
            sharing = self._sharing.get(manifest.rank)
            if sharing is None:
                sides = replicas.compared(manifest.tensors, manifest.image_bytes, manifest.chunk_bytes)
                sharing = self._sharing[manifest.rank] = shares.shared_by(sides, self._ranks_per_worker)
            holders = set(sharing.get(index, ()))
            asked = [w for w in self._order if w in holders][:MOST_ASKED]
            left = [w for w in asked if w in self._others]
            return self._others[left[index % len(left)]] if left else None

    def _ask(self, other: Chunks, name: str, view: memoryview) -> bool:
        """Whether `view` holds it now; if not, the same one is asked again only where it does not know yet."""
        why = other.fill(name, view)
        if not why:
            return True
        if time.monotonic() < self._wait_until.get(other.status, 0.0):
            self._stop.pause(PAUSE_SECONDS)
            return False
        return self._not_again(other, why)

    def _not_again(self, other: Chunks, why: str) -> bool:
        with self._lock:
            place = next((p for p, known in self._others.items() if known is other), None)
            if place is not None and self._others.pop(place, None) is not None:
                log.info("worker %d gives nothing from its memory: %s", other.member.worker, why)
        return False
