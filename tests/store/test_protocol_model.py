"""The rules of parts A, B and D are enough, and none of them can be left out: every interleaving of a small model."""

import pytest
from protocol_model import RULES, Model, explore

LIMIT = 60_000


@pytest.mark.parametrize(("attempts", "steps", "orders"), [(2, 3, 1), (2, 3, 2), (3, 2, 1)])
def test_with_all_rules_no_interleaving_loses_a_usable_checkpoint(attempts: int, steps: int, orders: int) -> None:
    seen, broken = explore(Model(attempts, steps, orders), LIMIT)
    assert broken is None
    assert 1_000 < seen < LIMIT  # explored to the end, not cut off


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_is_left_out_is_missed(rule: str) -> None:
    _, broken = explore(Model(2, 4, 2, without=[rule]), LIMIT)
    assert broken is not None
    assert broken.startswith(("SAFE", "ALIVE"))
