"""Worlds are functions of seed and number, and together they hold every kind."""

from tests.matrix import worlds
from tests.matrix.worlds import draw


def test_a_world_is_the_same_whenever_it_is_drawn() -> None:
    assert [draw(7, n, torchdata=True) for n in range(50)] == [draw(7, n, torchdata=True) for n in range(50)]
    assert draw(7, 3, torchdata=True) != draw(8, 3, torchdata=True)


def test_a_thousand_moments_hold_every_kind_and_every_allowed_pair_of_loop_and_distribution() -> None:
    found = worlds.enough(1, 1000, torchdata=True)
    assert {w.loop for w in found} == set(worlds.LOOPS)
    assert {w.precision for w in found} == set(worlds.PRECISIONS)
    assert {w.loader for w in found} == set(worlds.LOADERS)
    assert {(w.loop, w.distribution) for w in found} == set(worlds.PAIRS)
    assert {w.ranks for w in found} == {1, 2, 4}
    moments = [m for w in found for m in w.moments]
    assert {m.how for m in moments} == set(worlds.HOWS)
    assert {m.place for m in moments} == set(worlds.PLACES) - {"last step"}, (
        "the last step is a number, its place one of the others"
    )


def test_without_torchdata_nothing_else_changes() -> None:
    for number in range(100):
        with_it, without = draw(1, number, torchdata=True), draw(1, number, torchdata=False)
        assert without.loader == ("stateful" if with_it.loader == "torchdata" else with_it.loader)
        assert (without.loop, without.moments) == (with_it.loop, with_it.moments)


def test_the_moments_of_a_world_come_in_order_and_inside_it() -> None:
    for world in worlds.enough(2, 500, torchdata=True):
        assert [m.at for m in world.moments] == sorted(m.at for m in world.moments)
        assert all(1 <= m.at <= world.steps + 1 for m in world.moments)
        assert all(m.rank < world.ranks for m in world.moments)


def test_what_is_left_out_says_why() -> None:
    left = [(loop, d) for d in worlds.DISTRIBUTIONS for loop in worlds.LOOPS if worlds.left_out(loop, d)]
    assert len(left) + len(worlds.PAIRS) == len(worlds.LOOPS) * len(worlds.DISTRIBUTIONS)
    assert all(len(worlds.left_out(*pair)) > 20 for pair in left)
