"""The saving side of a rank: the plan, the slots, and the captures that are handed to the agent.

Called by the main thread, but for `take` and for what the helper thread does while the main thread is stopped. When saving becomes impossible (the
agent is gone or refuses, a value cannot be saved) it says so once and training goes on unsaved; it never raises into the training loop.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from holdfast import device
from holdfast.arena import Arena
from holdfast.beside import Beside, Copy
from holdfast.copying import copy_pool
from holdfast.errors import HoldfastError, LinkLost, UnsupportedState
from holdfast.finite import must_be_finite
from holdfast.live import Live, Noting
from holdfast.part import NotLive
from holdfast.progress import Progress
from holdfast.snapshot import SlotWriter, SnapshotPlan, document_bytes
from holdfast.state import Captured, Ended, Registry
from holdfast_api import ranks
from holdfast_api.manifest import MetricPoint
from holdfast_rank.agent_link import AgentLink
from holdfast_rank.doing import Doing

log = logging.getLogger("holdfast")
LOOK_SECONDS = 0.05
"""A round may come while slots are waited for."""


class Saver:
    """Plans once the layout is known (I9), captures when told to."""

    def __init__(
        self,
        link: AgentLink,
        registry: Registry,
        progress: Progress,
        run: dict[str, str],
        awaited: Callable[[], bool] = lambda: False,
        doing: Doing | None = None,
    ) -> None:
        """`awaited`: a round waits for this rank (Gate.awaited)."""
        self._doing = doing or Doing(lambda what: None)
        self._link, self._registry, self._progress, self._run = link, registry, progress, run
        self._awaited = awaited
        self.config: dict[str, str] = {}
        """The user's hyper-parameters."""
        self.chunk_bytes = 16 << 20
        self._plan: SnapshotPlan | None = None
        self._arena: Arena | None = None
        self._writers: list[SlotWriter] = []
        self._pool = copy_pool()
        self._gone = ""
        self._told = False
        self.newest = 0
        """The newest boundary captured, or restored."""
        self.beside = Beside(self._hand_over_beside)

    @property
    def possible(self) -> bool:
        return not self._gone

    @property
    def planned(self) -> bool:
        return self._plan is not None

    @property
    def current(self) -> SnapshotPlan | None:
        """The plan, once its slots are there."""
        return self._plan if self._arena is not None else None

    @property
    def arena(self) -> Arena | None:
        return self._arena

    def pool(self) -> ThreadPoolExecutor:
        return self._pool

    def take(self, message: ranks.SlotFree) -> None:
        """Helper thread."""
        if self._arena is not None:
            self._arena.free(message.slot)

    def lose(self, reason: str) -> None:
        """Any thread: nothing more will be saved."""
        if not self._told:
            self._told = True
            log.error("holdfast: NOTHING IS SAVED FROM NOW ON; training goes on. Reason: %s", reason)
        self.abandon(reason)

    def abandon(self, reason: str = "closed") -> None:
        """As `lose`, where it is expected or said elsewhere."""
        self._gone = self._gone or reason
        self.beside.end()
        if self._arena is not None:
            self._arena.lose()

    def plan(self) -> None:
        """Tells the agent the layout, so that it prepares slots while training goes on; they are awaited at the first capture."""
        if self.possible and self._plan is None:
            try:
                self._send_plan(self._registry.capture(self._progress, window_open=False))
            except (LinkLost, UnsupportedState, OSError, ValueError) as e:
                self.lose(str(e))

    def open_slots(self) -> None:
        """At a boundary: takes the slots that the agent has prepared for the plan, if it has, so that nobody waits for them later."""
        if self.possible and self._plan is not None and self._arena is None:
            try:
                while self._arena is None and (answer := self._link.poll(ranks.Slots, ranks.Refused)) is not None:
                    self._take_slots(answer)
            except (UnsupportedState, OSError, ValueError) as e:
                self.lose(str(e))

    def plan_anew(self, captured: Captured) -> None:
        """The layout has changed for good (I9): planned before a save needs it, if no slot is in use."""
        if self.possible and self._arena is not None and self._arena.idle:
            try:
                self._send_plan(captured)
            except (LinkLost, UnsupportedState) as e:
                self.lose(str(e))

    def holding(self, boundary: int) -> int | None:
        return self._arena.holding(boundary) if self._arena is not None else None

    def addresses(self, boundary: int) -> dict[str, int] | None:
        """Where the tensors of a boundary lie that was copied last; None if none holds it."""
        slot = self.holding(boundary)
        return None if slot is None else self._writers[slot].addresses()

    def hand_over_live(self, slot: int, at: Progress, round: int, seconds: float) -> None:
        """The helper, while the main thread is stopped: `slot` holds the boundary of `at`."""
        self.newest = at.boundary
        self._announce(slot, "round", round, seconds, at)

    def capture_beside(self, live: Live, noting: Noting, metrics: dict[str, torch.Tensor]) -> bool:
        """A periodic save of the boundary that was noted just now, copied by a GPU while training goes on. Waits for a free slot. Returns False when that
        cannot be: it has to be captured. `metrics` on a device are read when the copy is done."""
        arena = self._arena
        if not self.possible or arena is None or live.far is None:
            return False
        began = time.monotonic()
        if not arena.has_free:
            self._link.flush_passed()
        try:
            with self._doing.during("slot"):
                slot = arena.acquire()
        except (LinkLost, OSError, ValueError) as e:
            self.lose(str(e))
            return True
        at = noting.small.progress
        if self.newest >= at.boundary:  # a round has taken it meanwhile
            arena.free(slot)
            return True
        try:
            with live.beside():
                document, small = live.compose(noting)
            kept = {n: v.detach().clone() for n, v in metrics.items() if device.is_far(v)}
            at.note_metrics({n: v for n, v in metrics.items() if n not in kept}, now=True)
            self.beside.begin(Copy(live, live.far, arena, slot, at, kept, began), document, small, self.pool)
        except (NotLive, HoldfastError, OSError, RuntimeError) as e:
            arena.free(slot)
            log.warning("holdfast: boundary %d is copied before training goes on: %s", at.boundary, e)
            return False
        return True

    def _hand_over_beside(self, copy: Copy, seconds: float) -> None:
        self.newest = max(self.newest, copy.at.boundary)
        self._announce(copy.slot, "periodic", 0, seconds, copy.at, stall=copy.held_up)

    def capture(self, kind: str, round: int = 0, ended: Ended | None = None) -> None:
        """Copies the state at the current boundary into a slot and hands it over. `kind` as in CapturedSlot. Waits for a free slot. `ended`: what is
        small was noted at this boundary, and may have changed since."""
        if not self.possible:
            return
        try:
            self.beside.settle()
            self._capture(kind, round, ended)
        except (LinkLost, UnsupportedState, OSError, ValueError) as e:
            self.lose(str(e))

    def close(self) -> None:
        self.beside.settle()
        self.beside.end()
        self._pool.shutdown(wait=False)

    def _capture(self, kind: str, round: int, ended: Ended | None) -> None:
        began = time.monotonic()
        again = self._arena.holding(self._progress.boundary) if self._arena else None
        if again is None:
            registry = self._registry
            gradients = registry.open_gradients.open() if registry.updated else []
            captured = registry.capture(self._progress, window_open=not registry.updated, gradients=gradients)
            if ended is not None:
                try:
                    captured = registry.as_of(ended, captured)
                except NotLive as e:
                    log.info(
                        "holdfast: the small state is saved as it is now, not as it was at the last boundary: %s", e
                    )
            document = document_bytes(captured.document)
            fits = self._plan is not None and self._plan.fits(captured, document)
            if not fits and not self._plan_for(kind, captured):
                log.info("holdfast: boundary %d is not saved: a round waits for a later one", self._progress.boundary)
                return
            arena = self._ready_arena()
            if not arena.has_free:
                self._link.flush_passed()  # the agent gives a slot to a round once it knows that the rank stands at its target
            with self._doing.during("slot"):
                slot = arena.acquire()
            try:
                self._writers[slot].write(captured.leaves.tensors, document, self._pool)
            except BaseException:
                arena.free(slot)
                raise
        else:  # a newer round wants the boundary at which this rank already stands
            slot = again
        assert self._arena is not None
        self._arena.hand_over(slot, self._progress.boundary)
        self.newest = self._progress.boundary
        self.beside.owed = False
        self._announce(slot, kind, round, time.monotonic() - began, self._progress)

    def _announce(
        self, slot: int, kind: str, round: int, seconds: float, at: Progress, stall: float | None = None
    ) -> None:
        assert self._plan is not None
        self._link.flush_passed()
        self._link.send(
            ranks.CapturedSlot(
                slot=slot,
                plan=self._plan.number,
                boundary=at.boundary,
                kind=kind,
                round=round,
                copy_seconds=seconds,
                updates=at.updates,
                epoch=at.epoch,
                samples=at.samples,
                metrics=dict(at.metrics),
                run=self._run,
                config=self.config,
                stall_seconds=stall,
                history=tuple(MetricPoint(b, v) for b, v in at.history.points if b <= at.boundary),
            )
        )

    def _plan_for(self, kind: str, captured: Captured) -> bool:
        """Replaces the plan (I9). The agent first finishes with the slots of the old one. Not while a round waits for this rank: what ranks hold is kept until
        they have come to its boundary (E4), so they would wait for each other until the deadline. What the round wants, or what there will be nothing newer
        than, is planned without that, and the older saves abandoned (A8); a periodic save is left out. Returns False for that."""
        with self._doing.during("slot"):
            while kind != "round" and self._arena is not None and not self._arena.all_free_within(LOOK_SECONDS):
                if self._awaited():
                    if kind == "periodic":
                        return False
                    break
        self._send_plan(captured)
        return True

    def _send_plan(self, captured: Captured) -> None:
        self.beside.settle()
        number = self._plan.number + 1 if self._plan else 1
        plan = SnapshotPlan.of(number, captured, self.chunk_bytes)
        self._plan, self._arena, self._writers = plan, None, []
        self._link.send(
            ranks.Plan(
                plan=number,
                image_bytes=plan.layout.image_bytes,
                tensors=plan.layout.entries,
                must_be_finite=tuple(must_be_finite(captured.document)),
            )
        )

    def _ready_arena(self) -> Arena:
        if self._arena is not None:
            return self._arena
        assert self._plan is not None
        while True:
            with self._doing.during("slot"):
                answer = self._link.expect(ranks.Slots, ranks.Refused)
            self._take_slots(answer)
            if (arena := self.arena) is not None:
                return arena

    def _take_slots(self, answer: ranks.Slots | ranks.Refused) -> None:
        """Of another plan they are passed over. Raises UnsupportedState, OSError, ValueError."""
        assert self._plan is not None
        if isinstance(answer, ranks.Refused):
            raise UnsupportedState(f"the agent refuses to save this job: {answer.message}")
        if answer.plan != self._plan.number:
            return
        if answer.slot_bytes < self._plan.layout.image_bytes or not answer.paths:
            raise ValueError(
                f"the agent offers {len(answer.paths)} slots of {answer.slot_bytes} bytes for an image of {self._plan.layout.image_bytes}"
            )
        arena = Arena(answer.plan, answer.paths, answer.slot_bytes)
        self._writers = [SlotWriter(self._plan, s.memory) for s in arena.slots]
        self._arena = arena
