"""The simulated jobs that `every: auto` is compared on lose exactly what a real one would."""

import pytest

from benchmarks.interval_tuner.simulate import RESTART_SECONDS, Fixed, Oracle, Trace, World, goodput, memoryless, trace

WORLD = World("w", stall_seconds=2.0, persist_seconds=10.0, caught_share=0.5, mean_seconds=1000, gaps=memoryless(1000))


@pytest.mark.parametrize(
    ("gap", "caught", "useful"),
    [
        (111.9, False, 0),  # the first save is written at 100 + 2 + 10
        (112.0, False, 100),
        (213.9, False, 100),
        (214.0, False, 200),
        (150.0, True, 148),  # caught: everything but the stall
        (101.0, True, 100),  # in the middle of the copy
        (90.0, True, 90),
    ],
)
def test_what_an_attempt_is_worth(gap: float, caught: bool, useful: float) -> None:
    found = goodput(WORLD, Trace((gap,), (caught,)), Fixed(100), 0) * (gap + RESTART_SECONDS)
    assert found == pytest.approx(useful)


def test_a_life_is_the_same_for_every_rule_and_differs_by_seed() -> None:
    assert trace(WORLD, 1, 1e5) == trace(WORLD, 1, 1e5) != trace(WORLD, 2, 1e5)
    assert sum(trace(WORLD, 1, 1e5).gaps) >= 1e5


def test_an_oracle_saves_rarely_where_most_is_caught() -> None:
    careful = World("c", 2.0, 10.0, 0.0, 1000, memoryless(1000))
    assert Oracle(WORLD).seconds > Oracle(careful).seconds * 1.3
