"""Copies between two update windows (I2, I4-I9): what the main thread does for them at a boundary and before an update, and the helper thread.

The main thread keeps the small state of each boundary; the rest stands still until the next update, whose hook stops at the gate. When a round wants
the boundary that was passed last, the helper copies it, whatever the main thread is doing: forward, backward, a collective, evaluation, a wait for
data. A loop gets this only after it has been audited, and each copy is checked before and after; what does not hold falls to the next boundary.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from holdfast import capture_mode, device
from holdfast.audit import FIRST_BYTES, ROUNDS, SAVE_BYTES, Audit
from holdfast.errors import HoldfastError, LinkLost
from holdfast.live import Live, Noting
from holdfast.loops import SILENT_BOUNDARIES, Facts, Judgement, judge_loop
from holdfast.part import NotLive
from holdfast.progress import Progress
from holdfast.saver import Saver
from holdfast.snapshot import document_bytes
from holdfast.state import Registry
from holdfast.windows import Windows
from holdfast_api import names, ranks
from holdfast_rank.agent_link import AgentLink
from holdfast_rank.gate import Gate, LoopClass

log = logging.getLogger("holdfast")
NOTE_SECONDS = 0.002
NOTE_SHARE = 0.02
"""What capturing the small state may cost at a boundary: so long, or this part of an iteration."""
MEASURED = 5
"""Boundaries whose cost is looked at; the least counts, for machines that others use too."""
SLOT_SECONDS = 0.1
"""How often the helper looks, while it waits for a slot, whether the round still wants it."""
RETRY_BOUNDARIES = 50
"""How long a layout that does not fit (it holds gradients, or its slots are in use) is left alone: looking costs as much as listing everything."""
LOOK_BOUNDARIES = 1000
"""How often the list is looked over without need, so that a layout that has grown is not found by a round. About 1 µs per tensor."""
TRIES = 3
"""So often a list of storages is made anew because an audit found something; more, and the loop is not understood."""


class MidStep:
    """One rank's. `passed` and `before_update` are the main thread's, `ready` and `tick` the reader's."""

    def __init__(
        self,
        registry: Registry,
        progress: Progress,
        gate: Gate,
        saver: Saver,
        link: AgentLink,
        run: dict[str, str],
        entering: Callable[[], None] = lambda: None,
    ) -> None:
        """`run`: facts that go into every commit; the loop's kind is kept there. `entering` is called when an update window has begun."""
        self._registry, self._progress, self._gate, self._saver, self._link = registry, progress, gate, saver, link
        self._run, self._entering = run, entering
        self._windows = Windows(registry, self._before_update, self._before_step)
        self.held = False
        """The main thread was stopped at the gate since the last boundary."""
        self._facts = Facts(
            off="switched off by " + names.ENV_MID_STEP if os.environ.get(names.ENV_MID_STEP) == "off" else "",
            optimizers=tuple(type(o.optimizer).__name__ for o in registry.optimizers.values()),
        )
        self._roots = [m.module for m in registry.modules.values() if m.trains]
        self.judgement = judge_loop(self._facts)
        self._live: Live | None = None
        self._noting: Noting | None = None
        self._audit: Audit | None = None
        self._tried = self._turn = 0
        self._cost: list[float] = []
        self._evaluation: Audit | None = None
        self._evaluates = ""
        """"clean" or "dirty" once an evaluation has been audited."""
        self._thread: threading.Thread | None = None
        self._retry_at = 0
        self._stale = False
        self._tell_run()

    # Main thread

    def arrived(self) -> None:
        """The first thing at a boundary: whatever is noted or copied here comes after every update, and no note is overwritten that is being copied."""
        device.join(self._windows.streams())
        self._saver.beside.hold_back()

    @property
    def goes_beside(self) -> bool:
        """This boundary can be saved while training goes on, as far as is known before `passed`: a GPU copies it, and the loop has been audited."""
        live, arena = self._live, self._saver.arena
        return (
            self.judgement.loop is LoopClass.MID_STEP
            and live is not None
            and live.far is not None
            and live.plan is self._saver.current
            and arena is not None
            and arena.pinned
            and self._saver.beside.possible
            and not live.problem()
        )

    def save_beside(self, metrics: dict[str, Any]) -> bool:
        """After `passed`, where `goes_beside` was true. False: it has to be captured after all."""
        live, noting = self._live, self._noting
        if live is None or noting is None or noting.small.progress.boundary != self._progress.boundary:
            return False
        return self._saver.capture_beside(
            live, noting, {n: v for n, v in metrics.items() if isinstance(v, torch.Tensor)}
        )

    def passed(self, step_seconds: float) -> None:
        """The last thing at a boundary. `step_seconds`: what an iteration takes."""
        began = time.monotonic()
        entered = self._windows.boundary()
        self._know(entered)
        if self.judgement.final or not self._saver.possible:
            self._noting = None
            return
        try:
            if entered and self._registry.open_gradients.open():
                self._noting = self._audit = None  # as at a micro-batch's boundary
            elif entered:
                self._note(window_open=False)
            else:
                self._pass_without_update()
        except (OSError, HoldfastError, NotLive) as e:
            self._give_up(not_live=str(e))
        except Exception as e:  # training must not end because of a way to copy it sooner
            log.exception("holdfast: the state cannot be followed from boundary to boundary")
            self._give_up(not_live=f"{type(e).__name__}: {e}")
        self._weigh(time.monotonic() - began, step_seconds)

    def audit_save(self) -> None:
        """A save of this boundary has just been copied into a slot: that is compared with the live state before the next update."""
        addresses = self._saver.addresses(self._progress.boundary)
        if self._live is None or addresses is None or self._live.plan is not self._saver.current:
            return
        if self._live.far is not None:  # it is looked at while it is copied
            return
        self._turn += 1
        contiguous = self._live.contiguous()  # the slot holds others in another order
        blocks = [b for b in self._live.blocks(self._turn, SAVE_BYTES) if b.name in addresses and b.name in contiguous]
        try:
            self._audit = Audit(blocks, addresses)
        except OSError as e:
            self._give_up(not_live=f"memory cannot be read for the audit: {e}")

    def close(self) -> None:
        self._windows.close()
        self._audit = self._evaluation = None

    def _before_update(self) -> None:
        """On the thread that steps an optimizer."""
        if device.capturing():
            self._audit = self._evaluation = None  # a look at the device would spoil the capture
        elif not self.judgement.final:
            self._judge_audits()
        self.held = self._gate.enter() or self.held
        self._entering()

    def _before_step(self, optimizer: Any) -> None:
        """Before each step, on the thread that steps: on the device it comes after the copy that is under way."""
        if type(optimizer).__module__.startswith("torch.optim"):
            self._saver.beside.hold_back()
        else:  # it may have streams of its own
            self._saver.beside.settle()

    def _know(self, entered: bool) -> None:
        facts = self._facts
        silent = 0 if entered else facts.silent + 1
        windows = self._windows
        new = (windows.closures, windows.in_backward, windows.in_graph)
        if (
            silent >= SILENT_BOUNDARIES
            or new != (facts.closures, facts.in_backward, facts.in_graph)
            or facts.silent >= SILENT_BOUNDARIES
        ):
            self._learn(closures=new[0], in_backward=new[1], in_graph=new[2], silent=silent)
        elif silent != facts.silent:
            self._facts = _with(facts, silent=silent)

    def _note(self, *, window_open: bool) -> None:
        live = self._resolve() if self._is_stale() else self._live
        if live is None:
            return
        self._noting = live.note(self._registry.snapshot(self._progress, window_open=window_open))
        if self.judgement.loop is LoopClass.MID_STEP:
            self._gate.rest(self._progress.boundary)
        elif self._audit is None and self._facts.clean < ROUNDS:
            self._turn += 1
            self._audit = Audit(live.blocks(self._turn, FIRST_BYTES))
            if unsettled := self._audit.unsettled:
                raise NotLive(
                    f"{unsettled[0]} is written on a CUDA stream for which the current one does not wait at step()"
                )

    def _is_stale(self) -> bool:
        """There is no list, or it is another plan's, or the last look at it has found it wrong."""
        if self._live is None or self._live.plan is not self._saver.current or self._stale:
            return True
        return self._progress.boundary % LOOK_BOUNDARIES == 0 and bool(self._live.problem())

    def _pass_without_update(self) -> None:
        """A micro-batch, a step that the scaler left out; or an update that no hook has seen."""
        if self._live is None or self._noting is None or self._stale:
            return
        updated = self._live.updated_since_note() if self._live.seemed_to_move() else []
        if updated and self._live.problem():  # the list was right once and is not now: that is no update past the gate
            self._live = self._noting = None
        elif updated:
            log.error(
                "holdfast: %s and others have changed before boundary %d, and no optimizer.step() was seen at the gate. From now on the state is copied "
                "at boundaries only. If it is an average of the weights, update it only in iterations in which the optimizer has stepped",
                updated[0],
                self._progress.boundary,
            )
            self._give_up(bypassed=True)
        elif not self._registry.has_gradients():
            self._note(window_open=True)

    def _resolve(self) -> Live | None:
        """A list for the plan at hand, at a boundary that ends a window. Raises NotLive, HoldfastError, OSError."""
        self._live = self._noting = self._audit = None
        plan, arena = self._saver.current, self._saver.arena
        if plan is None or arena is None or not self._registry.planned or self._progress.boundary < self._retry_at:
            return None
        captured = self._registry.capture(self._progress, window_open=False)
        document = document_bytes(captured.document)
        if not plan.fits(captured, document):
            self._retry_at = self._progress.boundary + RETRY_BOUNDARIES
            if not any(i.name.startswith("gradient.") for i in plan.items):
                self._saver.plan_anew(captured)
            return None
        places = [p for part in self._registry.parts.values() for p in part.places()]
        live = Live(self._registry, plan, captured, places, self._facts.moved)
        noting = live.note(self._registry.snapshot(self._progress, window_open=False))
        if live.compose(noting)[0] != document:
            raise NotLive("what is kept of the small state at a boundary is not what a save would keep")
        live.prepare([s.memory for s in arena.slots])
        if self._facts.clean:  # new tensors have not been audited
            self._learn(clean=0)
        self._live, self._stale = live, False
        return live

    def _judge_audits(self) -> None:
        """Just before the first update since the boundary: what was copied there must still be what is live."""
        audit, self._audit = self._audit, None
        evaluation, self._evaluation = self._evaluation, None
        try:
            if evaluation is not None and not self._evaluates:
                assert self._live is not None
                self._settle_evaluation(evaluation.changed(), moved=self._live.moved_since_note())
            if audit is None:
                return
            changed = audit.changed()
            if self._live is not None:
                changed = sorted({*changed, *self._live.written_since_note()})
                if self._facts.clean + 1 == ROUNDS and self._noting is not None and not changed:
                    self._live.compose(self._noting)
        except (OSError, RuntimeError) as e:
            self._give_up(not_live=f"memory cannot be read for the audit: {e}")
            return
        except (NotLive, HoldfastError) as e:  # it fitted when it was listed, and does not some boundaries later
            self._give_up(not_live=str(e))
            return
        if not changed:
            if self._facts.clean < ROUNDS:
                self._learn(clean=self._facts.clean + 1)
            return
        self._tried += 1
        self._gate.unrest()
        self._live = self._noting = None
        moved = tuple(sorted({*self._facts.moved, *changed}))
        log.warning(
            "holdfast: these change between a boundary and the next update, and are copied at each boundary from now on: %s",
            ", ".join(changed[:20]) + (f" and {len(changed) - 20} more" if len(changed) > 20 else ""),
        )
        if self._tried > TRIES:
            self._give_up(not_live="after every audit something else was found to change between boundaries")
        else:
            self._learn(clean=0, moved=moved)

    def _weigh(self, seconds: float, step_seconds: float) -> None:
        if self._noting is None or len(self._cost) >= MEASURED:
            return
        if self._audit is not None and self._live is not None and self._live.far is not None:
            return  # that has waited for the GPU
        self._cost.append(seconds)
        least = min(self._cost)
        if len(self._cost) == MEASURED and least > max(NOTE_SECONDS, NOTE_SHARE * step_seconds):
            self._give_up(slow=f"capturing the small state at a boundary takes {least * 1e3:.1f} ms")

    def _give_up(self, **facts: object) -> None:
        self._gate.unrest()
        self._live = self._noting = self._audit = None
        self._learn(**facts)

    def _learn(self, **facts: object) -> None:
        self._facts = _with(self._facts, **facts)
        before, self.judgement = self.judgement, judge_loop(self._facts)
        if self.judgement.loop is not LoopClass.MID_STEP:
            self._gate.unrest()
        self._gate.loop = self.judgement.loop
        if self.judgement.loop is LoopClass.MID_STEP and self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="holdfast-midstep", daemon=True)
            self._thread.start()
        self._tell_run()
        _say(before, self.judgement)

    def _tell_run(self) -> None:
        self._run |= {
            "loop": self.judgement.loop.value,
            "loop_kind": self.judgement.kind,
            "loop_why": self.judgement.why,
        }

    # Reader thread

    def ready(self) -> bool:
        """At the closing of the gate: what would be copied still is what it was at the boundary (I5)."""
        live, noting = self._live, self._noting
        if live is None or noting is None or self.judgement.loop is not LoopClass.MID_STEP:
            return False
        try:
            problem = self._obstacle(live, look=False)
        except Exception as e:  # the reader must live, and a round must have its vote
            problem = f"{type(e).__name__}: {e}"
        if problem:
            log.info("holdfast: a round is left for the next boundary: %s", problem)
        return not problem

    def tick(self) -> None:
        """A few times a second: an evaluation that runs is audited while it does. Afterwards it would look as if nothing had happened."""
        live, noting = self._live, self._noting
        if live is None or noting is None or self._evaluates or self._in_training() or self._gate.in_window:
            return
        if live.far is not None:  # the reader must not wait for a GPU (E2)
            return
        try:
            moved = live.moved_since_note()
            evaluation = self._evaluation or Audit(live.blocks(0, FIRST_BYTES))
            changed = evaluation.changed()
        except (OSError, RuntimeError):  # the reader must live; without an audit nothing is copied during evaluations
            return
        if self._noting is not noting or self._gate.in_window or self._in_training():
            return  # it was over before it was looked at
        if moved or changed:
            self._settle_evaluation(changed, moved=moved)
        else:
            self._evaluation = evaluation

    @property
    def evaluating(self) -> bool:
        """A registered module that trains is in `eval()`."""
        return not self._in_training()

    def _in_training(self) -> bool:
        return all(m.training for m in self._roots)

    def _settle_evaluation(self, changed: list[str], *, moved: bool) -> None:
        self._evaluates = "dirty" if moved or changed else "clean"
        if self._evaluates == "dirty":
            log.warning(
                "holdfast: evaluation changes the state (%s): a round that comes during one waits for the boundary after it",
                ", ".join(changed[:5]) or "weights are exchanged",
            )
        else:
            log.info("holdfast: evaluation leaves the state as it is: it is copied during one as well")

    def _obstacle(self, live: Live, *, look: bool = True) -> str:
        """Why the live state is not the boundary's, as far as a look can tell; without `look` one that waits for no GPU."""
        if not self._in_training() and self._evaluates != "clean":
            return "the model is in eval(), and no evaluation has been audited yet"
        try:
            if problem := live.problem():
                self._stale = True
                return problem
            moved = live.moved_since_note() if look else live.moved_on_host()
            return "the state has changed since the boundary" if moved else ""
        except OSError as e:
            return f"memory cannot be read: {e}"

    # Helper thread

    def _serve(self) -> None:
        while (wanted := self._gate.await_copy()) is not None:
            try:
                self._serve_round(*wanted)
            except LinkLost:
                return

    def _serve_round(self, round: int, boundary: int) -> None:
        began = time.monotonic()
        if self._live is not None and self._live.far is not None:
            capture_mode.relax()
        self._saver.beside.settle()
        arena = self._saver.arena
        if arena is None:
            return
        held = arena.holding(boundary)
        slot = held
        while slot is None:
            if not self._gate.wants(round):
                return
            if not arena.has_free:
                self._link.flush_passed()  # the agent gives a slot to a round once it knows that the rank stands at its target
            slot = arena.acquire_within(SLOT_SECONDS)
        if not self._gate.begin_copy(round, boundary):
            if held is None:
                arena.free(slot)
            return
        noting = self._noting
        problem, ours = "it was interrupted", held is None
        try:
            problem = self._copy(slot, boundary) if held is None else ""
            if not problem:
                ours = arena.hand_over(slot, boundary) or ours
        except Exception as e:
            problem = f"{type(e).__name__}: {e}"
        finally:
            counts = self._gate.end_copy(round, clean=not problem)
        if counts and noting is not None:
            self._saver.hand_over_live(slot, noting.small.progress, round, time.monotonic() - began)
        elif ours:  # the round is over, or the copy not whole: nobody was told of the slot
            arena.free(slot)
        if problem:
            log.warning("holdfast: boundary %d is left for the next one: %s", boundary, problem)
            self._link.send(ranks.Vote(round=self._gate.round, boundary=boundary + 1))

    def _copy(self, slot: int, boundary: int) -> str:
        """What speaks against the copy, "" if it is the boundary's state."""
        live, noting = self._live, self._noting
        if live is None or noting is None or noting.small.progress.boundary != boundary:
            return "its small state is not at hand"
        if live.plan is not self._saver.current:
            return "the layout has changed"
        if problem := self._obstacle(live):
            return problem
        with live.beside():
            document, small = live.compose(noting)
        return live.write(slot, document, small, self._saver.pool) or self._obstacle(live)


def _with(facts: Facts, **changes: object) -> Facts:
    return replace(facts, **changes)  # type: ignore[arg-type]


def _say(before: Judgement, after: Judgement) -> None:
    if (before.loop, before.kind, before.final) != (after.loop, after.kind, after.final):
        log.info(
            "holdfast: this loop (%s) is %s%s", after.kind, after.loop.value, f": {after.why}" if after.why else ""
        )
