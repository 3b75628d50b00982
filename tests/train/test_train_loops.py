"""I4: the table of loop kinds, as a pure function."""

from dataclasses import replace

import pytest

from holdfast.audit import ROUNDS
from holdfast.loops import SILENT_BOUNDARIES, Facts, judge_loop
from holdfast_rank.gate import LoopClass

AUDITED = Facts(optimizers=("AdamW",), windows=9, clean=ROUNDS)

ROWS = {
    "a plain loop that was audited": (AUDITED, "plain", LoopClass.MID_STEP),
    "several optimizers": (replace(AUDITED, optimizers=("AdamW", "SGD")), "several optimizers", LoopClass.MID_STEP),
    "ZeRO-1": (replace(AUDITED, optimizers=("ZeroRedundancyOptimizer",)), "ZeRO-1", LoopClass.MID_STEP),
    "an optimizer in backward": (replace(AUDITED, in_backward=True), "optimizer in backward", LoopClass.MID_STEP),
    "tensors on the boundary path": (replace(AUDITED, moved=("a",)), "plain", LoopClass.MID_STEP),
    "nothing is known yet": (Facts(optimizers=("AdamW",)), "plain", LoopClass.BOUNDARY_ONLY),
    "one audit is missing": (replace(AUDITED, clean=ROUNDS - 1), "plain", LoopClass.BOUNDARY_ONLY),
    "no optimizer": (replace(AUDITED, optimizers=()), "no torch optimizer", LoopClass.BOUNDARY_ONLY),
    "LBFGS": (replace(AUDITED, optimizers=("AdamW", "LBFGS")), "LBFGS", LoopClass.BOUNDARY_ONLY),
    "a closure": (replace(AUDITED, closures=True), "closure", LoopClass.BOUNDARY_ONLY),
    "updates past the gate": (replace(AUDITED, bypassed=True), "updates past the gate", LoopClass.BOUNDARY_ONLY),
    "hooks that stopped firing": (replace(AUDITED, silent=SILENT_BOUNDARIES), "hooks do not fire", LoopClass.BOUNDARY_ONLY),
    "a state without a list": (replace(AUDITED, not_live="x is on cuda:0"), "plain", LoopClass.BOUNDARY_ONLY),
    "a small state that costs too much": (replace(AUDITED, slow="9 ms"), "plain", LoopClass.BOUNDARY_ONLY),
    "not wanted": (replace(AUDITED, off="switched off"), "plain", LoopClass.BOUNDARY_ONLY),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_loop_is_what_the_table_says(name: str) -> None:
    facts, kind, loop = ROWS[name]
    judged = judge_loop(facts)
    assert (judged.kind, judged.loop) == (kind, loop)
    assert judged.why or loop is LoopClass.MID_STEP, "what is boundary only says why"


def test_only_what_can_still_change_is_not_final() -> None:
    assert {n for n, (f, _, _) in ROWS.items() if not judge_loop(f).final} == {
        "a plain loop that was audited", "several optimizers", "ZeRO-1", "an optimizer in backward", "tensors on the boundary path",
        "nothing is known yet", "one audit is missing", "hooks that stopped firing",
    }  # fmt: skip
