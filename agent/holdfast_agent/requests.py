"""How many requests to the store at once, and how long one may take. Pure: no clock, no I/O.

A store says how much it takes only by taking it. So the number of requests grows while more of them bring more bytes, doubling at first (an emergency has
no time to count up), and is halved when the store asks for less: SlowDown, a time-out, a reset. A request that hangs on a dead connection must not use up
what a deadline leaves: it is cut while there is time for another one, on another connection.

Before the first request has ended, a slow link and dead connections look alike. Cutting all of them would begin a slow upload again and again; waiting for
all of them would lose to a dead connection. So one, the scout, is cut and sent again as if the store were of a usual speed, and the others are waited for:
as soon as any has ended the speed is known, and they get what it allows.
"""

from dataclasses import dataclass, replace

GROWTH = 1.05
"""A window that brings so much more than the best one so far has grown."""
LOSS = 0.7
"""One that brings less than this share: the store or the network is another one now, and what was learned is forgotten."""
LOOK_AGAIN = 8
"""Windows without growth after which one more request is tried."""
FORGET = 0.98
"""Of the best rate stays so much with each window that does not reach it."""
UNKNOWN_BYTES_PER_SECOND = 4e6
"""Of one request, before the first has ended: the slow end of what stores give."""
SLACK = 4.0
"""A request may take so many times what its like have taken."""
LEAST_SECONDS = 2.0
MOST_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Width:
    """How many requests run at once, and what is known about it."""

    requests: int
    best: float = 0.0
    """Bytes per second that are to be bettered."""
    good: int = 0
    """With so many requests that was reached."""
    doubling: bool = True
    """Nothing has been found that limits it yet."""
    flat: int = 0
    """Windows with as many requests as were good, one after the other."""


@dataclass(frozen=True, slots=True)
class Window:
    """What happened while a number of requests was in force."""

    bytes: int
    """Of requests that ended well."""
    seconds: float
    refusals: int
    """Requests that the store refused for now, or that did not end in time."""
    full: bool
    """More was waiting: the number of requests was the limit."""


def next_width(width: Width, seen: Window, *, most: int) -> Width:
    """The number for the next window, 1 to `most`."""
    now = min(width.requests, most)
    if seen.refusals:
        return Width(max(1, now // 2), width.best * LOSS, doubling=False)
    if not seen.full or seen.seconds <= 0:
        return replace(width, requests=now)
    rate = seen.bytes / seen.seconds
    if rate < width.best * LOSS:
        return Width(now, rate, now, doubling=False)
    if rate > width.best * GROWTH:
        return Width(min(now * 2 if width.doubling else now + 1, most), rate, now, width.doubling)
    best = max(rate, width.best * FORGET)
    if width.good and now > width.good:
        return Width(width.good, best, width.good, doubling=False)  # more brought nothing
    if width.flat + 1 < LOOK_AGAIN:
        return Width(now, best, now, False, width.flat + 1)
    return Width(min(now + 1, most), best, now, doubling=False)


def seconds_for(size_bytes: int, *, bytes_per_second: float, left: float, tried: int, scout: bool = True) -> float:
    """How long a request of this size may take. `bytes_per_second`: of one such request lately, 0 if none has ended; `left`: seconds until the result is
    worthless (may be infinite); `tried`: how often this one has been cut or refused: each time it gets twice as long, or a slow store would take none.
    `scout`: it finds out whether connections are dead while the speed is not known; afterwards all are alike.
    """
    if not bytes_per_second and not scout:
        return max(0.1, min(left, MOST_SECONDS))
    expected = size_bytes / (bytes_per_second or UNKNOWN_BYTES_PER_SECOND)
    allowed = min(MOST_SECONDS, max(LEAST_SECONDS, expected * SLACK) * 2.0 ** min(tried, 10))
    if allowed < left and left - allowed >= expected:
        return allowed
    # Not enough for this and another one: half of it, if a request can end in that; else this is the last one.
    half = left / 2
    return max(0.1, min(allowed, half) if half >= expected * 1.5 else min(left, MOST_SECONDS))
