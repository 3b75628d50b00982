"""C5, D1: what each retention rule keeps, that together they never give up what is needed, over histories of 200 checkpoints."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_api import soundness
from holdfast_api.layout import CheckpointRef
from holdfast_api.retention import (
    AT_LEAST,
    Best,
    EverySeconds,
    EverySteps,
    Last,
    Pinned,
    Policy,
    Rule,
    Saved,
    WeightsOnly,
    YoungerThan,
    decide,
    trouble,
)
from holdfast_api.soundness import Grade

T0 = datetime(2026, 3, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def ref(save: int, attempt: int = 1) -> CheckpointRef:
    return CheckpointRef(attempt, save)


def saved(save: int, **fields: object) -> Saved:
    return Saved(ref(save), 10 * save, T0 + save * MINUTE, **fields)  # type: ignore[arg-type]


def kept(policy: Policy, every: list[Saved], proven: CheckpointRef | None = None) -> list[int]:
    outcome = decide(policy, every, T0 + (len(every) + 1) * MINUTE, proven=proven)
    return [f.ref.save for f in outcome.fates if f.kept]


def ten(**fields: object) -> list[Saved]:
    return [saved(n, **fields) for n in range(1, 11)]


LOSSES = [5.0, 3.0, 4.0, 1.0, 2.0, 6.0, 1.0, 9.0, 8.0, 7.0]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Last(4), [7, 8, 9, 10]),
        (Best("loss", 2), [4, 7, 9, 10]),
        (Best("loss", 2, highest=True), [8, 9, 10]),
        (Best("accuracy", 2), [9, 10]),
        (EverySteps(40), [1, 4, 8, 9, 10]),
        (EverySeconds(240), [1, 4, 8, 9, 10]),
        (YoungerThan(240), [8, 9, 10]),
        (WeightsOnly(), [9, 10]),
        (Pinned(frozenset({ref(2), ref(99)})), [2, 9, 10]),
    ],
    ids=lambda v: repr(v) if not isinstance(v, list) else None,
)
def test_each_rule_keeps_what_it_says_beside_the_newest_two(rule: Rule, expected: list[int]) -> None:
    every = [saved(n, finite=True, metrics={"loss": loss}) for n, loss in enumerate(LOSSES, 1)]
    assert kept(Policy((rule,)), every) == expected


def test_weights_only_are_kept_for_ever_by_that_rule_alone() -> None:
    every = [saved(n, weights_only=n in (2, 3)) for n in range(1, 11)]
    assert kept(Policy((WeightsOnly(),)), every) == [2, 3, 9, 10]
    assert kept(Policy((Last(1),)), every) == [9, 10]


def test_what_is_unsound_is_no_best_and_no_first_of_anything() -> None:
    every = [saved(n, metrics={"loss": float(n)}) for n in range(1, 11)]
    every[0] = replace(every[0], finite=False)
    every[1] = replace(every[1], suspect="rank 1")
    assert kept(Policy((Best("loss"),)), every) == [3, 9, 10]
    assert kept(Policy((EverySteps(1000),)), every) == [3, 9, 10]


def test_what_is_needed_is_kept_whatever_the_rules_say() -> None:
    every = [saved(n, finite=False if n > 3 else True if n == 2 else None) for n in range(1, 11)]
    every[2] = replace(every[2], suspect="rank 1")
    assert kept(Policy(()), every, proven=ref(1)) == [1, 2, 9, 10]
    every[3] = saved(4)
    assert kept(Policy(()), every) == [2, 4, 9, 10], (
        "the newest known to be finite, and the newest nothing is known against"
    )


def test_what_is_damaged_in_the_store_pushes_out_nothing_that_is_whole() -> None:
    every = [saved(n, finite=True, damaged=n > 5) for n in range(1, 11)]
    assert kept(Policy((Last(2), EverySteps(1000))), every) == [1, 4, 5, 9, 10]
    assert kept(Policy(()), every) == [5, 9, 10]


def test_each_says_why() -> None:
    outcome = decide(Policy((Last(3), Pinned(frozenset({ref(2)})))), ten(finite=True), T0)
    why = {f.ref.save: f.why for f in outcome.fates}
    assert why[1] == ("no rule keeps it",)
    assert why[2] == ("pinned by name",)
    assert why[8] == ("one of the newest 3",)
    assert len(why[10]) == 2
    assert all(why.values())


def test_a_limit_takes_the_oldest_of_what_only_rules_keep_and_says_so() -> None:
    every = ten(image_bytes=100, held_bytes=100)
    policy = Policy((Last(8), Pinned(frozenset({ref(4)}))), 500)
    assert kept(policy, every) == [4, 7, 8, 9, 10]
    (third,) = (f for f in decide(policy, every, T0).fates if f.ref == ref(3))
    assert "500 bytes" in third.why[0]


def test_what_cannot_be_had_is_one_message_with_the_field_and_the_remedy() -> None:
    every = ten(image_bytes=100, held_bytes=100, metrics={"loss": 1.0})
    names = {"field_of_limit": "keep.maxBytes", "field_of_best": "keep.best.metric"}
    for policy, words in (
        (Policy((Last(3),), 150), ["keep.maxBytes is 150 bytes", "1/9, 1/10", "takes 200", "raise it"]),
        (Policy((Best("acc"),)), ["keep.best.metric is 'acc'", "no checkpoint has that metric", "loss"]),
        (Policy((Last(3),), 250), []),
    ):
        said = trouble(policy, every, decide(policy, every, T0), **names)
        assert bool(said) == bool(words)
        assert all(w in said for w in words), said
    assert trouble(Policy((Best("acc"),)), [], decide(Policy((Best("acc"),)), [], T0), **names) == ""


# ---- histories


@dataclass
class Run:
    """A run that saves on one line, each save on the one before it, and rolls nothing back. What lies in the store is known chunk by chunk."""

    policy: Policy
    chance: random.Random
    now: datetime = T0
    ever: list[Saved] = field(default_factory=list)
    kept: list[Saved] = field(default_factory=list)
    images: dict[CheckpointRef, frozenset[int]] = field(default_factory=dict)
    proven: CheckpointRef | None = None

    def save(self, save: int) -> None:
        chance = self.chance
        self.now += timedelta(seconds=chance.randint(1, 600))
        before = self.images[self.ever[-1].ref] if self.ever else frozenset()
        old = frozenset(c for c in before if chance.random() < 0.8)
        fresh = frozenset(range(1000 * save, 1000 * save + chance.randint(1, 9)))
        if chance.random() < 0.02:
            self.proven = chance.choice([s.ref for s in self.kept] or [None])  # type: ignore[list-item]
        new = Saved(
            ref(save),
            (self.ever[-1].boundary if self.ever else 0) + chance.randint(1, 30),
            self.now,
            finite=chance.choice([True, True, True, None, False]),
            suspect=chance.choice(["", "", "", "rank 1"]),
            damaged=chance.random() < 0.1,
            metrics={"loss": round(chance.random(), 2)} if chance.random() < 0.7 else {},
            weights_only=chance.random() < 0.1,
            image_bytes=len(old | fresh),
            held_bytes=len(fresh),
        )
        self.images[new.ref] = old | fresh
        self.ever.append(new)
        self.kept.append(new)
        self.collect()

    def collect(self) -> None:
        outcome = decide(self.policy, self.kept, self.now, proven=self.proven)
        gone = set(outcome.given_up)
        self.kept = [replace(s, held_bytes=outcome.held_bytes[s.ref]) for s in self.kept if s.ref not in gone]

    def refs(self) -> set[CheckpointRef]:
        return {s.ref for s in self.kept}

    def stored_bytes(self) -> int:
        return len(frozenset().union(*(self.images[s.ref] for s in self.kept)))


def check(run: Run) -> None:
    """What must hold after every collection, from the whole history and not by the code that decided."""
    there, ever = run.refs(), run.ever
    known = [s for s in ever if s.ref in there]
    assert {s.ref for s in ever[-AT_LEAST:]} <= there
    grades = [soundness.grade(s, damaged=s.damaged) for s in ever]
    best = max(n for n, g in enumerate(grades) if g is min(grades))
    assert ever[best].ref in there, "what a start would continue"
    finite = [s.ref for s in ever if s.finite and not s.damaged]
    assert not finite or finite[-1] in there
    assert run.proven is None or run.proven in there
    counted = sum(s.held_bytes for s in run.kept)
    assert run.stored_bytes() <= counted <= sum(s.image_bytes for s in run.kept)
    again = decide(run.policy, run.kept, run.now, proven=run.proven)
    assert not again.given_up, "what is kept stays kept"
    assert known == [s for s in ever if s.ref in {k.ref for k in run.kept}]


def without_limit(run: Run) -> None:
    """Each rule's own promise, over all that was ever saved."""
    there = run.refs()
    for rule in run.policy.rules:
        match rule:
            case Last(count):
                assert {
                    s.ref for s in [s for s in run.ever if s.finite is not False and not s.damaged][-count:]
                } <= there
            case Best("loss", count):
                scored = [s for s in run.ever if s.metrics and s.grade is Grade.SOUND]
                values = sorted(s.metrics["loss"] for s in scored)[:count]
                have = sorted(s.metrics["loss"] for s in scored if s.ref in there)[:count]
                assert have == values
            case EverySteps(steps):
                wanted = {s.boundary // steps for s in run.ever if s.grade is Grade.SOUND}
                assert {s.boundary // steps for s in run.kept if s.grade is Grade.SOUND} == wanted
            case WeightsOnly():
                assert {s.ref for s in run.ever if s.weights_only} <= there
            case YoungerThan(seconds):
                assert {s.ref for s in run.ever if s.at > run.now - timedelta(seconds=seconds)} <= there
            case Pinned(refs):
                assert refs & {s.ref for s in run.ever} <= there


RULES: list[Callable[[random.Random], Rule]] = [
    lambda c: Last(c.randint(1, 6)),
    lambda c: Best("loss", c.randint(1, 4)),
    lambda c: EverySteps(c.choice([50, 300])),
    lambda c: EverySeconds(c.choice([3600, 20_000])),
    lambda c: YoungerThan(c.choice([600, 6000])),
    lambda c: WeightsOnly(),
    lambda c: Pinned(frozenset(ref(c.randint(1, 200)) for _ in range(4))),
]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**9), limited=st.booleans())
def test_over_200_checkpoints_nothing_that_is_needed_is_ever_given_up(seed: int, limited: bool) -> None:
    chance = random.Random(seed)
    rules = tuple(make(chance) for make in RULES if chance.random() < 0.5)
    run = Run(Policy(rules, chance.choice([60, 300, 2000]) if limited else None), chance)
    for save in range(1, 201):
        run.save(save)
        check(run)
        if not limited:
            without_limit(run)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_a_limit_is_kept_to_unless_what_is_needed_or_pinned_exceeds_it_which_is_said(seed: int) -> None:
    chance = random.Random(seed)
    most = chance.choice([30, 100, 400])
    pinned = frozenset(ref(chance.randint(1, 60)) for _ in range(2))
    run = Run(Policy((Last(50), Pinned(pinned)), most), chance)
    for save in range(1, 81):
        run.save(save)
        outcome = decide(run.policy, run.kept, run.now, proven=run.proven)
        said = trouble(run.policy, run.kept, outcome, field_of_limit="L", field_of_best="B")
        assert bool(said) == (outcome.bytes_kept > most)
        if said:
            firm = decide(Policy((Pinned(pinned),)), run.kept, run.now, proven=run.proven)
            assert not firm.given_up, "nothing is left that could go"
        else:
            assert run.stored_bytes() <= most


def test_the_number_that_is_kept_is_bounded_by_the_rules() -> None:
    run = Run(Policy((Last(3), Best("loss", 2))), random.Random(5))
    for save in range(1, 201):
        run.save(save)
        assert len(run.kept) <= 3 + 2 + AT_LEAST + 3
