"""What uploads beside training may take of the network: a token bucket, in bytes. Pure: no clock, no I/O.

Credit grows with time at the rate that the user sets, up to one second's worth. A request may begin as soon as nothing is owed, and then takes its whole size,
perhaps more than there is: what it owes is waited off before the next. So over any time no more is begun than the rate gives, plus one second's worth and one
request, and a request that is larger than a second's worth can be sent all the same.

Two things are worth more than the limit. A save that it would hold back until the save is given up would never become a checkpoint, so `holds_back` says no
to that; and an emergency is not asked at all (throttle.py).
"""

from dataclasses import dataclass

BURST_SECONDS = 1.0
SHARE = 0.8
"""Of the time that a save has left is planned with: a store may be slower than the limit."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """`at` in seconds of any clock that does not go back."""

    credit: float = 0.0
    """Bytes; negative: owed."""
    at: float = 0.0


def take(allowance: Allowance, size: int, *, rate: float, now: float) -> tuple[Allowance, float]:
    """What is left, and 0 if a request of `size` may begin now; else nothing is taken, and the seconds until it is worth asking again. `rate`: bytes per
    second, greater than 0."""
    passed = max(0.0, now - allowance.at)
    credit = min(allowance.credit + passed * rate, rate * BURST_SECONDS)
    if credit < 0:
        return Allowance(credit, now), -credit / rate
    return Allowance(credit - size, now), 0.0


def bytes_to_go(*, waiting: int, unhashed: int, hashed: int, new: int) -> float:
    """Of a save, still to be sent. `waiting`: known to be new, and not sent; `unhashed`: of which nobody knows yet, so as much of it as of what was hashed
    (`new` of `hashed`)."""
    return waiting + (unhashed * new / hashed if hashed else 0.0)


def holds_back(to_go: float, *, rate: float, left: float) -> bool:
    """Whether the limit applies to a save with so many bytes to go and so many seconds until it is given up: not if it could not be done by then."""
    return to_go <= rate * left * SHARE
