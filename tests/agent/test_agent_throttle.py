"""What the user lets saves beside training send: held to on average, never in an emergency, never so that a save could not become a checkpoint."""

import asyncio
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from lone import Lone
from test_agent_moved_deadlines import StoppedRank

from holdfast_agent import __main__ as cli
from holdfast_agent import pace
from holdfast_agent.allowance import BURST_SECONDS, Allowance, bytes_to_go, holds_back, take
from holdfast_agent.clock import Deadline, now
from holdfast_agent.errors import ConfigurationWrong, SaveGivenUp
from holdfast_agent.estimate import Estimates
from holdfast_agent.outlook import outlook_of
from holdfast_agent.progress import Progress
from holdfast_agent.stopping import Stop
from holdfast_agent.threads import Threads
from holdfast_agent.throttle import Throttle
from holdfast_api.messages import Cause
from tests.agent.test_agent_flush import CHUNK, Place

RATE = 1000.0
LOW = 10
"""Bytes per second at which a save of two small chunks fits into its hour, were the clock to go on."""

# ---- the bucket


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 100_000)), min_size=1, max_size=40), st.floats(1, 1e6))
def test_no_more_is_begun_than_the_rate_gives_and_a_second_and_one_request(
    asked: list[tuple[float, int]], rate: float
) -> None:
    held, now, begun, largest = Allowance(), 0.0, 0, 0
    for pause, size in asked:
        now += pause
        held, wait = take(held, size, rate=rate, now=now)
        if wait == 0:
            begun, largest = begun + size, max(largest, size)
        assert begun <= (rate * (now + BURST_SECONDS) + largest) * (1 + 1e-9)


@given(st.integers(1, 1 << 30), st.floats(1, 1e9))
def test_whoever_waits_as_long_as_is_said_may_begin(size: int, rate: float) -> None:
    held, wait = take(Allowance(), size, rate=rate, now=0.0)
    assert wait == 0, "a request that is larger than a second's worth is sent all the same"
    held, wait = take(held, size, rate=rate, now=0.0)
    assert wait == pytest.approx(size / rate)
    assert take(held, size, rate=rate, now=wait * (1 + 1e-6) + 1e-6)[1] == 0


def test_what_was_not_used_for_an_hour_is_a_second_s_worth() -> None:
    held, _ = take(Allowance(), 0, rate=RATE, now=3600.0)
    assert held.credit == RATE * BURST_SECONDS


def test_a_limit_at_which_the_save_would_be_given_up_does_not_apply() -> None:
    assert holds_back(700.0, rate=1.0, left=1000.0)
    assert not holds_back(900.0, rate=1.0, left=1000.0)
    assert holds_back(1e18, rate=1.0, left=float("inf"))


def test_what_is_still_to_go_is_judged_by_what_was_new_so_far() -> None:
    assert bytes_to_go(waiting=0, unhashed=1000, hashed=0, new=0) == 0, "nothing is known yet"
    assert bytes_to_go(waiting=50, unhashed=1000, hashed=500, new=100) == 250


# ---- who waits


def waiting(throttle: Throttle, stop: Stop, *, to_go: float = 1.0) -> threading.Event:
    begun = threading.Event()
    threading.Thread(target=lambda: (throttle.wait(10, stop, lambda: to_go), begun.set()), daemon=True).start()
    return begun


@pytest.mark.parametrize("end", ["hurry", "set"])
def test_a_request_that_waits_is_let_go_at_once_when_an_emergency_comes_or_the_save_ends(end: str) -> None:
    throttle, stop = Throttle(1, lambda: 0.0), Stop()  # the clock stands: nobody's turn ever comes
    throttle.wait(10, stop, lambda: 1.0)
    begun = waiting(throttle, stop)
    assert not begun.wait(0.3)
    stop.hurry() if end == "hurry" else stop.set("over")
    assert begun.wait(60)


def test_without_a_limit_or_with_one_that_would_cost_the_save_nobody_waits() -> None:
    free, tight, stop = Throttle(0, lambda: 0.0), Throttle(1, lambda: 0.0), Stop()
    for _ in range(3):
        free.wait(10, stop, lambda: 1.0)
    stop.at = time.monotonic() + 3600
    for _ in range(3):
        tight.wait(10, stop, lambda: 1e30)


# ---- in a flush


def limited(folder: Path) -> Place:
    """Its clock stands: what waits for its turn waits for ever."""
    place = Place(folder)
    place.threads = Threads(1)
    place.threads.throttle = Throttle(1, lambda: 0.0)
    return place


def chunks(place: Place) -> int:
    return sum("/chunks/" in key for key in place.bucket.objects)


def test_an_emergency_is_not_held_back(tmp_path: Path) -> None:
    written = asyncio.run(limited(tmp_path).write(emergency=True))
    assert written.bytes_sent == 7 * CHUNK + 100
    assert written.at_its_pace


async def test_a_save_beside_training_is_held_back_until_an_emergency_takes_it_over(tmp_path: Path) -> None:
    place = limited(tmp_path)
    saving = asyncio.ensure_future(place.write(emergency=False))
    while not chunks(place):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    assert chunks(place) == 1, "the first goes on credit"
    assert not saving.done()
    place.stop.hurry()
    written = await asyncio.wait_for(saving, 60)
    assert written.bytes_sent == 7 * CHUNK + 100
    assert place.threads.link.requests >= 8, "and goes as wide as an emergency does"
    assert not written.at_its_pace, "its time says nothing about the store"


async def test_a_save_that_is_held_back_ends_when_it_is_given_up(tmp_path: Path) -> None:
    place = limited(tmp_path)
    saving = asyncio.ensure_future(place.write(emergency=False))
    while not chunks(place):
        await asyncio.sleep(0.01)
    place.stop.set("save 4 is newer")
    with pytest.raises(SaveGivenUp, match="save 4 is newer"):
        await asyncio.wait_for(saving, 60)


@pytest.mark.parametrize("limit", [0, 1 << 40])
def test_what_the_limit_holds_back_teaches_nothing_about_how_many_requests_a_store_takes(
    tmp_path: Path, limit: int
) -> None:
    """An emergency would begin with what the limit left room for."""
    place, told = Place(tmp_path), []
    place.threads = Threads(limit)
    went = place.threads.link.went

    def heard(size: int, seconds: float, *, waiting: int, most: int) -> int:
        told.append(waiting)
        return went(size, seconds, waiting=waiting, most=most)

    place.threads.link.went = heard  # type: ignore[method-assign]
    place.bucket.before_call = lambda *_: time.sleep(0.02)  # so that hashing is ahead
    asyncio.run(place.write(emergency=False))
    assert len(told) == 8
    assert any(told) is not bool(limit)


# ---- in a save


async def test_an_emergency_that_counts_on_a_save_beside_training_lets_it_go_at_full_speed(tmp_path: Path) -> None:
    one = Lone(tmp_path)
    one.shared.threads.throttle = Throttle(LOW, lambda: 0.0)
    one.capture(0, 10)
    saving = asyncio.ensure_future(one.saves.make(10, Cause.PERIODIC, deadline=Deadline.after(3600)))
    await one.until(lambda: any("/chunks/" in key for key in one.bucket.objects))
    await asyncio.sleep(0.2)
    assert not saving.done()
    one.saves.hurry()
    info = await asyncio.wait_for(saving, 60)
    assert (info.save, info.boundary) == (1, 10)
    assert [o.full_speed for o in one.orders] == [False, True]
    await one.close()


async def test_a_round_that_evacuates_holds_nothing_back(tmp_path: Path) -> None:
    one = Lone(tmp_path)
    one.shared.threads.throttle = Throttle(LOW, lambda: 0.0)
    one.shared.experience.estimates = Estimates().flushed(
        logical=1 << 30, sent=1 << 30, seconds=1.0, emergency=True, based=False, at=0.0
    )
    StoppedRank(one, 10)
    one.capture(0, 10)
    one.offer(10)
    await one.until(lambda: any("/chunks/" in key for key in one.bucket.objects))
    running = one.rounds.request(Cause.SPOT, evacuate=True, deadline=now() + timedelta(seconds=60), worker=0)
    await asyncio.wait_for(running.ended.wait(), 90)
    assert one.shared.last_boundary == 10
    assert any(o.save == 1 and o.full_speed for o in one.orders), "the one that was under way was let go"
    await one.close()


async def test_a_save_that_a_rank_waits_for_rests_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any limit: the pace of a save beside training is no use where nothing trains."""
    monkeypatch.setattr(pace, "BACKGROUND_SHARE", 1e-12)  # a piece, then a rest of a year
    one = Lone(tmp_path)
    one.capture(0, 10)
    one.capture(1, 11)
    one.rank.passed_at = -1e6
    saving = asyncio.ensure_future(one.saves.make(10, Cause.PERIODIC, deadline=Deadline.after(3600)))
    assert (await asyncio.wait_for(saving, 60)).boundary == 10
    assert "backgroundBytesPerSecond" not in caplog.text
    await one.close()


async def test_a_save_that_a_rank_waits_for_is_not_held_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = Lone(tmp_path)
    one.shared.threads.throttle = Throttle(LOW, lambda: 0.0)
    one.capture(0, 10)
    one.capture(1, 11)
    one.rank.passed_at = -1e6
    saving = asyncio.ensure_future(one.saves.make(10, Cause.PERIODIC, deadline=Deadline.after(3600)))
    assert (await asyncio.wait_for(saving, 60)).boundary == 10
    assert "backgroundBytesPerSecond" in caplog.text
    await one.close()


async def test_the_last_state_is_not_held_back(tmp_path: Path) -> None:
    one = Lone(tmp_path)
    one.shared.threads.throttle = Throttle(LOW, lambda: 0.0)
    one.shared.experience.estimates = Estimates().flushed(
        logical=1 << 30, sent=1 << 30, seconds=1.0, emergency=True, based=False, at=0.0
    )
    one.capture(0, 10, "final")
    one.offer(10)
    await one.until(lambda: one.shared.last_boundary == 10)
    assert all(o.full_speed for o in one.orders)
    await one.close()


# ---- what is expected


def test_a_save_that_is_held_back_does_not_make_the_store_look_slow() -> None:
    """It would refute what is known of the store, and an emergency would not be begun that fits."""
    gib, now = 1 << 30, 1e9
    seen = Estimates().flushed(logical=gib, sent=gib, seconds=2.0, emergency=True, based=False, at=now)
    held = seen.flushed(logical=gib, sent=gib, seconds=1000.0, emergency=False, based=True, at=now, at_its_pace=False)
    assert held.beside == seen.beside
    assert held.store_span(gib, now, based=False) == seen.store_span(gib, now, based=False)
    limited = held.beside_span(gib, now, based=False, limit=gib // 1000)
    assert limited.sure >= 1000 > held.beside_span(gib, now, based=False).sure


async def test_a_flush_under_way_that_is_held_back_is_no_measurement(tmp_path: Path) -> None:
    one, clock = Lone(tmp_path), [0.0]

    def flush_of_a_byte_a_second(*, held_back: bool) -> Progress:
        clock[0] = 0.0
        progress = Progress(full_speed=False, held_back=held_back, clock=lambda: clock[0])
        for _ in range(20):
            progress.begins(1)
            clock[0] += 1.0
            progress.ends(1, stored=True)
        return progress

    known = outlook_of(one.shared)
    assert known is not None
    held_back = outlook_of(one.shared, flush_of_a_byte_a_second(held_back=True))
    slow = outlook_of(one.shared, flush_of_a_byte_a_second(held_back=False))
    assert held_back is not None
    assert slow is not None
    assert held_back.store.likely == pytest.approx(known.store.likely, rel=0.01)
    assert slow.store.likely > 10 * known.store.likely
    await one.close()


# ---- what is set


@pytest.mark.parametrize(
    ("option", "environ", "limit"),
    [
        (None, {}, 0),
        (5_000_000, {}, 5_000_000),
        (None, {cli.ENV_BACKGROUND: "7"}, 7),
        (5, {cli.ENV_BACKGROUND: "7"}, 5),
    ],
)
def test_the_limit_of_a_laptop_is_the_option_or_the_variable(
    option: int | None, environ: dict[str, str], limit: int
) -> None:
    assert cli._background(option, environ) == limit


@pytest.mark.parametrize(
    ("option", "environ", "named"),
    [
        (0, {}, "--background-bytes-per-second is '0'"),
        (-3, {}, "--background-bytes-per-second is '-3'"),
        (1 << 50, {}, "--background-bytes-per-second"),
        (None, {cli.ENV_BACKGROUND: "5M"}, "HOLDFAST_BACKGROUND_BYTES_PER_SECOND is '5M'"),
        (None, {cli.ENV_BACKGROUND: "٣"}, "HOLDFAST_BACKGROUND_BYTES_PER_SECOND is '٣'"),
    ],
)
def test_nonsense_is_refused_by_name(option: int | None, environ: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationWrong, match=named.replace("(", "\\(")):
        cli._background(option, environ)
