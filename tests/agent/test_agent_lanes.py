"""Lanes: so many at once, in order, and over exactly when nothing runs."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast_agent.lanes import Lane

POOL = ThreadPoolExecutor(8)


class Held:
    """Pieces of work that end when they are let go."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running, self.most, self.order = 0, 0, []
        self.go = threading.Event()
        self.began = threading.Semaphore(0)

    def piece(self, number: int) -> None:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.order.append(number)
        self.began.release()
        assert self.go.wait(60)
        with self.lock:
            self.running -= 1


def lane_of(held: Held, width: int, pieces: int) -> Lane:
    lane = Lane(POOL, width)
    for number in range(pieces):
        lane.add(lambda n=number: held.piece(n))
    lane.end()
    return lane


def test_no_more_at_once_than_the_width_and_all_in_order() -> None:
    async def run() -> Held:
        held = Held()
        lane = lane_of(held, 3, 20)
        for _ in range(3):
            await asyncio.to_thread(held.began.acquire)
        assert lane.backlog == 17
        held.go.set()
        await lane.over
        return held

    held = asyncio.run(run())
    assert held.most == 3
    assert sorted(held.order) == list(range(20))
    assert sorted(held.order[:3]) == [0, 1, 2]


def test_a_lane_grows_and_shrinks_while_it_runs() -> None:
    async def run() -> None:
        held = Held()
        lane = lane_of(held, 1, 30)
        await asyncio.to_thread(held.began.acquire)
        lane.resize(5)
        for _ in range(4):
            await asyncio.to_thread(held.began.acquire)
        assert held.most == 5
        lane.resize(1)
        held.most = 0
        held.go.set()
        await lane.over
        assert held.running == 0

    asyncio.run(run())


def test_a_failure_drops_what_waits_and_is_told_when_nothing_runs_any_more() -> None:
    async def run() -> None:
        held = Held()
        lane = Lane(POOL, 2)
        lane.add(lambda: held.piece(0))
        await asyncio.to_thread(held.began.acquire)

        def broken() -> None:
            raise ValueError("broken")

        lane.add(broken)
        lane.add(lambda: held.piece(1))
        lane.add(lambda: held.piece(2))
        await asyncio.sleep(0.05)
        assert not lane.over.done()  # a piece still runs, although the lane has failed and was not ended
        held.go.set()
        with pytest.raises(ValueError):
            await lane.over
        lane.add(lambda: held.piece(3))
        lane.end()
        await asyncio.sleep(0.05)
        assert held.running == 0
        assert 3 not in held.order

    asyncio.run(run())


def test_an_empty_lane_is_over_when_it_is_ended() -> None:
    async def run() -> None:
        lane = Lane(POOL, 2)
        await asyncio.sleep(0.01)
        assert not lane.over.done()
        lane.end()
        lane.end()
        await lane.over

    asyncio.run(run())


def test_a_pool_that_is_closed_fails_the_lane_and_hangs_nothing() -> None:
    async def run() -> None:
        pool = ThreadPoolExecutor(1)
        pool.shutdown()
        lane = Lane(pool, 1)
        lane.add(lambda: None)
        with pytest.raises(RuntimeError):
            await lane.over

    asyncio.run(run())


def test_what_waits_moves_to_another_pool_and_what_runs_is_finished() -> None:
    async def run() -> None:
        here, there = (
            ThreadPoolExecutor(1, thread_name_prefix="here"),
            ThreadPoolExecutor(2, thread_name_prefix="there"),
        )
        held, names = Held(), []
        lane = Lane(here, 1)
        lane.add(lambda: (held.piece(0), names.append(threading.current_thread().name))[1])
        for number in range(1, 6):
            lane.add(lambda n=number: names.append(threading.current_thread().name))
        lane.end()
        await asyncio.to_thread(held.began.acquire)
        lane.move(there, 2)
        held.go.set()
        await lane.over
        assert sum(n.startswith("here") for n in names) == 1
        assert sum(n.startswith("there") for n in names) == 5

    asyncio.run(run())


def test_what_waits_for_a_thread_that_never_comes_is_moved_too() -> None:
    async def run() -> None:
        full, held, done = ThreadPoolExecutor(1), Held(), []
        full.submit(held.piece, 0)
        lane = Lane(full, 1)
        for number in range(5):
            lane.add(lambda n=number: done.append(n))
        lane.end()
        lane.move(POOL, 2)
        await asyncio.wait_for(lane.over, 30)
        assert sorted(done) == list(range(5))
        held.go.set()
        full.shutdown()
        assert len(done) == 5, "a thread that comes too late does nothing"

    asyncio.run(run())


def test_a_lane_that_fails_is_over_although_a_thread_that_it_asked_for_never_comes() -> None:
    async def run() -> None:
        full, held = ThreadPoolExecutor(2), Held()
        full.submit(held.piece, 0)

        def broken() -> None:
            raise ValueError("broken")

        lane = Lane(full, 2)
        lane.add(broken)
        lane.add(lambda: held.piece(1))
        with pytest.raises(ValueError):
            await asyncio.wait_for(lane.over, 30)
        held.go.set()
        full.shutdown()

    asyncio.run(run())


def test_what_runs_is_begun_again_elsewhere_and_is_not_waited_for_where_it_ran() -> None:
    async def run() -> None:
        here, held, done = ThreadPoolExecutor(1), Held(), []
        tries = iter(range(2))

        def twice() -> None:
            if next(tries) == 0:
                held.piece(0)  # a thread that gets no processor
                raise ValueError("what it does counts no more")
            done.append(0)

        lane = Lane(here, 1)
        for work in (twice, lambda: done.append(1), lambda: done.append(2)):
            lane.add(work)
        lane.end()
        await asyncio.to_thread(held.began.acquire)
        lane.move(POOL, 1, again=True)
        await asyncio.wait_for(lane.over, 30)
        assert done == [0, 1, 2], "it comes first"
        assert held.running == 1
        await asyncio.sleep(0.05)
        assert not lane.quiet.done()
        held.go.set()
        await asyncio.wait_for(lane.quiet, 30)
        assert held.running == 0
        assert done == [0, 1, 2]

    asyncio.run(run())


def test_a_lane_is_quiet_when_it_is_over_if_nothing_was_begun_again() -> None:
    async def run() -> None:
        held = Held()
        lane = lane_of(held, 2, 5)
        held.go.set()
        await asyncio.wait_for(asyncio.gather(lane.over, lane.quiet), 30)

    asyncio.run(run())
