"""What a worker has measured (estimate.py), kept over the attempts of a pod and over restarts of its container: a small file on the memory volume.

Losing the file, or finding nonsense in it, costs what was learned and nothing else. Writing it never holds anything up.
"""

import contextlib
import logging
import math
from pathlib import Path

from holdfast_agent import spans
from holdfast_agent.clock import now
from holdfast_agent.estimate import Average, Estimates
from holdfast_agent.threads import Threads
from holdfast_api import codec
from holdfast_api.errors import ContractError
from holdfast_api.peers import Span

log = logging.getLogger(__name__)
FILE = "estimates.json"


class Experience:
    """Called on the event loop's thread; `keep` writes on a worker thread."""

    def __init__(self, folder: Path | None = None) -> None:
        self._path = folder / FILE if folder is not None else None
        self.estimates = read(self._path) if self._path is not None else Estimates()

    def stepped(self, seconds: float) -> None:
        self.estimates = self.estimates.stepped(seconds, _at())

    def copied(self, size: int, seconds: float) -> None:
        self.estimates = self.estimates.copied(size, seconds, _at())

    def on_node(self, size: int, seconds: float) -> None:
        self.estimates = self.estimates.on_node(size, seconds, _at())

    def flushed(
        self, *, logical: int, sent: int, seconds: float, emergency: bool, based: bool, at_its_pace: bool = True
    ) -> None:
        self.estimates = self.estimates.flushed(
            logical=logical,
            sent=sent,
            seconds=seconds,
            emergency=emergency,
            based=based,
            at=_at(),
            at_its_pace=at_its_pace,
        )

    def taken(self, size: int, seconds: float) -> None:
        """Read from another worker's memory."""
        self.estimates = self.estimates.taken(size, seconds, _at())

    @property
    def taking_is_known(self) -> bool:
        return self.estimates.taking.count > 0

    def committed(self, seconds: float) -> None:
        self.estimates = self.estimates.committed(seconds, _at())

    @property
    def speed_is_unknown(self) -> bool:
        """No emergency was measured, nor a save at the speed of one: the next save had better show it."""
        return not self.estimates.hurried.count

    @property
    def usual_step_seconds(self) -> float:
        """What nearly every step stays below (about 98 of 100), evaluations and the like left out; 0: none was seen."""
        known = self.estimates.step
        return known.seconds(known.at).sure if known.count else 0.0

    # ---- what is expected now

    def step(self) -> Span:
        return self.estimates.step_span(_at())

    def copy(self, size: int) -> Span:
        return self.estimates.copy_span(size, _at())

    def node(self, size: int) -> Span:
        return self.estimates.node_span(size, _at())

    def store(self, size: int, *, based: bool) -> Span:
        return self.estimates.store_span(size, _at(), based=based)

    def request(self) -> Span:
        return self.estimates.request_span(_at())

    async def keep(self, threads: Threads) -> None:
        """After a save. A full memory volume is no reason to stop."""
        path, data = self._path, codec.to_json(self.estimates)
        if path is None:
            return

        def write() -> None:
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(data)
            temporary.replace(path)

        try:
            await threads.call(write)
        except OSError as e:
            log.debug("what was measured is not kept: %s", e)


def read(path: Path) -> Estimates:
    """What is not usable as a whole counts as nothing."""
    with contextlib.suppress(OSError, ContractError):
        found = codec.from_json(Estimates, path.read_bytes())
        if all(_usable(getattr(found, name)) for name in Estimates.__slots__ if name != "schema"):
            return found
    return Estimates()


def _usable(value: object) -> bool:
    match value:
        case Average():
            sound = value.guess > 0 and value.factor > 1 and value.variance >= 0 and value.count >= 0
            return sound and abs(value.mean) < 100 and math.isfinite(value.at)
        case float():
            return 0 <= value < spans.LONG_SECONDS
    return False


def _at() -> float:
    return now().timestamp()
