"""Which survivor takes which doomed worker's part (rescuers.py). Pure."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent import spans
from holdfast_agent.rescuers import assign
from holdfast_api.peers import Outlook, Span

anything = st.floats(allow_nan=True, allow_infinity=True)
any_span = st.builds(Span, anything, anything, anything)
sizes = st.integers(-1, 1 << 44)
any_outlook = st.builds(
    Outlook, boundary=st.just(10), since_seconds=anything, step=any_span, copy=any_span, store=any_span, node=st.none() | any_span,
    commit=any_span, finishes=st.booleans(), part_bytes=sizes, takes_bytes=sizes, take=st.none() | any_span,
)  # fmt: skip


def exactly(seconds: float) -> Span:
    return Span(seconds, seconds, seconds)


def an_outlook(**fields) -> Outlook:
    usual = {
        "boundary": 10, "since_seconds": 0.0, "step": exactly(4), "copy": exactly(1), "store": exactly(10), "node": exactly(2),
        "commit": exactly(0.1), "finishes": True, "part_bytes": 100, "takes_bytes": 250, "take": exactly(3),
    }  # fmt: skip
    return Outlook(**(usual | fields))


def test_one_takes_the_part_of_the_one_that_goes():
    found = assign({0: an_outlook(), 1: an_outlook()}, {1})
    assert found is not None
    assert found.takers == {1: 0}
    assert found.seconds == exactly(5), "hashed, then taken"


def test_several_parts_are_spread_over_those_who_stay_and_never_beyond_their_room():
    found = assign({w: an_outlook() for w in range(4)}, {2, 3})
    assert found is not None
    assert sorted(found.takers.values()) == [0, 1]
    found = assign({0: an_outlook(takes_bytes=0)} | {w: an_outlook() for w in range(1, 4)}, {2, 3})
    assert found is not None
    assert found.takers == {2: 1, 3: 1}
    assert found.seconds == exactly(8), "one after the other"
    assert assign({0: an_outlook(takes_bytes=199), 1: an_outlook(), 2: an_outlook()}, {1, 2}) is None


def test_a_larger_part_takes_longer_and_goes_to_the_faster_one():
    found = assign({0: an_outlook(take=exactly(9)), 1: an_outlook(), 2: an_outlook(part_bytes=200)}, {2})
    assert found is not None
    assert (found.takers, found.seconds) == ({2: 1}, exactly(8))


def test_nobody_is_relied_on_who_has_not_measured_or_cannot_keep_its_own_part():
    stays, goes = an_outlook(), an_outlook()
    for lacks in (
        {"take": None}, {"node": None}, {"finishes": False}, {"takes_bytes": 99}, {"part_bytes": 0},
    ):  # fmt: skip
        assert assign({0: dataclasses.replace(stays, **lacks), 1: goes}, {1}) is None, lacks
    assert assign({0: None, 1: goes}, {1}) is None
    assert assign({0: stays, 1: None}, {1}) is None
    assert assign({0: stays, 1: goes}, {0, 1}) is None, "nobody stays"
    assert assign({0: stays, 1: goes}, set()) is None, "nobody goes"
    assert assign({}, {1}) is None


@given(st.dictionaries(st.integers(0, 5), st.none() | any_outlook, max_size=6), st.sets(st.integers(-1, 7)))
def test_whatever_they_say_every_part_goes_to_one_who_stays_and_has_room_for_all_that_it_takes(outlooks, doomed):
    found = assign(outlooks, doomed)
    if found is None:
        return
    assert set(found.takers) == doomed & set(outlooks)
    for taker in set(found.takers.values()):
        assert taker not in doomed
        taken = sum(outlooks[w].part_bytes for w, t in found.takers.items() if t == taker)
        assert 0 < taken <= outlooks[taker].takes_bytes
    assert found.seconds == spans.tidy(found.seconds)
