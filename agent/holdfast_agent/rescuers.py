"""Which survivor takes which doomed worker's part, and how long that takes in all. Pure, over what the workers expect."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from holdfast_agent import spans
from holdfast_api.peers import Outlook, Span

MOST_TIMES = 16.0
"""A part that is so many times as large as the taker's own is not thought about."""


@dataclass(frozen=True, slots=True)
class Rescue:
    """`takers`: doomed worker -> survivor. `seconds`: until every part is whole on a survivor, once every rank has captured."""

    takers: Mapping[int, int]
    seconds: Span


def assign(outlooks: Mapping[int, Outlook | None], doomed: Collection[int]) -> Rescue | None:
    """None if nobody goes, nobody stays, or somebody's part fits nowhere in known time: a worker that has not measured how fast it takes is none to rely on."""
    going = sorted(set(doomed) & set(outlooks))
    staying = {w: o for w, o in outlooks.items() if w not in set(doomed)}
    if not going or not staying or any(o is None or o.node is None or not o.finishes for o in staying.values()):
        return None
    own = spans.together(o.node for o in staying.values() if o is not None and o.node is not None)
    load = dict.fromkeys(staying, spans.NONE)
    room = {w: o.takes_bytes for w, o in staying.items() if o is not None and o.take is not None and o.part_bytes > 0}
    takers: dict[int, int] = {}
    for worker in sorted(going, key=lambda w: (-_size(outlooks[w]), w)):
        size = _size(outlooks[worker])
        tries = [
            (spans.then(load[t], took).sure, t, took)
            for t in room
            if 0 < size <= room[t] and (took := _take(outlooks[t], size)) is not None
        ]
        if not tries:
            return None
        _, taker, took = min(tries, key=lambda found: found[:2])
        takers[worker], load[taker], room[taker] = taker, spans.then(load[taker], took), room[taker] - size
    reading = spans.together(o.node for w in going if (o := outlooks[w]) is not None and o.node is not None)
    hashing = spans.together([reading, own])
    return Rescue(takers, spans.then(hashing, spans.together(load.values())))


def _size(outlook: Outlook | None) -> int:
    return outlook.part_bytes if outlook is not None else 0


def _take(outlook: Outlook | None, size: int) -> Span | None:
    if outlook is None or outlook.take is None or size > MOST_TIMES * outlook.part_bytes:
        return None
    return spans.longer(outlook.take, size / outlook.part_bytes)
