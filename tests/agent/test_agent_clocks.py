"""Deadlines on a machine whose clock is wrong: by the operator's clock, however far the two are apart, and unharmed by messages that are held up (F1)."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent import clock
from holdfast_agent.clock import Deadline
from holdfast_agent.gatekeeper import Gatekeeper
from holdfast_agent.skew import BELIEVED_SECONDS, FRESH_SECONDS, Skew
from holdfast_api import signing
from holdfast_api.errors import BadSignature
from holdfast_api.signing import Role


@dataclass
class Machine:
    """The operator's time, and how far ahead this machine's wall clock is."""

    time: float = 1_772_366_400.0
    ahead: float = 0.0
    booted: float = 1_772_000_000.0

    @contextlib.contextmanager
    def here(self) -> Iterator["Machine"]:
        with clock.replaced(lambda: self.time + self.ahead, lambda: self.time - self.booted):
            yield self

    def hears(self, delay: float = 0.0) -> None:
        """Something that the operator signed `delay` ago."""
        clock.heard_operator(int(self.time - delay))

    @property
    def off(self) -> float:
        """Seconds by which `clock.now` is wrong."""
        return clock.now().timestamp() - self.time


def in_seconds(machine: Machine, seconds: float) -> datetime:
    return datetime.fromtimestamp(machine.time, UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize("ahead", [-3600, -40, -5, 5, 40, 3600])
def test_a_deadline_leaves_as_much_time_as_the_operator_means(ahead: float) -> None:
    with Machine(ahead=ahead).here() as m:
        m.hears()
        m.hears()
        assert abs(Deadline(in_seconds(m, 120)).remaining - 120) <= 1
        skew = clock.skew_seconds()
        assert skew is not None
        assert abs(skew - ahead) <= 1


def test_a_machine_that_is_behind_is_corrected_at_the_first_message() -> None:
    """It would take itself to have more time than it has."""
    with Machine(ahead=-30).here() as m:
        assert m.off == -30
        m.hears(delay=0.2)
        assert abs(m.off) <= 1.2


def test_a_single_message_that_was_held_up_does_not_give_a_machine_more_time() -> None:
    with Machine().here() as m:
        m.hears(delay=20)
        assert m.off == 0


def test_of_several_messages_the_fastest_counts() -> None:
    with Machine().here() as m:
        for delay in (20, 9, 0.01, 45):
            m.hears(delay)
        assert m.off == 0


def test_small_differences_are_left_alone() -> None:
    with Machine(ahead=BELIEVED_SECONDS - 1).here() as m:
        m.hears()
        m.hears()
        assert m.off == m.ahead


def test_a_clock_that_is_set_right_meanwhile_is_right_at_once() -> None:
    with Machine(ahead=-600).here() as m:
        m.hears()
        deadline = Deadline(in_seconds(m, 60))
        m.ahead, m.time = 0.0, m.time + 10
        assert abs(m.off) <= 1
        assert abs(deadline.remaining - 50) <= 1


def test_what_was_heard_long_ago_counts_no_more() -> None:
    with Machine(ahead=-30).here() as m:
        m.hears()
        m.time += FRESH_SECONDS + 1
        assert (m.off, clock.skew_seconds()) == (-30, None)


def test_an_agent_that_has_heard_nothing_goes_by_its_own_clock() -> None:
    with Machine(ahead=77).here() as m:
        assert (m.off, clock.skew_seconds()) == (77, None)
        assert (clock.machines_now() - clock.now()).total_seconds() == 0


@given(
    ahead=st.floats(-1e6, 1e6),
    delays=st.lists(st.floats(0, 100), min_size=2, max_size=8),
)
def test_a_machine_never_takes_itself_to_have_much_more_time_than_it_has(ahead: float, delays: list[float]) -> None:
    """At most what the fastest message took, and what is left alone."""
    with Machine(ahead=ahead).here() as m:
        for delay in delays:
            m.hears(delay)
        left = Deadline(in_seconds(m, 1000)).remaining
        assert left <= 1000 + min(delays) + 1 + BELIEVED_SECONDS


def test_skew_is_pure() -> None:
    skew = Skew()
    assert (skew.of(5, 5), skew.believed(5, 5)) == (None, 0.0)


# ---- with real signatures


def signed(key: bytes, now: float) -> dict[str, str]:
    envelope = signing.Envelope("POST", "/v1/notice", "job", "pod", 1)
    header = signing.sign(key, envelope, b"{}", now=now, nonce=b"n" * 16)
    return {signing.HEADER: header, signing.HEADER_ATTEMPT: "1"}


def test_a_good_signature_says_when_it_was_made() -> None:
    key = b"k" * 32
    keeper = Gatekeeper({Role.OPERATOR: key}, "job", "pod")
    found = keeper.check(
        role=Role.OPERATOR, method="POST", path="/v1/notice", headers=signed(key, 1000.9), body=b"{}", now=1003
    )
    assert (found.attempt, found.at) == (1, 1000)


def test_a_forged_signature_moves_no_clock() -> None:
    keeper = Gatekeeper({Role.OPERATOR: b"k" * 32}, "job", "pod")
    with pytest.raises(BadSignature):
        keeper.check(
            role=Role.OPERATOR, method="POST", path="/v1/notice", headers=signed(b"x" * 32, 1000), body=b"{}", now=1000
        )
