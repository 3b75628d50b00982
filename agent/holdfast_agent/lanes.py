"""A lane: pieces of blocking work in the order in which they came, so many at once, on threads of a shared pool.

A flush has three (flush.py): hashing, the node's file, the store. Each takes its pace from what it works against, and a slow one holds up no other: what
waits in a lane is a place in the arena, not a copy.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

Work = Callable[[], None]


class Lane:
    """`add`, `resize` and `end` from any thread; `over` is awaited on the loop in which the lane was made."""

    def __init__(self, pool: Executor, width: int) -> None:
        self._pool = pool
        self._width = max(1, width)
        self._lock = threading.Lock()
        self._waiting: deque[Work] = deque()
        self._in_hand: dict[object, Work] = {}
        """What runs, by whoever runs it."""
        self._left = 0
        """Threads whose piece was begun again elsewhere: what they do counts no more."""
        self._running = 0
        """Threads that were asked for and have not gone."""
        self._asked = 0
        """Of them, those that have not begun: a piece is taken by a thread, not handed to a queue in front of one."""
        self._turn = 0
        """Threads that were asked for in an earlier turn do nothing when they begin."""
        self._ended = False
        self._failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self._loop.create_future()
        """Done when nothing that counts runs and nothing will; holds the first failure, after which what waited was dropped."""
        self.quiet: asyncio.Future[None] = self._loop.create_future()
        """Done when nothing of the lane runs at all."""

    def add(self, work: Work) -> None:
        """Dropped if the lane has failed. Not after `end`."""
        with self._lock:
            assert not self._ended
            if self._failure is None:
                self._waiting.append(work)
            self._start()

    def resize(self, width: int) -> None:
        """Takes effect as pieces end."""
        with self._lock:
            self._width = max(1, width)
            self._start()

    def move(self, pool: Executor, width: int, *, again: bool = False) -> None:
        """What waits is done on another pool, also what waits for a thread of this one; what runs is finished where it is. With `again` what runs is begun
        once more on the other pool, first of all, and the lane does not wait for where it runs now: for pieces that may be done twice at once."""
        with self._lock:
            self._pool, self._width = pool, max(1, width)
            self._call_off()
            if again:
                self._waiting.extendleft(reversed(self._in_hand.values()))
                self._left += len(self._in_hand)
                self._running -= len(self._in_hand)
                self._in_hand.clear()
            self._start()

    def end(self) -> None:
        """Nothing more will be added. Twice is fine."""
        with self._lock:
            self._ended = True
            self._finish()

    @property
    def backlog(self) -> int:
        """Pieces that wait for a thread."""
        with self._lock:
            return len(self._waiting)

    # ---- with the lock held

    def _start(self) -> None:
        while self._running < self._width and self._asked < len(self._waiting):
            self._running += 1
            self._asked += 1
            try:
                self._pool.submit(self._work, self._turn)
            except RuntimeError as e:  # the pool is closed: the agent ends
                self._running -= 1
                self._asked -= 1
                self._fail(e)
                self._finish()

    def _call_off(self) -> None:
        self._turn += 1
        self._running -= self._asked
        self._asked = 0

    def _fail(self, failure: BaseException) -> None:
        self._failure = self._failure or failure
        self._waiting.clear()
        self._call_off()

    def _finish(self) -> None:
        if (self._ended or self._failure is not None) and not self._running and not self._waiting:
            self._loop.call_soon_threadsafe(self._tell)

    # ---- on the pool's threads, and on the loop

    def _work(self, turn: int) -> None:
        me = object()
        with self._lock:
            if turn != self._turn:
                return
            self._asked -= 1
            work = self._next(turn, me)
        while work is not None:
            failure = None
            try:
                work()
            except BaseException as e:
                failure = e
            with self._lock:
                if self._in_hand.pop(me, None) is None:
                    self._left -= 1
                    self._finish()
                    return
                if failure is not None:
                    self._fail(failure)
                work = self._next(turn, me)

    def _next(self, turn: int, me: object) -> Work | None:
        """With the lock held. None: this thread is no longer wanted."""
        if self._waiting and self._running <= self._width and turn == self._turn:
            self._in_hand[me] = self._waiting.popleft()
            return self._in_hand[me]
        self._running -= 1
        self._start()
        self._finish()
        return None

    def _tell(self) -> None:
        if not self._left and not self.quiet.done():
            self.quiet.set_result(None)
        if self.over.done():
            return
        if self._failure is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(self._failure)
            self.over.exception()  # read or not, it is not reported a second time
