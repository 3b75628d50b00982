"""What still fits before a deadline. Pure: no clock, no I/O.

Thin in this release: one plan - wait for the ranks to arrive as long as the flush leaves room, then flush; if there is no time for anything new, keep
what is. Whatever is chosen, the previous commit is intact and the agent has ended before the deadline.
"""

from dataclasses import dataclass

EXIT_MARGIN_SECONDS = 1.0
"""The agent ends at least this long before the deadline."""
COMMIT_MARGIN_SECONDS = 0.5
"""Between the last moment for the commit record and the exit: reports, termination message."""
ARRIVAL_SHARE = 0.6
"""Part of the time that the ranks may use to arrive where nothing is known about the flush yet."""
WORTH_STARTING_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds from now, each at least 0."""

    worth_it: bool
    """False: nothing is started that cannot end (fault scenario 3)."""
    arrive_seconds: float
    """How long the coordinator waits for all ranks at the boundary before it falls back to an older clean slot (E3)."""
    commit_seconds: float
    """The commit record is written before it, or not at all."""
    exit_seconds: float


def fit(remaining_seconds: float, *, logical_bytes: int, bytes_per_second: float) -> Plan:
    """`bytes_per_second` is what earlier flushes reached, 0 if there was none; `logical_bytes` is the size of what would be flushed."""
    exit_at = max(0.0, remaining_seconds - EXIT_MARGIN_SECONDS)
    commit_at = max(0.0, exit_at - COMMIT_MARGIN_SECONDS)
    if bytes_per_second > 0 and logical_bytes > 0:
        # Twice the estimate: an emergency flush competes with those of the other pods of the node. Never more than the unknown case would reserve.
        arrive = max(commit_at - 2 * logical_bytes / bytes_per_second, commit_at * ARRIVAL_SHARE)
    else:
        arrive = commit_at * ARRIVAL_SHARE
    return Plan(
        worth_it=commit_at >= WORTH_STARTING_SECONDS,
        arrive_seconds=arrive,
        commit_seconds=commit_at,
        exit_seconds=exit_at,
    )
