"""How hard a flush may work. Pure.

Beside training few threads work, with the lowest claim on the processors, so that the next step does not wait for them; when ranks stand still everything
works at once.
"""

from dataclasses import dataclass

MOST_HASHERS = 8
"""BLAKE3 reaches 6 GB/s a thread: beyond this memory is the limit."""
NODE_WRITES = 8
"""16 MiB each: 128 MiB in flight keep an array of drives busy."""
FIRST_REQUESTS = 8
MOST_REQUESTS = 128
"""A store gives 20 to 45 MB/s for one upload: this is 2.5 to 5 GB/s."""
BACKGROUND_NODE_WRITES = 2
BACKGROUND_FIRST_REQUESTS = 2
BACKGROUND_MOST_REQUESTS = 16
BACKGROUND_PATIENCE_SECONDS = 60.0
BACKGROUND_SHARE = 1.0
"""Of the time: no rest. At a quarter, saves beside busy ranks took longer still, for a rest is as long as the piece took by the clock, and a thread of the
lowest priority mostly waits; a notice found such a save under way, finished it, and a step was lost (`make demo`)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Pieces at once in each lane of a flush."""

    background: bool
    """Threads yield to whatever else wants the processors."""
    hashers: int
    node_writes: int
    first_requests: int
    """Where nothing is known of the store yet."""
    most_requests: int
    patience_seconds: float
    """After so long hashing yields no more: where training wants every processor all the time, what it has reached must become durable all the same."""
    share: float
    """Of the time in which a hashing thread works; it rests for the others."""

    def rest(self, seconds: float) -> float:
        """So many, after a piece that took `seconds`."""
        return seconds * (1 / self.share - 1)


def pace_of(*, emergency: bool, cpus: int) -> Pace:
    """`cpus`: of this container."""
    if emergency:
        return Pace(False, min(MOST_HASHERS, max(1, cpus)), NODE_WRITES, FIRST_REQUESTS, MOST_REQUESTS, 0.0, 1.0)
    return Pace(
        True,
        1,
        BACKGROUND_NODE_WRITES,
        BACKGROUND_FIRST_REQUESTS,
        BACKGROUND_MOST_REQUESTS,
        BACKGROUND_PATIENCE_SECONDS,
        BACKGROUND_SHARE,
    )
