"""K1, K2, I4: runs of every kind that are taken away at moments of every kind equal, bit by bit, runs that never were.

Real agents, notices and kills. HOLDFAST_MOMENTS says how many (20; `make test-train` takes 1,000), HOLDFAST_MATRIX_SEED which (1; `random` for new ones).
"""

import os
import random
from pathlib import Path

import pytest

from tests.matrix import many, worlds

MOMENTS = int(os.environ.get("HOLDFAST_MOMENTS", "20"))
GIVEN = os.environ.get("HOLDFAST_MATRIX_SEED", "1")
SEED = random.SystemRandom().randrange(1 << 31) if GIVEN == "random" else int(GIVEN)


@pytest.mark.timeout(0)  # each life has a limit of its own, behind which the stacks of its processes are printed
def test_a_run_that_is_taken_away_at_any_moment_equals_one_that_never_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = worlds.enough(SEED, MOMENTS, torchdata=many.TORCHDATA)

    def say(text: str) -> None:
        with capsys.disabled():
            print(text, end="", flush=True)

    say(
        f"\nmatrix: seed {SEED}, {len(wanted)} worlds, {MOMENTS} moments (about 1 s each; HOLDFAST_MOMENTS, HOLDFAST_MATRIX_SEED)\n"
    )
    outcomes = many.run(wanted, tmp_path, say)
    say(f"{many.table(outcomes)}\n")
    assert [many.failure(o) for o in outcomes if o.wrong] == []
    assert sum(len(o.moments) for o in outcomes) >= 0.8 * sum(len(w.moments) for w in wanted), "most moments come"
