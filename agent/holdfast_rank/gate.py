"""The gate of one rank (E2, E4, I1, I2): where a round of evacuation or a manual save stops the main thread.

A pure core (`GateState` and the functions over it) and a thin lock around it. Three threads meet here: the reader of the agent's messages, which
never waits; the main thread, which waits at a boundary and at the entrance to the update window; and the helper that copies between two windows.
Waiting inside `close` for a window to end deadlocks as soon as a window holds a collective, so `close` answers at once with the boundary that
this rank can still be caught at.

    boundary b --- arrive(b) --- rest(b) --- forward, backward, evaluation, data wait --- enter() --- updates --- arrive(b+1)
                                 `--------- the helper may copy b here --------------´
"""

import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple


class LoopClass(Enum):
    """What may be copied when (I4)."""

    MID_STEP = "mid-step"
    BOUNDARY_ONLY = "boundary-only"
    REFUSED = "refused"


class Verdict(Enum):
    """What the main thread does at a boundary, or at the entrance to a window (never CAPTURE there)."""

    WAIT = "wait"
    PASS = "pass"  # noqa: S105  a verdict, no secret
    CAPTURE = "capture"


class GateState(NamedTuple):
    """Everything the gate knows. `round` is the greatest round obeyed so far (E1); 0 is none. A tuple: three are made in every iteration."""

    passed: int = 0
    """Newest boundary that the main thread has reached."""
    at_boundary: bool = False
    """The main thread stands at `passed` and may still capture it for a round."""
    in_window: bool = False
    """Inside an update window."""
    base: int | None = None
    """The boundary whose state stands still and can be copied by the helper; None in a window, and where nothing of that kind is known."""
    done: bool = False
    closed: bool = False
    round: int = 0
    target: int | None = None
    promised: int | None = None
    """The vote of this round, where it was `base`: the main thread must not enter a window before it is known whether `base` is wanted."""
    copying: bool = False
    """The helper reads the live state; nobody may change it, whatever the round does (E4)."""
    captured: bool = False
    """The target has been captured for `round`; only OpenGate or a new round lets the main thread go."""
    lease_ends: float = 0.0


def is_live(state: GateState, loop: LoopClass) -> bool:
    """The last boundary can be copied while the main thread goes on to the next window."""
    return loop is LoopClass.MID_STEP and state.base is not None and not state.in_window and not state.at_boundary


def vote(state: GateState, loop: LoopClass) -> int:
    """e of E2: the lowest boundary that this rank can still be caught at; every later one can be reached as well."""
    return state.passed if state.at_boundary or state.done or is_live(state, loop) else state.passed + 1


def close(state: GateState, round: int, lease_ends: float, loop: LoopClass) -> GateState | None:
    """The state after CloseGate, or None when the round is not one to obey (E1: an older one, or this one after it was opened)."""
    if round < state.round or (round == state.round and not state.closed):
        return None
    if round == state.round:
        return state._replace(lease_ends=lease_ends)
    promised = state.base if is_live(state, loop) and not state.done else None
    return state._replace(
        closed=True, round=round, target=None, promised=promised, captured=False, lease_ends=lease_ends
    )


def release(state: GateState, round: int, target: int) -> GateState:
    """After ReleaseGate. A target below what has been passed cannot be met; the main thread then runs on and the round fails by its deadline."""
    return state._replace(target=target) if state.closed and round == state.round else state


def open_(state: GateState, round: int) -> GateState:
    """After OpenGate of this round or a later one. A copy that runs is not disturbed."""
    if round < state.round:
        return state
    return state._replace(closed=False, target=None, promised=None, captured=False, round=round)


def wants_copy(state: GateState, now: float) -> bool:
    """The round wants the boundary that was promised to it, and nothing has changed since."""
    return (
        state.closed
        and state.promised is not None
        and state.target == state.promised == state.base
        and not (state.captured or state.copying or state.done)
        and now < state.lease_ends
    )


def judge(state: GateState, now: float) -> Verdict:
    """For the main thread at the boundary `state.passed`. A rank that has captured for the round stays until it is told (E4: while a copy is
    being used the gate does not open by itself); one that waits, or comes too late, is free when the lease has run out."""
    if state.copying:
        return Verdict.WAIT
    if not state.closed:
        return Verdict.PASS
    if state.captured:
        # Two coordinators may have used one number; the one that was obeyed last may want a later boundary.
        if state.target is None or state.target < state.passed or state.target == state.promised:
            return Verdict.WAIT
        if state.target == state.passed:
            return Verdict.WAIT if state.promised is None else Verdict.CAPTURE
        return Verdict.PASS
    if now >= state.lease_ends:
        return Verdict.PASS
    if state.target is None or state.target == state.promised:
        return Verdict.WAIT
    return Verdict.CAPTURE if state.target == state.passed else Verdict.PASS


def is_awaited(state: GateState, now: float) -> bool:
    """A round has said where it stops, and this rank has not captured that for it."""
    if not state.closed or state.captured or state.target is None or now >= state.lease_ends:
        return False
    return state.target >= state.passed or state.done


def judge_entrance(state: GateState, now: float) -> Verdict:
    """For the main thread before the first update of an iteration. Who voted for a later boundary may run on to it: only a promise holds."""
    if state.copying:
        return Verdict.WAIT
    if not state.closed or state.promised is None:
        return Verdict.PASS
    if state.target is not None and state.target > state.promised:
        return Verdict.PASS
    return Verdict.WAIT if state.captured or now < state.lease_ends else Verdict.PASS


class Gate:
    """The lock around the core. `close`, `release`, `open` and `lose` are the reader's; `await_copy`, `begin_copy` and `end_copy` the helper's; the
    rest is the main thread's, but that `enter` may come from a thread of autograd (an optimizer in backward)."""

    def __init__(self, loop: LoopClass = LoopClass.BOUNDARY_ONLY, clock: Callable[[], float] = time.monotonic) -> None:
        self.loop = loop
        self._clock = clock
        self._changed = threading.Condition()
        self._state = GateState()
        self._ended = False
        self.standing = False
        """The main thread waits here."""

    def start(self, boundary: int) -> None:
        """Training goes on after `boundary`."""
        with self._changed:
            self._state = self._state._replace(passed=boundary)

    # The reader

    def close(self, round: int, lease_seconds: float, *, live: bool = True) -> tuple[int, bool] | None:
        """Shuts and answers (e, done), or None for a round not to be obeyed. Never waits (E2). `live` False: nothing may be copied between
        windows just now (I5)."""
        with self._changed:
            loop = self.loop if live else LoopClass.BOUNDARY_ONLY
            after = close(self._state, round, self._clock() + lease_seconds, loop)
            if after is None:
                return None
            again = after.round == self._state.round
            self._set(after)
            if again and after.promised is not None:
                return after.promised, after.done
            return vote(after, loop), after.done

    def release(self, round: int, target: int) -> None:
        with self._changed:
            self._set(release(self._state, round, target))

    def open(self, round: int) -> None:
        with self._changed:
            self._set(open_(self._state, round))

    def lose(self) -> None:
        """The agent is gone: nobody would ever open the gate, nor use a copy."""
        with self._changed:
            self._ended = True
            self._set(open_(self._state, self._state.round))

    # The helper

    def await_copy(self) -> tuple[int, int] | None:
        """Waits until a round wants what was promised; returns (round, boundary). None: no round will any more."""
        with self._changed:
            while not self._ended:
                if wants_copy(self._state, self._clock()):
                    assert self._state.base is not None
                    return self._state.round, self._state.base
                self._changed.wait()
            return None

    def begin_copy(self, round: int, boundary: int) -> bool:
        """True: still wanted, and from now until `end_copy` nobody enters a window or passes a boundary."""
        with self._changed:
            if not wants_copy(self._state, self._clock()) or (self._state.round, self._state.base) != (round, boundary):
                return False
            self._set(self._state._replace(copying=True))
            return True

    def wants(self, round: int) -> bool:
        """The helper, before it has a slot: somebody still waits for the copy."""
        with self._changed:
            return self._state.round == round and wants_copy(self._state, self._clock())

    def end_copy(self, round: int, *, clean: bool) -> bool:
        """True: the copy is clean and the round it was made for is still the one that counts. After one that is not clean the boundary is not
        offered again, and the main thread waits at the next one for a new target."""
        with self._changed:
            state = self._state._replace(copying=False)
            counts = clean and state.closed and state.round == round
            if counts:
                state = state._replace(captured=True)
            elif not clean:
                state = state._replace(base=None, promised=None, target=None)
            self._set(state)
            return counts

    # The main thread

    def arrive(self, boundary: int) -> int | None:
        """The main thread reaches `boundary`. Waits while a round has closed the gate and not yet said where it stops, and while the boundary
        before is being copied (I2). Returns the round to capture for, or None to go on."""
        with self._changed:
            state = self._state
            if not state.closed and not state.copying:  # the path of every step
                self._state = state._replace(passed=boundary, in_window=False, base=None)
                return None
            self._state = state._replace(passed=boundary, at_boundary=True, in_window=False)
            return self._settle()

    def hold(self, round: int) -> int | None:
        """The boundary has been captured for `round`: waits until the gate opens (None) or a newer round wants the same boundary (its number)."""
        with self._changed:
            if self._state.closed and self._state.round == round:
                self._state = self._state._replace(captured=True, promised=None, base=None)
            return self._settle()

    def rest(self, boundary: int) -> None:
        """Everything small that belongs to `boundary` has been captured; what is big stands still until the next `enter`."""
        with self._changed:
            if self._state.passed == boundary and not self._state.done:
                self._state = self._state._replace(base=boundary)

    def unrest(self) -> None:
        """The state at the last boundary cannot be copied live after all."""
        with self._changed:
            self._state = self._state._replace(base=None)

    def enter(self) -> bool:
        """Before an update: waits while the round may want the state as it is. Returns whether it waited. Only the first update of an iteration
        is stopped: between two of them the state belongs to no boundary."""
        with self._changed:
            if self._state.in_window:
                return False
            waited = False
            while True:
                now = self._clock()
                if judge_entrance(self._state, now) is Verdict.PASS:
                    lapsed = self._state.closed and self._state.promised is not None and now >= self._state.lease_ends
                    self._state = self._state._replace(
                        in_window=True, base=None, promised=None, closed=self._state.closed and not lapsed
                    )
                    return waited
                waited = True
                self._stand(now)

    @property
    def awaited(self) -> bool:
        """A round waits for this rank to come to its boundary, or to stand there with it captured. Any thread."""
        return is_awaited(self._state, self._clock())

    @property
    def round(self) -> int:
        """The newest one."""
        return self._state.round

    @property
    def in_window(self) -> bool:
        return self._state.in_window

    def finish(self) -> int | None:
        """No further boundary will be passed. Waits for a copy that runs. Returns the round whose vote has to be taken back (E3: "done at n"),
        if there is one."""
        with self._changed:
            self._changed.wait_for(lambda: not self._state.copying)
            self._ended = True
            self._set(self._state._replace(done=True, base=None, promised=None))
            return self._state.round if self._state.closed else None

    def _settle(self) -> int | None:
        while True:
            now = self._clock()
            verdict = judge(self._state, now)
            if verdict is Verdict.CAPTURE:
                return self._state.round
            if verdict is Verdict.PASS:
                lapsed = self._state.closed and not self._state.captured and now >= self._state.lease_ends
                self._state = self._state._replace(
                    at_boundary=False,
                    base=None,
                    promised=None,
                    captured=False,
                    closed=self._state.closed and not lapsed,
                )
                return None
            self._stand(now)

    def _stand(self, now: float) -> None:
        settled = self._state.captured or self._state.copying
        self.standing = True
        self._changed.wait(None if settled else max(0.0, self._state.lease_ends - now))
        self.standing = False

    def _set(self, state: GateState) -> None:
        self._state = state
        self._changed.notify_all()
