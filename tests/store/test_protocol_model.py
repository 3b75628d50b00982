"""The rules of parts A, B and D are enough, and none of them can be left out: every interleaving of small scopes, random ones of wider scopes.

HOLDFAST_MODEL_DEEP=N explores N times as far: more states, wider scopes, more random ways.
"""

import os

import pytest
from protocol_model import RULES, Model, Scope, explore, wander

DEEP = int(os.environ.get("HOLDFAST_MODEL_DEEP", "1"))
LIMIT = 40_000 * DEEP

ONE_AT_A_TIME = Scope(attempts=2, steps=4, orders=2)
MANIFESTS = Scope(steps=2, ranks=2)
TWO_OPEN = Scope(steps=3, orders=2, open=2)
TWO_LIVES = Scope(steps=2, lives=2, late=False)
FORGETTING = Scope(forgets=True, resends=1, late=False)
BRANCHED = Scope(steps=2, branches=1)
AGAIN = Scope(attempts=1, steps=2, orders=2, branches=1, resends=1, forgets=True, late=False)
"""An operator that forgets orders the same deletion twice."""
TIDY = Scope(steps=2, tidy=True)
UNCONDITIONAL = Scope(steps=2, exact=False)
WRONG = Scope(steps=3, orders=2, wrong=2)
"""Attempts that run into the same NaN again."""
ODD = Scope(steps=3, orders=2, odd=2)
ON_NODES = Scope(steps=1, ranks=2, orders=0, nodes=True)
ON_NODES_LONGER = Scope(steps=2, nodes=True)
TWO_ON_NODES = Scope(steps=2, orders=0, open=2, nodes=True)
LATE_FINISHERS = Scope(steps=2, nodes=True, apart=True)
"""Whoever finishes has looked, and is overtaken by everybody before his commit record arrives."""
FINISHED_OR_SWEPT = Scope(steps=1, orders=0, nodes=True, tidy=True)
GIVEN_UP = Scope(steps=1, orders=0, nodes=True, gives_up=True)

EXPLORED = {
    "one save at a time": Scope(orders=2),
    "three attempts": Scope(attempts=3, steps=2),
    "rank manifests one by one, two saves open": Scope(steps=2, ranks=2, open=2),
    "a number that is given twice": TWO_LIVES,
    "an operator that forgets, commits that arrive again": FORGETTING,
    "a branch": BRANCHED,
    "a branch, and commits that arrive again": Scope(steps=2, branches=1, resends=1),
    "the same deletion twice, a branch, commits that arrive again": AGAIN,
    "sweeping": TIDY,
    "no conditional writes": UNCONDITIONAL,
    "weights that become NaN": WRONG,
    "copies that come apart": ODD,
    "copies that come apart and then become NaN": Scope(steps=3, odd=2, wrong=3),
    "saves that are left on nodes": ON_NODES,
    "saves that are left on nodes, and deletions": ON_NODES_LONGER,
    "saves that are left on nodes, finishers that are overtaken": LATE_FINISHERS,
    "saves that are left on nodes, sweeping": FINISHED_OR_SWEPT,
    "saves that are left on nodes, saves that did not fit": GIVEN_UP,
}
WIDE = [
    Scope(steps=4, orders=2, ranks=2, open=2, tidy=True, branches=1, resends=1),
    Scope(attempts=3, steps=3, orders=2, ranks=2, open=2, tidy=True, branches=1, resends=1, forgets=True, late=False),
    Scope(attempts=3, steps=3, orders=2, lives=2, open=2, tidy=True, late=False),
    Scope(attempts=3, steps=4, orders=2, open=2, tidy=True, branches=1, resends=1, wrong=3),
    Scope(attempts=3, steps=4, orders=2, ranks=2, open=2, tidy=True, nodes=True, gives_up=True, branches=1, resends=1),
    Scope(attempts=3, steps=4, orders=3, open=2, tidy=True, nodes=True, apart=True),
    Scope(attempts=3, steps=4, orders=3, ranks=2, open=2, tidy=True, resends=1, odd=2, wrong=4),
]


@pytest.mark.parametrize("scope", EXPLORED.values(), ids=EXPLORED)
def test_with_all_rules_no_interleaving_breaks_anything(scope: Scope) -> None:
    seen, broken = explore(Model(scope), LIMIT)
    assert broken is None
    assert 500 < seen < LIMIT  # explored to the end, not cut off


@pytest.mark.parametrize("scope", WIDE, ids=range(len(WIDE)))
def test_nor_does_a_random_way_through_everything_at_once(scope: Scope) -> None:
    assert [found for seed in range(60 * DEEP) if (found := wander(Model(scope), seed, 150))] == []


MISSED = {
    "own-attempt": (ONE_AT_A_TIME, "SAFE"),
    "own-save": (ONE_AT_A_TIME, "SAFE"),
    "one-base": (ONE_AT_A_TIME, "SAFE"),
    "keep-newest": (ONE_AT_A_TIME, "ALIVE"),
    "keep-best": (ODD, "SOUND"),
    "pass-over": (ODD, "CLEAN"),
    "expire-first": (ONE_AT_A_TIME, "ALIVE"),
    "list-store": (ONE_AT_A_TIME, "SAFE"),
    "all-manifests": (MANIFESTS, "SAFE"),
    "in-order": (TWO_OPEN, "SAFE"),
    "incarnation": (TWO_LIVES, "ONE"),
    "tombstone": (FORGETTING, "SAFE"),
    "stone-stays": (FORGETTING, "SAFE"),
    "name-first": (BRANCHED, "BRANCH"),
    "look-again": (BRANCHED, "BRANCH"),
    "stone-then-refs": (BRANCHED, "BRANCH"),
    "only-whole": (AGAIN, "SAFE"),
    "leave-open": (TIDY, "SAFE"),
    "finish-claims": (ON_NODES, "CLOSED"),
    "finish-stones": (GIVEN_UP, "CLOSED"),
    "finish-newer": (TWO_ON_NODES, "CLOSED"),
    "finish-manifests": (ON_NODES, "SAFE"),
    "not-a-commit": (ON_NODES, "ALIVE"),
    "keep-pending": (TWO_ON_NODES, "KEPT"),
    "heard": (GIVEN_UP, "SAFE"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_is_left_out_is_missed(rule: str) -> None:
    scope, what = MISSED[rule]
    _, broken = explore(Model(scope, without=[rule]), LIMIT)
    assert broken is not None
    assert broken.startswith(what)


def test_where_writes_are_not_conditional_only_the_operators_number_keeps_gangs_apart() -> None:
    """B8, A1: with a number given once all is well (above); given twice, nobody notices."""
    _, broken = explore(Model(Scope(steps=2, exact=False, lives=2, late=False)), LIMIT)
    assert broken is not None
    assert broken.startswith("ONE")


def test_an_operator_that_forgets_needs_deleters_that_look_for_claims() -> None:
    """A5: what a superseded gang was ordered to delete may be what the next one continues."""
    _, broken = explore(Model(Scope(steps=2, forgets=True)), LIMIT)
    assert broken is not None
    assert broken.startswith("ALIVE")
