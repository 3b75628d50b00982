"""What is known to be wrong with a checkpoint, and what that means for a start (C1, C4, C5, J4). One rule for operator, agent, store and CLI. Pure.

| grade      | what is known                                              | a start                                                        |
|------------|------------------------------------------------------------|----------------------------------------------------------------|
| sound      | nothing is wrong, as far as anybody has looked             | continues the newest one                                       |
| damaged    | bytes in the store are not what they were (a scrub)        | tries it only where nothing sound is left: a node may have them |
| suspect    | ranks that hold copies of one state did not hold the same  | continues it only where nothing better is left                 |
| not finite | trained state holds NaN or infinite values                 | tries it only where nothing else is left; a load refuses it    |

What was not looked at counts as sound: an emergency has no time to look, and its checkpoint is the newest there is.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Protocol, TypeVar


class Findings(Protocol):
    """What a commit record, a report and a status say alike."""

    @property
    def finite(self) -> bool | None: ...

    @property
    def suspect(self) -> str: ...


F = TypeVar("F", bound=Findings)


class Grade(IntEnum):
    """The lower the better."""

    SOUND = 0
    DAMAGED = 1
    SUSPECT = 2
    NOT_FINITE = 3


def grade(found: Findings, *, damaged: bool = False) -> Grade:
    """What weighs most. NaN more than copies that differ: from the latter a run can go on, if a person wants it to. `damaged`: in the store, by a verdict that
    came after the save and may be taken back."""
    if found.finite is False:
        return Grade.NOT_FINITE
    if found.suspect:
        return Grade.SUSPECT
    return Grade.DAMAGED if damaged else Grade.SOUND


def is_sound(found: Findings) -> bool:
    """Nothing is known to be wrong with it."""
    return grade(found) is Grade.SOUND


def best(newest_first: Iterable[F]) -> F | None:
    """What a start would continue: the newest of the best grade that is left; None where there is nothing. Reads no further than it has to."""
    found: F | None = None
    for each in newest_first:
        if is_sound(each):
            return each
        if found is None or grade(each) < grade(found):
            found = each
    return found


def words(suspect: str) -> str:
    """Why a suspect checkpoint is passed over, for people."""
    return f"copies of one state differed when it was saved: {suspect}"
