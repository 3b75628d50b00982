"""What the Trainer's loop knows at a boundary, as it was there, and how it is put back.

The Trainer keeps its place in several objects: TrainerState, TrainerControl, callbacks that export a state, and attributes of its own.
"""

import json
import logging
import os
from typing import Any

from holdfast.errors import RestoreError

log = logging.getLogger("holdfast")
STATE = (
    "epoch", "global_step", "num_input_tokens_seen", "total_flos", "best_metric", "best_global_step", "best_model_checkpoint",
)  # fmt: skip
"""Of TrainerState, what training changes; the rest follows from the arguments. `log_history` is kept apart."""
COUNTERS = (
    "_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step", "_initial_num_input_tokens_seen", "current_flos",
)  # fmt: skip
CONTROL = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")


class TrainerState:
    """A part of the checkpoint. Main thread only."""

    def __init__(self, trainer: Any, *, other_callbacks: bool) -> None:
        """`other_callbacks`: the state of callbacks that this Trainer lacks may be dropped."""
        self._trainer, self._other_callbacks = trainer, other_callbacks
        self.noted: dict[str, Any] = {}
        """At the last boundary; empty before the first."""
        self.evaluated: dict[str, float] = {}
        """What the newest evaluation has found."""
        self.restored = False
        self._text, self._entries = "", 0
        self._of: Any = None
        self._given: list[dict[str, Any]] = []
        """The arguments of each callback, before training."""

    def state_dict(self) -> dict[str, Any]:
        return self.noted

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises RestoreError where other callbacks are there than were saved, or another number of ranks."""
        here = self._trainer.args.world_size
        if state and state.get("ranks", here) != here:
            # Its steps of an epoch, and with them its last step, are reckoned by the number of ranks.
            raise RestoreError(
                f"the checkpoint was made by {state['ranks']} ranks, and {here} are here: the Trainer reckons the steps of an epoch, and of the whole run, by "
                f"the number of ranks, and would leave samples out. Go on with {state['ranks']} ranks"
            )
        gone = [s["name"] for s in state.get("callbacks", []) if s["name"] not in {_name(c) for c in self._stateful()}]
        if gone and not self._other_callbacks:
            raise RestoreError(
                f"the checkpoint has the state of callbacks that the Trainer does not have: {sorted(gone)}; it has "
                f"{sorted(_name(c) for c in self._stateful())}. Put them back with the same arguments, or accept that their state is dropped: "
                'attach(trainer, allow=("callbacks",))'
            )
        self.noted, self.restored = state, bool(state)

    def begin(self) -> None:
        """Before the restore, once all callbacks are known."""
        self._given = [c.state().get("args", {}) for c in self._stateful()]

    def note(self, **more: Any) -> None:
        """A boundary is passed."""
        trainer = self._trainer
        self.noted = {
            "state": {n: _plain(getattr(trainer.state, n)) for n in STATE},
            "history": self._history(trainer.state.log_history),
            "counters": {n: _plain(getattr(trainer, n)) for n in COUNTERS},
            "loss": trainer._tr_loss.detach().clone(),
            "control": {n: bool(getattr(trainer.control, n)) for n in CONTROL},
            "ranks": trainer.args.world_size,
            "at_end": trainer.state.global_step >= trainer.state.max_steps,
            "callbacks": self.callbacks(),
            **more,
        }

    def put_back(self) -> None:
        """The Trainer stands where it stood. May be called again: the Trainer sets some of it to zero after it has been restored."""
        trainer, noted = self._trainer, self.noted
        for name, value in noted["state"].items():
            setattr(trainer.state, name, value)
        self._forget_lost_model()
        trainer.state.log_history = [json.loads(line) for line in noted["history"].splitlines()]
        for name, value in noted["counters"].items():
            setattr(trainer, name, value)
        trainer._tr_loss = noted["loss"].detach().clone().to(trainer.args.device)
        for name, value in noted["control"].items():
            setattr(trainer.control, name, value)
        if noted["at_end"] and trainer.state.global_step < trainer.state.max_steps:
            self._go_beyond_the_end()
        left = list(noted["callbacks"])
        for callback in self._stateful():
            saved = next((s for s in left if s["name"] == _name(callback)), None)
            if saved is not None:
                left.remove(saved)
                for name, value in saved["values"].items():
                    setattr(callback, name, value)

    def callbacks(self) -> list[dict[str, Any]]:
        """State of those that export one, in their order; two of a class are told apart by it. Arguments are the script's, unless training has changed them."""
        found = []
        for n, callback in enumerate(self._stateful()):
            state = callback.state()
            given = self._given[n] if n < len(self._given) else {}
            changed = {k: v for k, v in state.get("args", {}).items() if k not in given or given[k] != v}
            found.append({"name": _name(callback), "values": changed | state.get("attributes", {})})
        return found

    def let_go(self) -> None:
        """Training is over: the checkpointer, which may outlive it, holds no Trainer."""
        self._trainer = self._of = None

    def _go_beyond_the_end(self) -> None:
        """What the end of the shorter run has ordered, a longer one does not do there."""
        args, state, control = self._trainer.args, self._trainer.state, self._trainer.control
        control.should_training_stop = False
        for name, order in (("eval", "should_evaluate"), ("save", "should_save")):
            strategy, every = getattr(args, f"{name}_strategy"), getattr(state, f"{name}_steps")
            if _word(strategy) == "steps" and every and state.global_step % every:
                setattr(control, order, False)

    def _forget_lost_model(self) -> None:
        state = self._trainer.state
        best = state.best_model_checkpoint
        if best is None or os.path.isdir(best):
            return
        log.error(
            "holdfast: the best model so far (step %s, %s) lay in %s, which is not here: it is lost, and load_best_model_at_end can only load a better one "
            "that comes later. Let output_dir be on a volume that survives the machine", state.best_global_step, state.best_metric, best,
        )  # fmt: skip
        state.best_model_checkpoint = None

    def _stateful(self) -> list[Any]:
        callbacks = self._trainer.callback_handler.callbacks
        return [c for c in callbacks if any(k.__name__ == "ExportableState" for k in type(c).__mro__)]

    def _history(self, entries: Any) -> str:
        """One line of JSON for each. It only grows, and is too long to be written anew at each boundary."""
        if entries is not self._of or len(entries) < self._entries:
            self._text, self._entries, self._of = "", 0, entries
        for entry in entries[self._entries :]:
            self._text += json.dumps(entry, default=_json) + "\n"
            found = {k: v for k, v in entry.items() if k.startswith("eval_") and isinstance(v, int | float)}
            self.evaluated = found or self.evaluated
        self._entries = len(entries)
        return self._text


def _name(callback: Any) -> str:
    return type(callback).__name__


def _word(strategy: Any) -> str:
    return str(getattr(strategy, "value", strategy))


def _plain(value: Any) -> Any:
    """A number of NumPy's or torch's as Python's."""
    return value.item() if hasattr(value, "item") else value


def _json(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else repr(value)
