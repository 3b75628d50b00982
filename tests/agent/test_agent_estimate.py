"""What is learned from measurements (estimate.py), arithmetic with spans (spans.py), and what is kept over a restart (experience.py)."""

import itertools
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent import experience, spans
from holdfast_agent.estimate import Average, Estimates
from holdfast_agent.experience import Experience
from holdfast_agent.outlook import expected
from holdfast_agent.threads import Threads
from holdfast_api.peers import Span

NOW = 1_800_000_000.0
GIB = 1 << 30
anything = st.floats(allow_nan=True, allow_infinity=True)
sizes = st.integers(-1, 1 << 46)


def speeds(*seen: float) -> Average:
    average = Average(100.0, 4.0)
    for value in seen:
        average = average.seen(value, NOW)
    return average


def test_before_anything_is_seen_the_guess_stands_with_a_wide_spread():
    span = speeds().seconds_for(1000, NOW)
    assert span.likely == 10
    assert (span.best, span.sure) == pytest.approx((10 / 16, 160))


def test_each_observation_narrows_the_spread_and_moves_to_what_is_true():
    spreads = [speeds(*[50.0] * n).spread(NOW) for n in range(8)]
    assert spreads == sorted(spreads, reverse=True)
    assert speeds(50.0).value == pytest.approx(50)
    assert speeds(*[50.0] * 7).seconds_for(1000, NOW).sure < 1000 / 50 * 1.6


def test_what_varies_keeps_its_spread():
    steady, wild = speeds(*[50.0] * 20), speeds(*[25.0, 100.0] * 10)
    assert wild.spread(NOW) > 4 * steady.spread(NOW)
    assert wild.seconds_for(1000, NOW).sure > 1000 / 25


def test_hours_without_an_observation_widen_it_again():
    known = speeds(*[50.0] * 20)
    assert known.spread(NOW) < known.spread(NOW + 3600) < known.spread(NOW + 10 * 3600) <= 1.5


def test_the_tail_of_the_step_time_remembers_an_evaluation_and_fades():
    seen = Estimates()
    for _ in range(50):
        seen = seen.stepped(0.1, NOW)
    usual = seen.step_span(NOW)
    evaluated = seen.stepped(5.0, NOW)
    assert usual.sure < 0.2
    assert evaluated.step_span(NOW).sure >= 5.0
    assert evaluated.step_span(NOW).likely < 0.4
    for _ in range(800):
        evaluated = evaluated.stepped(0.1, NOW)
    assert evaluated.step_span(NOW).sure < 0.2


def test_until_an_emergency_was_seen_it_is_taken_for_one_to_four_times_as_fast_as_a_save_beside_training():
    seen = Estimates()
    for _ in range(100):
        seen = seen.flushed(logical=GIB, sent=GIB, seconds=10.0, emergency=False, based=False, at=NOW)
    before = seen.store_span(GIB, NOW, based=False)
    assert (before.best, before.likely, before.sure) == pytest.approx((2.5, 5, 10), rel=0.1)
    assert seen.beside_span(GIB, NOW, based=False).likely == pytest.approx(10, rel=0.05)
    for _ in range(10):
        seen = seen.flushed(logical=GIB, sent=GIB, seconds=4.0, emergency=True, based=False, at=NOW)
    after = seen.store_span(GIB, NOW, based=False)
    assert after.likely == pytest.approx(4, rel=0.1)
    assert after.sure < 6


def test_what_the_base_has_is_not_expected_to_be_sent_again():
    seen = Estimates()
    for _ in range(12):
        seen = seen.flushed(logical=GIB, sent=GIB // 10, seconds=2.0, emergency=False, based=True, at=NOW)
    assert seen.store_span(GIB, NOW, based=True).likely < seen.store_span(GIB, NOW, based=False).likely / 2
    grown = seen.flushed(logical=GIB, sent=GIB, seconds=8.0, emergency=False, based=True, at=NOW)
    assert grown.new_share == 1.0, "one save that had to send everything is remembered"


@given(st.lists(st.tuples(st.sampled_from("sfcnr"), anything, sizes, sizes), max_size=12), sizes, anything)
def test_no_number_makes_an_estimate_that_is_not_one(events, size, now):
    seen = Estimates()
    for kind, seconds, one, two in events:
        match kind:
            case "s":
                seen = seen.stepped(seconds, now)
            case "f":
                seen = seen.flushed(
                    logical=one, sent=two, seconds=seconds, emergency=one % 2 == 0, based=two % 2 == 0, at=now
                )
            case "c":
                seen = seen.copied(one, seconds, now)
            case "n":
                seen = seen.on_node(one, seconds, now)
            case "r":
                seen = seen.committed(seconds, now)
    for span in (
        seen.step_span(now),
        seen.copy_span(size, now),
        seen.node_span(size, now),
        seen.store_span(size, now, based=True),
        seen.store_span(size, now, based=False),
        seen.request_span(now),
    ):
        assert 0 <= span.best <= span.likely <= span.sure <= spans.LONG_SECONDS


any_span = st.builds(Span, anything, anything, anything)


@given(any_span, any_span, anything)
def test_arithmetic_with_spans_never_leaves_what_a_span_is(a, b, seconds):
    for span in (spans.tidy(a), spans.then(a, b), spans.together([a, b]), spans.less(a, seconds), spans.longer(a, 3.0)):
        assert 0 <= span.best <= span.likely <= span.sure <= spans.LONG_SECONDS
    assert spans.together([]) == spans.NONE


@given(any_span, st.lists(anything, min_size=2, max_size=6))
def test_more_time_is_never_less_chance(span, times):
    times = sorted(t for t in times if not math.isnan(t))
    found = [spans.chance(span, t) for t in times]
    assert all(after >= before - 1e-12 for before, after in itertools.pairwise(found))
    assert all(0 <= c <= spans.SURE + 1e-12 for c in found)
    assert spans.chance(span, math.nan) == 0


def test_the_chance_is_that_of_a_normal_distribution_of_the_logarithm():
    span = Span(1, 3, 9)
    found = [spans.chance(span, t) for t in (0.99, 1, 3**0.5, 3, 3 * 3**0.5, 9, 100)]
    assert found == pytest.approx([0, 0.023, 0.159, 0.5, 0.841, 0.977, 0.977], abs=1e-3)


def test_what_lasts_longer_than_ever_seen_may_last_as_long_again():
    assert spans.less(Span(1, 2, 4), 1.5) == Span(0, 0.5, 2.5)
    hung = spans.less(Span(1, 2, 4), 30)
    assert (hung.likely, hung.sure) == (30, pytest.approx(30 * spans.OUTLASTS))
    assert spans.less(Span(1, 2, 4), 1e8).sure == spans.LONG_SECONDS


async def test_what_was_measured_is_found_again_after_a_restart(tmp_path):
    threads = Threads()
    one = Experience(tmp_path)
    one.flushed(logical=GIB, sent=GIB, seconds=3.0, emergency=True, based=False)
    await one.keep(threads)
    assert Experience(tmp_path).estimates == one.estimates != Estimates()
    threads.close()


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"schema":2}', b'{"schema":1,"longest_step":-1.0}', b'{"schema":1,"new_share":1e300}',
             b'{"schema":1,"step":{"guess":0.0,"factor":2.0}}', b'{"schema":1,"step":{"guess":1.0,"factor":2.0,"mean":1e9}}'],
)  # fmt: skip
def test_nonsense_on_the_memory_volume_costs_what_was_learned_and_nothing_else(tmp_path, text):
    (tmp_path / experience.FILE).write_bytes(text)
    assert Experience(tmp_path).estimates == Estimates()


async def test_a_full_memory_volume_does_not_stop_anything(tmp_path):
    threads = Threads()
    one = Experience(tmp_path / "is-not-there")
    await one.keep(threads)
    threads.close()


@pytest.mark.parametrize("emergency", [True, False])
def test_next_to_nothing_that_was_sent_says_what_the_store_does_at_least(emergency):
    """Of 100 MB that two workers hold alike, this one had 0.6 MB to send."""
    little = {"logical": 100 << 20, "sent": 600_000, "emergency": emergency, "based": False, "at": NOW}
    slow = Estimates().flushed(seconds=1.0, **little)
    assert slow == Estimates()
    assert slow.store_span(100 << 20, NOW, based=False).likely < 2
    quick = replace(Estimates(), hurried=speeds(1e5), beside=speeds(1e5)).flushed(seconds=1.0, **little)
    assert (quick.hurried if emergency else quick.beside).value > 1e5  # faster than was known
    long = Estimates().flushed(seconds=30.0, **little)  # no listing takes that long
    assert (long.hurried if emergency else long.beside).count == 1


def a_worker(tmp_path, *, size: int, estimates: Estimates) -> SimpleNamespace:
    """Of one rank, as far as outlook.py looks."""
    known = Experience(tmp_path)
    known.estimates = estimates
    rank = SimpleNamespace(plan=object(), passed_at=None, boundary=7)
    crew = _Crew([rank])
    config = SimpleNamespace(background_bytes_per_second=0, local_volume="pod")
    return SimpleNamespace(
        logical_bytes=size, takes_bytes=0, crew=crew, base_manifests={0: object()}, experience=known, node=None, settings=SimpleNamespace(config=config)
    )  # fmt: skip


class _Crew(list):
    def all(self, test) -> bool:
        return all(test(r) for r in self)


def test_what_the_operator_is_told_adds_up_to_what_a_plan_relies_on(tmp_path):
    at = time.time()
    known = Estimates()
    for _ in range(8):
        known = known.stepped(2.0, at).copied(GIB, 1.0, at).committed(0.1, at)
        known = known.flushed(logical=GIB, sent=GIB // 2, seconds=5.0, emergency=True, based=True, at=at)
    told = expected(a_worker(tmp_path, size=4 * GIB, estimates=known))
    assert told.measured
    assert (told.bytes, told.sent_bytes) == (4 * GIB, round(4 * GIB * known.sent_share(based=True)))
    assert (told.step_seconds, told.copy_seconds) == (2.0, 4.0)
    parts = told.step_seconds + told.copy_seconds + told.store_seconds + told.commit_seconds
    assert parts < told.sure_seconds < 2 * parts  # the planner's own confidence, not twice that doubt
    assert told.node_seconds is None


@pytest.mark.parametrize("missing", ["step", "copy", "hurried"])
def test_what_was_never_seen_makes_the_whole_an_estimate(tmp_path, missing):
    at = time.time()
    seen = Estimates().stepped(2.0, at).copied(GIB, 1.0, at)
    seen = seen.flushed(logical=GIB, sent=GIB, seconds=5.0, emergency=True, based=False, at=at)
    assert expected(a_worker(tmp_path, size=GIB, estimates=seen)).measured
    unseen = replace(seen, **{missing: getattr(Estimates(), missing)})
    assert not expected(a_worker(tmp_path, size=GIB, estimates=unseen)).measured


def test_before_the_size_is_known_nothing_is_told(tmp_path):
    assert expected(a_worker(tmp_path, size=0, estimates=Estimates())) is None


@given(st.floats(0, 1e6), st.floats(1, 100), st.floats(1, 100), st.floats(0.5, 0.97))
def test_within_is_the_opposite_of_chance(likely, down, up, confidence):
    span = Span(likely / down, likely, likely * up)
    seconds = spans.within(span, confidence)
    assert spans.chance(span, seconds * 1.000001 + 1e-9) >= confidence - 1e-3
    if up > 1.01 and likely > 1e-3:
        assert spans.chance(span, seconds * 0.99) <= confidence + 1e-3
