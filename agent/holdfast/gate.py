"""The gate of one rank (E2, E4, I1): where a round of evacuation or a manual save stops the main thread.

A pure core (`GateState` and the functions over it) and a thin lock around it. Two threads meet here: the helper thread, which reads the agent's
messages and never waits, and the main thread, which waits at a boundary only. Waiting inside `close` for a window to end deadlocks as soon as
a window holds a collective, so `close` answers at once with the boundary that this rank can still be caught at.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum


class LoopClass(Enum):
    """What may be copied when (I4). This release copies every loop at boundaries; the wire is the same for mid-step copies."""

    MID_STEP = "mid-step"
    BOUNDARY_ONLY = "boundary-only"
    REFUSED = "refused"


class Verdict(Enum):
    """What the main thread does at a boundary."""

    WAIT = "wait"
    PASS = "pass"  # noqa: S105  a verdict, no secret
    CAPTURE = "capture"


@dataclass(frozen=True, slots=True)
class GateState:
    """Everything the gate knows. `round` is the greatest round obeyed so far (E1); 0 is none."""

    passed: int = 0
    """Newest boundary that the main thread has reached."""
    at_boundary: bool = False
    """The main thread stands at `passed` and may still capture it for a round."""
    in_window: bool = False
    """Inside an update window; only a mid-step loop asks."""
    done: bool = False
    closed: bool = False
    round: int = 0
    target: int | None = None
    captured: bool = False
    """`passed` has been captured for `round`; only OpenGate or a new round lets the main thread go."""
    lease_ends: float = 0.0


def vote(state: GateState, loop: LoopClass) -> int:
    """e of E2: the lowest boundary that this rank can still be caught at."""
    if state.at_boundary or state.done:
        return state.passed
    if loop is LoopClass.MID_STEP and not state.in_window:
        return state.passed
    return state.passed + 1


def close(state: GateState, round: int, lease_ends: float) -> GateState | None:
    """The state after CloseGate, or None when the round is not one to obey (E1: an older one, or this one after it was opened)."""
    if round < state.round or (round == state.round and not state.closed):
        return None
    if round == state.round:
        return replace(state, lease_ends=lease_ends)
    return replace(state, closed=True, round=round, target=None, captured=False, lease_ends=lease_ends)


def release(state: GateState, round: int, target: int) -> GateState:
    """After ReleaseGate. A target below what has been passed cannot be met; the main thread then runs on and the round fails by its deadline."""
    return replace(state, target=target) if state.closed and round == state.round else state


def open_(state: GateState, round: int) -> GateState:
    """After OpenGate of this round or a later one."""
    if round < state.round:
        return state
    return replace(state, closed=False, target=None, captured=False, round=round)


def judge(state: GateState, now: float) -> Verdict:
    """For the main thread at the boundary `state.passed`. A rank that has captured for the round stays until it is told (E4: while a copy is
    being used the gate does not open by itself); one that waits, or comes too late, is free when the lease has run out."""
    if not state.closed:
        return Verdict.PASS
    if state.captured:
        # Two coordinators may have used one number; the one that was obeyed last may want a later boundary.
        return Verdict.PASS if state.target is not None and state.target > state.passed else Verdict.WAIT
    if now >= state.lease_ends:
        return Verdict.PASS
    if state.target is None:
        return Verdict.WAIT
    return Verdict.CAPTURE if state.target == state.passed else Verdict.PASS


class Gate:
    """The lock around the core. `close`, `release`, `open` and `lose` are the helper thread's; the rest is the main thread's."""

    def __init__(self, loop: LoopClass = LoopClass.BOUNDARY_ONLY, clock: Callable[[], float] = time.monotonic) -> None:
        self.loop = loop
        self._clock = clock
        self._changed = threading.Condition()
        self._state = GateState()

    def start(self, boundary: int) -> None:
        """Training goes on after `boundary`."""
        with self._changed:
            self._state = replace(self._state, passed=boundary)

    def close(self, round: int, lease_seconds: float) -> tuple[int, bool] | None:
        """Shuts and answers (e, done), or None for a round not to be obeyed. Never waits (E2)."""
        with self._changed:
            after = close(self._state, round, self._clock() + lease_seconds)
            if after is None:
                return None
            self._set(after)
            return vote(after, self.loop), after.done

    def release(self, round: int, target: int) -> None:
        with self._changed:
            self._set(release(self._state, round, target))

    def open(self, round: int) -> None:
        with self._changed:
            self._set(open_(self._state, round))

    def lose(self) -> None:
        """The agent is gone: nobody would ever open the gate."""
        with self._changed:
            self._set(open_(self._state, self._state.round))

    def arrive(self, boundary: int) -> int | None:
        """The main thread reaches `boundary`. Waits while a round has closed the gate and not yet said where it stops. Returns the round to
        capture for, or None to go on."""
        with self._changed:
            if not self._state.closed:  # the path of every step
                self._state = replace(self._state, passed=boundary)
                return None
            self._state = replace(self._state, passed=boundary, at_boundary=True, captured=False)
            return self._settle()

    def hold(self, round: int) -> int | None:
        """The boundary has been captured for `round`: waits until the gate opens (None) or a newer round wants the same boundary (its number)."""
        with self._changed:
            if self._state.closed and self._state.round == round:
                self._state = replace(self._state, captured=True)
            return self._settle()

    def finish(self) -> int | None:
        """No further boundary will be passed. Returns the round whose vote has to be taken back (E3: "done at n"), if there is one."""
        with self._changed:
            self._state = replace(self._state, done=True)
            return self._state.round if self._state.closed else None

    def _settle(self) -> int | None:
        while True:
            now = self._clock()
            verdict = judge(self._state, now)
            if verdict is Verdict.CAPTURE:
                return self._state.round
            if verdict is Verdict.PASS:
                lapsed = self._state.closed and now >= self._state.lease_ends
                self._state = replace(self._state, at_boundary=False, closed=self._state.closed and not lapsed)
                return None
            self._changed.wait(None if self._state.captured else self._state.lease_ends - now)

    def _set(self, state: GateState) -> None:
        self._state = state
        self._changed.notify_all()
