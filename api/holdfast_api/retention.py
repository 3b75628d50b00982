"""Which checkpoints are kept, and why (C5, D1): small rules that are put together. Pure. The operator gives up by it, `holdfast expire --dry-run` foretells
by it.

A rule is a value that names what it keeps, each with its reason. What any rule keeps is kept, and so is what is needed (`needed`), whatever the rules say. A
limit on bytes then takes from what only rules keep, the oldest first. So rules cannot contradict what is needed: they can only ask for more than a limit
allows, and that is said (`trouble`).

Sizes are those of the store. Chunks that several checkpoints share are counted once: with the checkpoint that has written them, and when that is given up with
the next younger one that is kept, because that may refer to them. What is counted is never less than what lies there on one line of checkpoints, and less
than the sum of their images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from holdfast_api import soundness
from holdfast_api.layout import CheckpointRef
from holdfast_api.soundness import Grade

AT_LEAST = 2
"""The store never deletes the newest two (D5): ordering it to would leave one that nobody counts and nobody may restore."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What retention looks at of one committed checkpoint."""

    ref: CheckpointRef
    boundary: int
    at: datetime
    finite: bool | None = None
    suspect: str = ""
    damaged: bool = False
    """In the store, as a scrub has found."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    weights_only: bool = False
    image_bytes: int = 0
    """Of the state that it holds."""
    held_bytes: int = 0
    """Of the chunks that are counted with it: its own, and those of given-up ones before it."""

    @property
    def grade(self) -> Grade:
        return soundness.grade(self, damaged=self.damaged)


Reason = tuple[CheckpointRef, str]


class Rule(Protocol):
    """`saved` is in the order of refs, oldest first. Reads nothing else, and keeps the same of the same."""

    def keeps(self, saved: Sequence[Saved], now: datetime) -> Iterator[Reason]: ...


@dataclass(frozen=True, slots=True)
class Last:
    """The newest so many that are not known to hold NaN nor to be damaged in the store: they must not push out what can be gone back to."""

    count: int

    def keeps(self, saved: Sequence[Saved], now: datetime) -> Iterator[Reason]:
        usable = [s.ref for s in saved if s.finite is not False and not s.damaged]
        yield from ((ref, f"one of the newest {self.count}") for ref in usable[-self.count :])


@dataclass(frozen=True, slots=True)
class Best:
    """The sound ones with the best values of a metric; of equal ones the newer."""

    metric: str
    count: int = 1
    highest: bool = False

    def keeps(self, saved: Sequence[Saved], now: datetime) -> Iterator[Reason]:
        sign = -1 if self.highest else 1
        scored = [s for s in reversed(saved) if self.metric in s.metrics and s.grade is Grade.SOUND]
        goal = "highest" if self.highest else "lowest"
        for s in sorted(scored, key=lambda s: sign * s.metrics[self.metric])[: self.count]:
            yield s.ref, f"one of the {self.count} with the {goal} {self.metric} ({s.metrics[self.metric]:.6g})"


@dataclass(frozen=True, slots=True)
class EverySteps:
    """The first sound one of each so many boundaries."""

    steps: int

    def keeps(self, saved: Sequence[Saved], now: datetime) -> Iterator[Reason]:
        yield from _first_of_each(saved, {s.ref: s.boundary // self.steps for s in saved}, f"{self.steps} steps")


@dataclass(frozen=True, slots=True)
class EverySeconds:
    """The first sound one of each so many seconds, counted from 1970."""

    seconds: int

    def keeps(self, saved: Sequence[Saved], now: datetime) -> Iterator[Reason]:
        parts = {s.ref: int(s.at.timestamp()) // self.seconds for s in saved}
        yield from _first_of_each(saved, parts, f"{self.seconds} seconds")


@dataclass(frozen=True, slots=True)
class YoungerThan:
    """Whatever is not so old yet."""

    seconds: int

    def keeps(self, saved: Sequence[Saved], now: datetime) -> Iterator[Reason]:
        after = now - timedelta(seconds=self.seconds)
        yield from ((s.ref, f"younger than {self.seconds} seconds") for s in saved if s.at > after)


@dataclass(frozen=True, slots=True)
class WeightsOnly:
    """What holds weights alone: small, and no state to resume."""

    def keeps(self, saved: Sequence[Saved], now: datetime) -> Iterator[Reason]:
        yield from ((s.ref, "holds weights only, which are kept for ever") for s in saved if s.weights_only)


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a person has named. No limit takes it."""

    refs: frozenset[CheckpointRef]

    def keeps(self, saved: Sequence[Saved], now: datetime) -> Iterator[Reason]:
        yield from ((s.ref, "pinned by name") for s in saved if s.ref in self.refs)


@dataclass(frozen=True, slots=True)
class Policy:
    rules: tuple[Rule, ...] = (Last(3),)
    most_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Fate:
    """Of one checkpoint. `why` is never empty."""

    ref: CheckpointRef
    kept: bool
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Oldest first. `held_bytes`: what counts with each that is kept, from now on."""

    fates: tuple[Fate, ...]
    held_bytes: Mapping[CheckpointRef, int]

    @property
    def given_up(self) -> tuple[CheckpointRef, ...]:
        return tuple(f.ref for f in self.fates if not f.kept)

    @property
    def bytes_kept(self) -> int:
        return sum(self.held_bytes.values())


def needed(saved: Sequence[Saved], proven: CheckpointRef | None) -> dict[CheckpointRef, str]:
    """What is kept whatever the rules say (C5). What is unknown counts like what is finite, so the newest one that is known to be finite is needed too; and the
    newest in which nothing is wrong, copies that differ included, because that is what a start continues. `proven`: from which a start has succeeded."""
    found: dict[CheckpointRef, str] = {}
    if proven is not None:
        found[proven] = "the last start that succeeded was from it (C5)"
    finite = [s.ref for s in saved if s.finite and not s.damaged]
    best = min(reversed(saved), key=lambda s: s.grade, default=None)
    if finite:
        found[finite[-1]] = "the newest that is known to be finite (C5)"
    if best is not None:
        found[best.ref] = "the newest with which the least is known to be wrong: a start would continue it (C5)"
    return found | {s.ref: f"one of the newest {AT_LEAST}, whatever they hold (D5)" for s in saved[-AT_LEAST:]}


def decide(policy: Policy, saved: Sequence[Saved], now: datetime, *, proven: CheckpointRef | None = None) -> Outcome:
    """The fate of each. `saved` in any order; `now` UTC. Deciding again over what was kept, at the same time, keeps all of it, unless there is a limit on bytes
    that it exceeds."""
    saved = sorted(saved, key=lambda s: s.ref)
    firm = needed(saved, proven)
    why: dict[CheckpointRef, list[str]] = {ref: [reason] for ref, reason in firm.items()}
    pinned: set[CheckpointRef] = set()
    for rule in policy.rules:
        for ref, reason in rule.keeps(saved, now):
            why.setdefault(ref, []).append(reason)
            pinned |= {ref} if isinstance(rule, Pinned) else set()
    kept = {s.ref for s in saved if s.ref in why}
    over = _over(policy.most_bytes, saved, kept, firm.keys() | pinned)
    kept -= over
    fates = tuple(Fate(s.ref, s.ref in kept, _reasons(policy, why.get(s.ref, []), s.ref in over)) for s in saved)
    return Outcome(fates, held(saved, kept))


def held(saved: Sequence[Saved], kept: set[CheckpointRef]) -> dict[CheckpointRef, int]:
    """Bytes that count with each of `kept` once the others are given up. `saved` oldest first. No checkpoint needs more than its image."""
    found: dict[CheckpointRef, int] = {}
    carried = 0
    for s in saved:
        carried += s.held_bytes or s.image_bytes
        if s.ref in kept:
            found[s.ref] = min(carried, s.image_bytes) if s.image_bytes else carried
            carried = 0
    return found


def trouble(
    policy: Policy, saved: Sequence[Saved], outcome: Outcome, *, field_of_limit: str, field_of_best: str
) -> str:
    """What the policy asks for and cannot have, with the fields to change; empty if all is well. Nothing waits for it."""
    parts = []
    limit = policy.most_bytes
    if limit is not None and outcome.bytes_kept > limit:
        names = ", ".join(str(f.ref) for f in outcome.fates if f.kept)
        parts.append(
            f"{field_of_limit} is {limit} bytes, and what is kept whatever it says, {names}, takes {outcome.bytes_kept}: raise it, or pin and trust less"
        )
    for rule in policy.rules:
        if isinstance(rule, Best) and saved and not any(rule.metric in s.metrics for s in saved):
            known = ", ".join(sorted({name for s in saved for name in s.metrics})[:16]) or "none at all"
            parts.append(f"{field_of_best} is {rule.metric!r}, and no checkpoint has that metric; they have: {known}")
    return "; ".join(parts)


def _over(
    most: int | None, saved: Sequence[Saved], kept: set[CheckpointRef], firm: set[CheckpointRef]
) -> set[CheckpointRef]:
    """Which of `kept` a limit takes, oldest first."""
    taken: set[CheckpointRef] = set()
    if most is None:
        return taken
    for s in saved:
        if sum(held(saved, kept - taken).values()) <= most:
            break
        if s.ref in kept and s.ref not in firm:
            taken.add(s.ref)
    return taken


def _first_of_each(saved: Sequence[Saved], parts: Mapping[CheckpointRef, int], of: str) -> Iterator[Reason]:
    """The first stays the first whatever is saved later, so what is kept stays kept."""
    seen: set[int] = set()
    for s in saved:
        if s.grade is Grade.SOUND and parts[s.ref] not in seen:
            seen.add(parts[s.ref])
            yield s.ref, f"the first of its {of}"


def _reasons(policy: Policy, why: list[str], over: bool) -> tuple[str, ...]:
    if over:
        return (f"the oldest go first where more than {policy.most_bytes} bytes would be kept", *why)
    return tuple(why) or ("no rule keeps it",)
