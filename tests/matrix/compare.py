"""Whether runs that were taken away equal one that was not, bit by bit, and in words where they differ (K1, K2). Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tests.matrix.journal import Record

MOST = 12
"""Differences that are told; the first ones tell most."""


def differences(want: Sequence[Record], lives: Sequence[Sequence[Record]], steps: int) -> list[str]:
    """`want` by rank; `lives` by life and rank, in order. `steps` is how many boundaries there are. A step that was done again must have been the same."""
    found: list[str] = []
    for life, ranks in enumerate(lives):
        for rank, got in enumerate(ranks):
            for step, entry in got.steps.items():
                found += [
                    f"life {life}, rank {rank}, step {step}: {d}"
                    for d in unequal(want[rank].steps.get(step, {}), entry)
                ]
    for rank, truth in enumerate(want):
        done = set().union(*(ranks[rank].steps for ranks in lives)) if lives else set()
        if lost := sorted(set(range(1, steps + 1)) - done):
            found.append(f"rank {rank}: steps {lost} were done in no life")
        end = lives[-1][rank].end if lives else None
        if end is None:
            found.append(f"rank {rank}: the last life came to no end")
        else:
            found += [f"rank {rank}, at the end: {d}" for d in unequal(truth.end or {}, end)]
    return found


def unequal(want: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    """By name."""
    names = [*want, *(n for n in got if n not in want)]
    return [
        f"{n} is {short(got.get(n, 'missing'))} instead of {short(want.get(n, 'missing'))}"
        for n in names
        if want.get(n) != got.get(n) or (n in want) != (n in got)
    ]


def short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def lost_or_repeated(records: Sequence[Record], samples: int, epochs: int) -> list[str]:
    """K1: over all ranks every sample came once per epoch."""
    seen = Counter(i for record in records for entry in record.steps.values() for i in entry["samples"])
    wrong = {i: seen[i] for i in sorted({*range(samples), *seen}) if seen[i] != (epochs if i < samples else 0)}
    return [f"in {epochs} epochs samples came so often: {short(wrong)}"] if wrong else []


def gone_back(lives: Sequence[Sequence[Record]], told: Sequence[bool]) -> list[str]:
    """No life begins before the one before it began, nor before the boundary at which a notice came (`told`): what was announced loses no step."""
    found = []
    least = 0
    for life, ranks in enumerate(lives):
        starts = [r.start for r in ranks if r.start is not None]
        if len(set(starts)) > 1:
            found.append(f"life {life}: ranks begin at different boundaries: {starts}")
        if starts and min(starts) < least:
            found.append(f"life {life} begins at boundary {min(starts)}, and {least} was reached before it")
        least = max([least, *starts])
        moments = [r.moment for r in ranks if r.moment is not None]
        if life < len(told) and told[life] and moments:
            least = max(least, *moments)
    return found
