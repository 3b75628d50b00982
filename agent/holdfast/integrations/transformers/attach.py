"""`attach`, and the methods that take the place of one Trainer's.

The boundary (I1) is the end of an update, after all `on_step_end` callbacks and before what the Trainer does then: logging, evaluation, saving. So an
evaluation is no part of the update window, and a notice that comes during one does not wait for it (I2). A resumed run does those things again first: the
generators are as they were at the boundary, so it finds the same.
"""

import functools
import inspect
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch

import holdfast
from holdfast import rng, tree
from holdfast.allowed import Allowed
from holdfast.errors import RestoreError, UnsupportedState
from holdfast.integrations.transformers import refusals
from holdfast.integrations.transformers.batches import Batches, leave_skipping_to_us, source_of
from holdfast.integrations.transformers.trainer_state import TrainerState

log = logging.getLogger("holdfast")
OURS = ("model", "optimizer", "scheduler", "scaler", "loader", "trainer")
_RESUMED = "holdfast"
"""Stands where the Trainer's loop expects the directory that it resumes from."""


def attach(
    trainer: Any,
    *,
    allow: Collection[str] = (),
    run_id: str = "",
    dataset: str = "",
    data_files: Iterable[str | os.PathLike[str]] = (),
    **parts: Any,
) -> None:
    """Has a `transformers.Trainer` saved, stopped and resumed together with the agent of the pod. Call it once, after the Trainer is made and before `train()`;
    without an agent training runs, and nothing is saved.

    `allow`: as in `Checkpointer.restore`; "callbacks": the state of callbacks that the Trainer no longer has may be dropped; "save-strategy": the Trainer may
    write checkpoints of its own beside. `run_id`, `dataset`, `data_files`: as in `Checkpointer.describe`, which is given the TrainingArguments. `parts`:
    whatever else training changes, by name.

    Raises TypeError, ValueError, RuntimeError for what is asked for wrongly, UnsupportedState for what cannot be resumed exactly."""
    if not callable(getattr(trainer, "_inner_training_loop", None)) or not hasattr(trainer, "callback_handler"):
        raise TypeError(f"attach() takes a transformers.Trainer, and this is a {type(trainer).__name__}")
    if hasattr(trainer, "_holdfast"):
        raise RuntimeError("attach() has been called for this Trainer already; it is called once, before train()")
    if trainer.is_in_train or trainer.state.global_step:
        raise RuntimeError(
            f"attach() comes too late: this Trainer stands at step {trainer.state.global_step}. Call it before train()"
        )
    if taken := sorted(parts.keys() & set(OURS)):
        raise ValueError(f"attach({taken[0]}=...): the Trainer's own is registered under this name; choose another")
    words = [allow] if isinstance(allow, str) else list(allow)
    theirs = [w for w in words if w not in refusals.OWN_WORDS]
    Allowed.of(theirs)
    refusals.check_trainer(trainer, words)
    described = {"run_id": run_id, "dataset": dataset, "data_files": data_files}
    trainer._holdfast = _Attached(trainer, parts, words, theirs, described)


class _Checkpointer(holdfast.Checkpointer):
    """With what only the loop over epochs, which is the Trainer's here, has to know."""

    def replay(self, work: Callable[[], None]) -> None:
        """`work` is what followed the boundary, before the next batch: it draws from the generators as they were there."""
        if self._generators is not None:
            rng.put_back(self._generators)
        work()
        if self._generators is not None:
            self._generators = rng.capture()

    def note_end(self) -> None:
        """What follows, an evaluation perhaps, is no part of the boundary's state, also if no other boundary comes."""
        self._note_end()

    @property
    def saves(self) -> bool:
        """There is an agent."""
        return self._saver is not None


class _Attached:
    """One Trainer's. The main thread's. Methods named as the Trainer's stand for those, which they get as `inner`."""

    def __init__(
        self, trainer: Any, parts: dict[str, Any], words: list[str], theirs: list[str], described: dict[str, Any]
    ) -> None:
        self._trainer, self._parts, self._words, self._theirs, self._described = (
            trainer,
            parts,
            words,
            theirs,
            described,
        )
        self._ckpt: _Checkpointer | None = None
        self._state = TrainerState(trainer, other_callbacks=refusals.CALLBACKS in words)
        self._loader: Any = None
        self._source: Any = None
        self._prepared: Any = None
        self._prepare = trainer._prepare_for_training
        self._log_and_evaluate = trainer._maybe_log_save_evaluate
        self._resumes: int | None = None
        """The epoch that a resumed run goes on in, until it does."""
        self._stepped = 0
        """The newest step that was made a boundary."""
        self._epoch = self._steps_in_epoch = 0
        self._granted = 0
        """Passes over the loader that were asked for."""
        self._batches: Batches | None = None
        self._before = 0.0
        """Seconds of earlier lives."""
        self._standing = False
        """No update since the resume."""
        self._checked = False
        for name in refusals.SEAM:
            setattr(trainer, name, functools.partial(getattr(self, name), getattr(trainer, name)))
        leave_skipping_to_us()

    # The Trainer's methods, in the order in which they are called

    def train(self, inner: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint:
            raise ValueError(
                f"train(resume_from_checkpoint={resume_from_checkpoint!r}): Holdfast resumes this Trainer by itself, and a run has one state. Leave the "
                "argument out; to begin a new run with those weights, load them into the model before (from_pretrained)"
            )
        refusals.check_settings(self._trainer, self._words)
        try:
            return inner(None, *args, **kwargs)
        finally:
            self._let_go()

    def set_initial_training_values(self, inner: Any, args: Any, dataloader: Any) -> Any:
        self._loader = dataloader
        return inner(args, dataloader)

    def _init_training_state(self, inner: Any, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Where training begins: epoch, and batches of it that are behind. Everything is built for it here, a moment earlier than the Trainer would."""
        given = inspect.signature(inner).bind(*args, **kwargs).arguments
        if given["trial"] is not None:
            raise ValueError(
                "hyperparameter_search() runs many trainings in one process, and a process is one run: do not attach() to this Trainer"
            )
        fresh: tuple[int, int] = inner(*args, **kwargs)
        self._prepared = self._prepare(given["max_steps"], self._loader, None)
        self._restore(self._prepared[0])
        if not self._state.restored:
            return fresh
        noted = self._state.noted
        if noted["accumulation"] != self._trainer.args.gradient_accumulation_steps:
            raise RestoreError(
                f"gradient_accumulation_steps={self._trainer.args.gradient_accumulation_steps}, and it was {noted['accumulation']} when the checkpoint was "
                "made: it cannot change in the middle of an epoch. Put it back"
            )
        self._state.put_back()
        self._resumes = noted["epoch"]
        self._stepped, self._before = self._trainer.state.global_step, noted["seconds"]
        log.info("holdfast: training goes on after step %d, epoch %d", self._stepped, noted["epoch"])
        return noted["epoch"], noted["batches"]

    def _prepare_for_training(self, inner: Any, *_: Any, **__: Any) -> Any:
        prepared, self._prepared = self._prepared, None
        return prepared

    def _evaluate(self, inner: Any, *args: Any, **kwargs: Any) -> Any:
        """Not again at the start of a resumed run (`eval_on_start`)."""
        return {} if self._resumes is not None else inner(*args, **kwargs)

    def _run_epoch(self, inner: Any, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(inner).bind(*args, **kwargs).arguments
        self._epoch, self._steps_in_epoch = given["epoch"], given["steps_in_epoch"]
        given["start_time"] -= self._before
        resumed, self._resumes = self._resumes == self._epoch, None
        over = False
        if resumed:
            self._standing = True
            self._known().replay(lambda: self._catch_up(given))
            control = self._trainer.control
            over = control.should_training_stop or control.should_epoch_stop
            given["resume_from_checkpoint"] = _RESUMED
        grants, self._granted = self._epoch + 1 - self._granted, self._epoch + 1
        behind = self._state.noted["batches"] if resumed else 0
        batches = Batches(self._known(), self._loader, self._source, grants, behind, resumed=resumed, over=over)
        self._batches = given["train_dataloader"] = batches
        inner(**given)
        batches.leave(stops=self._trainer.control.should_training_stop)
        self._standing = False

    def _load_rng_state(self, inner: Any, checkpoint: Any) -> None:
        if checkpoint != _RESUMED:
            inner(checkpoint)

    def _maybe_log_save_evaluate(self, inner: Any, *args: Any, **kwargs: Any) -> None:
        """After an update, and once more after an epoch."""
        trainer = self._trainer
        given = inspect.signature(inner).bind(*args, **kwargs).arguments
        if trainer.state.global_step != self._stepped:
            self._stepped, self._standing = trainer.state.global_step, False
            self._pass_boundary(given)
        elif (
            self._standing and given.get("learning_rate") is None
        ):  # at the end of an epoch, in which this process has made no update
            given |= {n: self._state.noted[n] for n in ("grad_norm", "learning_rate")}
        if trainer.control.should_evaluate or trainer.control.should_training_stop:
            self._known().note_end()
        inner(**given)

    def _finalize_training(self, inner: Any, trial: Any, num_train_samples: Any, start_time: float) -> Any:
        self._known().finish()  # before the best model takes the place of the last
        return inner(trial, num_train_samples, start_time - self._before)

    # Inside

    def _restore(self, model: Any) -> None:
        trainer = self._trainer
        self._source = source_of(self._loader)
        optimizer = trainer.optimizer
        ckpt = self._ckpt = _Checkpointer(
            model=model,
            optimizer=getattr(optimizer, "optimizer", optimizer),  # inside accelerate's
            scheduler=trainer.lr_scheduler,
            scaler=getattr(trainer.accelerator, "scaler", None),
            loader=self._source,
            **self._parts,
            trainer=self._state,
        )
        ckpt.describe(**self._described)
        try:
            ckpt.describe(trainer.args.to_dict())
        except ValueError as e:
            log.warning("holdfast: the TrainingArguments are not kept with the checkpoints: %s", e)
        self._state.begin()
        if ckpt.saves:
            tree.encode(self._state.callbacks(), "trainer.callbacks", {})  # refuse now what could not be saved later
        ckpt.restore(allow=self._theirs)

    def _catch_up(self, given: dict[str, Any]) -> None:
        """What the Trainer does after the update that the checkpoint was made at."""
        self._state.put_back()  # what has been reset meanwhile, by `train` and by callbacks
        names = ("model", "trial", "epoch", "ignore_keys_for_eval", "start_time")
        known = {n: given[n] for n in names} | {n: self._state.noted[n] for n in ("grad_norm", "learning_rate")}
        self._log_and_evaluate(tr_loss=self._trainer._tr_loss, **known)

    def _pass_boundary(self, given: dict[str, Any]) -> None:
        trainer, batches = self._trainer, self._batches
        assert batches is not None
        self._check_position(batches)
        norm, loss = given["grad_norm"], given["tr_loss"]
        self._state.note(
            epoch=self._epoch,
            batches=batches.position,
            accumulation=trainer.args.gradient_accumulation_steps,
            grad_norm=norm.detach().clone() if isinstance(norm, torch.Tensor) else norm,
            learning_rate=given.get("learning_rate"),
            seconds=time.time() - given["start_time"],
        )
        mean = loss / max(1, trainer.state.global_step - trainer._globalstep_last_logged)
        self._known().step(**self._state.evaluated, loss=mean)

    def _check_position(self, batches: Batches) -> None:
        """Once: a Trainer that reads further ahead than it trains would lose what it has read."""
        if self._checked:
            return
        self._checked = True
        trained = round((self._trainer.state.epoch - self._epoch) * self._steps_in_epoch)
        if trained != batches.position:
            raise UnsupportedState(
                f"{type(self._trainer).__name__} has read {batches.position} batches of epoch {self._epoch} and trained on {trained}: it keeps batches for "
                f"later updates, and a resumed run would lose them. Leave get_batch_samples() as it is, or {refusals.DIRECTORY_MODE}"
            )

    def _let_go(self) -> None:
        """The Trainer is what it was. In a circle with us it would hold the loader until the garbage collector comes, and worker processes that end by that
        take seconds (torch)."""
        for name in refusals.SEAM:
            delattr(self._trainer, name)
        self._trainer.train = _refuse_another
        self._state.let_go()
        vars(self).clear()

    def _known(self) -> _Checkpointer:
        assert self._ckpt is not None
        return self._ckpt


def _refuse_another(*_: Any, **__: Any) -> None:
    raise ValueError("train() was called a second time: a process is one run. Start another job for it")
