"""A request ends when its time is up, and its time may be shortened while it runs."""

import asyncio
import threading

import pytest

from holdfast_store import cut
from holdfast_store.bound import Bound


class Request:
    """One that never ends by itself, on a thread of its own."""

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.begun, self.ended = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self.closed = False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            cut.within(self.bound, self._request)
        except TimeoutError as e:
            self.error = e
        self.ended.set()

    async def _request(self) -> None:
        self.begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.closed = True

    def is_cut(self) -> bool:
        return self.ended.wait(60) and isinstance(self.error, TimeoutError) and self.closed


def test_a_request_ends_when_its_time_is_up() -> None:
    assert Request(Bound(0.05)).is_cut()


def test_a_request_that_runs_is_cut_from_another_thread_and_its_connection_is_closed_before_the_caller_goes_on() -> (
    None
):
    request = Request(Bound(10**6))
    assert request.begun.wait(60)
    assert not request.ended.is_set()
    request.bound.cut()
    assert request.is_cut()


def test_one_that_was_cut_before_it_began_ends_as_it_begins() -> None:
    bound = Bound(10**6)
    bound.cut()
    assert Request(bound).is_cut()


def test_the_time_only_gets_shorter() -> None:
    bound = Bound(100.0)
    bound.tighten(10**6)
    assert bound.seconds == pytest.approx(100.0, abs=1e-6)
    bound.tighten(0.05)
    assert Request(bound).is_cut()


def test_a_bound_that_moves_after_its_request_has_ended_changes_nothing() -> None:
    bound = Bound(10**6)

    async def at_once() -> str:
        return "done"

    assert cut.within(bound, at_once) == "done"
    bound.cut()
    assert cut.within(Bound(10**6), at_once) == "done"
