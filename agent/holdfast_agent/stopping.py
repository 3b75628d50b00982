"""What the threads of one piece of work are told while it runs: that it is no longer wanted, when it no longer fits, that it has become urgent."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from holdfast_store.errors import Unavailable


class Stop:
    """Tells threads that their work is no longer wanted, or no longer fits; or that it has become urgent. From any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._set = self._hurried = False
        self._listeners: dict[int, Callable[[], None]] = {}
        self._listened = 0
        self.reason = ""
        self.at = float("inf")
        """Monotonic seconds after which nothing is tried again."""
        self.failing: Unavailable | None = None
        """Why a call that is repeated has failed so far; None once one went through."""

    def set(self, reason: str) -> None:
        with self._changed:
            if self._set:
                return
            self.reason, self._set = reason, True
            self._changed.notify_all()
        self._tell()

    def move(self, at: float) -> None:
        """The end is another one now (F1, F3), in monotonic seconds."""
        with self._changed:
            self.at = at
            self._changed.notify_all()
        self._tell()

    def hurry(self) -> None:
        """What was begun beside training is an emergency's now: nothing holds it back any more. Twice is fine."""
        with self._changed:
            if self._hurried:
                return
            self._hurried = True
            self._changed.notify_all()
        self._tell()

    @property
    def wanted(self) -> bool:
        return self._set or time.monotonic() >= self.at

    @property
    def hurried(self) -> bool:
        return self._hurried

    @contextlib.contextmanager
    def heard_by(self, listener: Callable[[], None]) -> Iterator[None]:
        """`listener` is called as soon as `set`, `hurry` or `move` was: at once if one of the first two was before. On the thread that says it, perhaps twice;
        it must not block."""
        with self._changed:
            self._listened += 1
            mine = self._listened
            self._listeners[mine] = listener
            late = self._set or self._hurried
        if late:
            listener()
        try:
            yield
        finally:
            with self._changed:
                del self._listeners[mine]

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.at - time.monotonic())

    def pause(self, seconds: float, *, while_calm: bool = False) -> None:
        """At most so long, and never past the end. `while_calm`: nor once it is urgent."""
        with self._changed:
            over = partial(self._is_over, while_calm)
            self._changed.wait_for(over, min(seconds, self.left))

    def _is_over(self, while_calm: bool) -> bool:
        return self._set or (while_calm and self._hurried)

    def _tell(self) -> None:
        with self._changed:
            listeners = list(self._listeners.values())
        for listener in listeners:
            listener()
