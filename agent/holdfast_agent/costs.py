"""What a periodic save costs this job, measured while it trains: moving averages over what the lead's worker sees. Pure values; interval.py uses them."""

from dataclasses import dataclass, replace

from holdfast_agent.interval import Costs

WEIGHT = 0.3
"""Of the newest measurement."""
STEP_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Measured:
    """None: not seen yet."""

    stall_seconds: float | None = None
    persist_seconds: float | None = None
    requests: float = 0.0
    quiet_step_seconds: float | None = None
    """A step while nothing is written."""
    busy_step_seconds: float | None = None
    """A step while a save is written."""

    def stalled(self, seconds: float) -> "Measured":
        """From the first rank that stood still to the last that went on."""
        return replace(self, stall_seconds=_average(self.stall_seconds, seconds, WEIGHT))

    def persisted(self, seconds: float, requests: float) -> "Measured":
        """A save was committed `seconds` after its begin, with so many PUTs for each rank."""
        return replace(
            self,
            persist_seconds=_average(self.persist_seconds, seconds, WEIGHT),
            requests=_average(self.requests or None, requests, WEIGHT),
        )

    def stepped(self, seconds: float, *, saving: bool) -> "Measured":
        """The newest step took so long."""
        if saving:
            return replace(self, busy_step_seconds=_average(self.busy_step_seconds, seconds, STEP_WEIGHT))
        return replace(self, quiet_step_seconds=_average(self.quiet_step_seconds, seconds, STEP_WEIGHT))

    @property
    def costs(self) -> Costs | None:
        """None until a save has been seen whole."""
        if self.stall_seconds is None or self.persist_seconds is None:
            return None
        return Costs(
            self.stall_seconds, self._slower * max(0.0, self.persist_seconds), self.persist_seconds, self.requests
        )

    @property
    def _slower(self) -> float:
        """Share of the time that is lost while a save is written."""
        if not self.quiet_step_seconds or not self.busy_step_seconds:
            return 0.0
        return max(0.0, 1 - self.quiet_step_seconds / self.busy_step_seconds)


def _average(before: float | None, newest: float, weight: float) -> float:
    return newest if before is None else (1 - weight) * before + weight * newest
