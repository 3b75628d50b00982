"""When ranks that pass no boundary are taken for hung, and which of them the others wait for. Pure.

A rank is late when it has passed no boundary for longer than it may, for what it is doing. That alone says nothing: in most jobs every rank waits for the
slowest, which may be reading data or evaluating, and may take its time. So it is a hang only when every rank is either late, or goes on by itself, or is
out of it (it has ended; it stands at a gate of ours).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from holdfast_api.messages import HangLimits
from holdfast_api.peers import RankSeen

WARN_SHARE = 0.25
"""Of its patience: after that a step is worth a word. Before the time-outs of collectives (10 minutes as a rule), which end the process."""
LONGEST_TIMES = 2.0
"""As long as it has taken before, and as much again."""
OURS = ("slot", "gate", "finish")
"""The agent keeps it waiting, or it waits for the agent."""
NEUTRAL = ("gate", "finish")
"""Nobody waits for a rank that does this."""
SILENT_TIMES = 2.0
"""So much longer is waited where an agent does not answer: its ranks may be busy, and if its machine is gone, that is found out by other means."""
GOES_ON_SHARE = 0.5
"""A rank that has passed a boundary in the newer half of the time in which a late one has not goes on without that one."""
MAX_NAMED = 8


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds; 0: for ever, or no word."""

    limit: float
    warn: float


def patience(limits: HangLimits, doing: str, *, usual_seconds: float, longest_seconds: float) -> Patience:
    """`usual_seconds`: what nearly every step stays below; 0: not known. `longest_seconds`: between two boundaries, in this attempt."""
    if limits.action == "ignore" or doing in OURS:
        return Patience(0.0, 0.0)
    least = {
        "data": limits.data_seconds,
        "save": limits.data_seconds,
        "evaluation": limits.evaluation_seconds,
        "start": limits.start_seconds,
    }.get(doing, limits.step_seconds)
    if least <= 0:
        return Patience(0.0, 0.0)
    limit = max(least, limits.factor * usual_seconds, LONGEST_TIMES * longest_seconds)
    warns = doing in ("", "step", "save")
    return Patience(limit, max(WARN_SHARE * limit, (1 + LONGEST_TIMES) / 2 * longest_seconds) if warns else 0.0)


def is_late(rank: RankSeen, *, warn: bool = False, times: float = 1.0) -> bool:
    limit = rank.warn_seconds if warn else rank.patience_seconds
    return not rank.ended and limit > 0 and rank.idle_seconds >= limit * times


def stuck(seen: Iterable[RankSeen], *, warn: bool = False, silent: bool = False) -> tuple[RankSeen, ...]:
    """The ranks that hang; empty while one that is not late may be what they wait for. `silent`: an agent did not answer, and nothing is known of its ranks."""
    ranks = tuple(seen)
    late = tuple(r for r in ranks if is_late(r, warn=warn, times=SILENT_TIMES if silent else 1.0))
    if not late:
        return ()
    longest = min(r.idle_seconds for r in late)
    for rank in ranks:
        out = rank in late or rank.ended or rank.doing in NEUTRAL
        if not out and rank.idle_seconds >= GOES_ON_SHARE * longest:
            return ()
    return late


# ---- whom the others wait for

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<name>\S+)', re.MULTILINE)
_COLLECTIVE = re.compile(r"/torch/distributed/")
_BACKWARD = re.compile(r"/torch/autograd/")
_DATA = re.compile(r"/torch/utils/data/")
_LIBRARIES = re.compile(r"/(site|dist)-packages/|/lib/python3|/holdfast/|^<")
WAITS = ("a collective", "backward")
LOOKED_AT = 12
"""Innermost frames."""


def main_thread(stack: str) -> str:
    """The last block of a dump: threads are written newest first."""
    blocks = [b for b in re.split(r"\n\s*\n", stack.strip()) if "File " in b]
    return blocks[-1] if blocks else ""


def place(stack: str) -> tuple[str, str]:
    """(what the main thread waits in, the innermost line that is the script's own); each empty if it cannot be told."""
    frames = [(m["file"], m["line"], m["name"]) for m in _FRAME.finditer(main_thread(stack))]
    inner = [file for file, _, _ in frames[:LOOKED_AT]]
    waits = ""
    for what, pattern in (("a collective", _COLLECTIVE), ("a data loader", _DATA), ("backward", _BACKWARD)):
        if any(pattern.search(file) for file in inner):
            waits = what
            break
    own = next((f for f in frames if not _LIBRARIES.search(f[0])), frames[0] if frames else None)
    return waits, f"{own[0].rpartition('/')[2]}:{own[1]} in {own[2]}" if own else ""


@dataclass(frozen=True, slots=True)
class Finding:
    culprits: tuple[int, ...]
    why: str


def culprits(late: Sequence[RankSeen], everybody: Sequence[RankSeen], silent_workers: Sequence[int] = ()) -> Finding:
    """Of ranks that hang, those that the others wait for: stopped ones; those that are a boundary behind; those that are not in the collective in which
    the others are. Nobody, where that does not tell them apart."""
    at = {r.rank: place(r.stack) for r in everybody}
    if silent_workers:
        named = ", ".join(str(w) for w in silent_workers[:MAX_NAMED])
        tail = f"; the agents of workers {named} did not answer"
    else:
        tail = ""

    def found(ranks: Iterable[RankSeen], why: str) -> Finding:
        numbers = tuple(sorted(r.rank for r in ranks))
        return Finding(numbers, f"{_named(numbers, everybody, at)}: {why}{tail}")

    if stopped := [r for r in late if r.state in ("T", "t")]:
        return found(stopped, "stopped by a signal")
    if frozen := [r for r in late if r.state == "D"]:
        return found(frozen, "in the kernel and not to be interrupted, as on a disk or a mount that does not answer")
    ended = [r for r in everybody if r.ended]
    newest = max(r.boundary for r in (*late, *ended))
    if behind := [r for r in late if r.boundary < newest]:
        if len(behind) < len(late):
            return found(behind, f"at boundary {min(r.boundary for r in behind)}, others have passed {newest}")
        if ended:
            return Finding((), f"{_told(late, at)}: the other ranks have ended{tail}")
    waiting = [r for r in late if at[r.rank][0] in WAITS]
    others = [r for r in late if r not in waiting and r.stack]
    if waiting and others:
        return found(others, f"not in {at[waiting[0].rank][0]}, where {_count(waiting)} wait for it")
    if len(late) < len([r for r in everybody if not r.ended]):
        return found(late, "the other ranks go on")
    if len(late) == 1:
        return found(late, "the only rank that is left")
    if len(waiting) == len(late):
        places = {at[r.rank][1] for r in waiting}
        why = (
            "in different places"
            if len(places) > 1
            else "in the same place; a network that is broken, or a rank that is gone"
        )
        return Finding((), f"all ranks wait for each other, {why}: {_told(late, at)}{tail}")
    return Finding((), f"it cannot be told which rank the others wait for: {_told(late, at)}{tail}")


def _named(numbers: Sequence[int], everybody: Sequence[RankSeen], at: Mapping[int, tuple[str, str]]) -> str:
    by = {r.rank: r for r in everybody}
    text = ", ".join(f"rank {n}{_where(by[n], at[n])}" for n in numbers[:MAX_NAMED])
    return text + (f" and {len(numbers) - MAX_NAMED} more" if len(numbers) > MAX_NAMED else "")


def _told(ranks: Sequence[RankSeen], at: Mapping[int, tuple[str, str]]) -> str:
    return _named([r.rank for r in sorted(ranks, key=lambda r: r.rank)], ranks, at)


def _where(rank: RankSeen, at: tuple[str, str]) -> str:
    waits, line = at
    words = [
        w
        for w in (f"in {waits}" if waits else f"in {rank.doing}" if rank.doing else "", f"at {line}" if line else "")
        if w
    ]
    return f" ({', '.join(words)})" if words else ""


def _count(ranks: Sequence[RankSeen]) -> str:
    return "one other" if len(ranks) == 1 else f"{len(ranks)} others"
