"""The callback. A boundary (I1) is passed when Lightning asks for the next batch, and once more when training ends: whatever belongs to an iteration,
validation and the end of an epoch included, is over then. Automatic optimization runs forward and backward inside `optimizer.step(closure)`, so nothing is
copied between two boundaries (I4).
"""

import importlib
import importlib.util
import logging
import os
import sys
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch

import holdfast
from holdfast import tree
from holdfast.allowed import Allowed
from holdfast.errors import UnsupportedState
from holdfast.integrations.lightning import refusals
from holdfast.integrations.lightning.feed import FedLoader, take_over
from holdfast.integrations.lightning.trainer_state import TrainerState, is_averaging

log = logging.getLogger("holdfast")
FRAMEWORKS = ("lightning.pytorch", "pytorch_lightning")


def _base() -> Any:
    """Lightning's Callback, of each of its names that the script has imported; else of the first that is installed."""
    loaded = [name for name in FRAMEWORKS if name in sys.modules]
    for name in () if loaded else FRAMEWORKS:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            loaded = [name]
            break
    if not loaded:
        raise ImportError("holdfast.integrations.lightning needs Lightning: pip install 'lightning>=2.6,<2.7'")
    return type("Base", tuple(importlib.import_module(name).Callback for name in loaded), {})


_Base: Any = _base()


class _Checkpointer(holdfast.Checkpointer):
    """With what only the loop over epochs, which is Lightning's here, has to know."""

    def passes(self, loader: Any) -> int:
        """Passes over a loader that are behind it."""
        return self._registry.position(loader).epoch

    def batch(self, loader: Any) -> int:
        """Batches of the pass at hand that were handed out."""
        return self._registry.position(loader).batch

    @property
    def saves(self) -> bool:
        """There is an agent."""
        return self._saver is not None

    def save_next(self) -> None:
        """The next boundary, also between two that the interval names. The same on all ranks."""
        self._wanted = True

    def lose(self, reason: str) -> None:
        """Nothing more is saved; training goes on."""
        if self._saver is not None:
            self._saver.lose(reason)


class HoldfastCallback(_Base):  # type: ignore[misc]  # known when the script runs
    """Saves, stops and resumes `trainer.fit`, together with the agent of the pod; without an agent training runs as if it were not there.

        trainer = Trainer(max_epochs=3, callbacks=[HoldfastCallback()])
        trainer.fit(model, loader)

    Saved are the model, the optimizers, schedulers and the precision plugin's state, the place in the training loaders, all random generators, the loops'
    progress, callbacks and data module, what was logged so far, and what `on_save_checkpoint` hooks add. `parts`: whatever else training changes, as in
    `holdfast.Checkpointer`. `allow`: as in its `restore`, and "callbacks": the state of callbacks that the Trainer no longer has may be dropped.
    `save_before_validation`: for validations that take longer than a notice leaves; the boundary before the batch that one follows is saved.

    A process trains once: a second `fit` is refused. Everything is the main thread's.
    """

    def __init__(self, *, allow: Collection[str] = (), save_before_validation: bool = False, **parts: Any) -> None:
        """Raises ValueError for an unknown allowance."""
        super().__init__()
        Allowed.of([a for a in allow if a != "callbacks"])
        self._before_validation = save_before_validation
        self._allow, self._given = tuple(allow), parts
        self._described: dict[str, Any] = {}
        self._ckpt: _Checkpointer | None = None
        self._trainer: Any = None
        self._state: TrainerState | None = None
        self._fed: list[FedLoader] = []
        self._begun: set[int] = set()
        """By id, the loaders of which a pass was begun in this process."""
        self._gradients: list[tuple[Any, Any]] = []
        self._resumes = self._trained = self._early = self._finished = self._checked = False
        """The next batch that is asked for is the first after a restore inside an epoch; a batch was trained on since the last boundary; the epoch ended before
        its loader; training is over; the loop was seen to do what it is taken to do."""
        self._metrics: dict[str, Any] = {}
        self._attached: list[bool] = []
        weakref.finalize(self, _say_if_unused, self._attached)

    @property
    def saves(self) -> bool:
        """There is an agent."""
        return self._ckpt is not None and self._ckpt.saves

    @property
    def boundary(self) -> int:
        """Boundaries passed since the very first start: batches that were trained on (I1)."""
        return self._ckpt.boundary if self._ckpt is not None else 0

    def describe(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        run_id: str = "",
        dataset: str = "",
        data_files: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        """As `holdfast.Checkpointer.describe`; call it before `trainer.fit`. Without `config` it is the module's `hparams`."""
        self._described = {"config": config, "run_id": run_id, "dataset": dataset, "data_files": data_files}

    # Lightning's hooks

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Raises ValueError, UnsupportedState for what cannot be resumed exactly, before anything else has begun."""
        if stage != "fit":
            return
        self._attached.append(True)
        if self._ckpt is not None:
            raise ValueError(
                "trainer.fit was called a second time with one HoldfastCallback: a process is one run. Start another job for it"
            )
        refusals.check_trainer(trainer, HoldfastCallback)
        refusals.check_world(trainer)
        # First: others find their state when they look at it, and what they do at the end of training is no part of the last boundary.
        trainer.callbacks = [self, *(c for c in trainer.callbacks if c is not self)]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._trainer = trainer
        refusals.check_start(trainer)
        self._fed = take_over(trainer, self)
        refusals.check_loaders(trainer)
        self._state = TrainerState(trainer, self, self._fed, other_callbacks="callbacks" in self._allow)
        ckpt = self._ckpt = _Checkpointer(**self._parts(trainer, pl_module))
        self._describe(ckpt, pl_module)
        if ckpt.restore(allow=[a for a in self._allow if a != "callbacks"]):
            self._resumes = self._state.inside_epoch
            if not self._resumes or trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0:
                for fed in self._fed:
                    fed.restored_between_epochs()
            log.info("holdfast: training goes on after boundary %d, epoch %d", ckpt.boundary, trainer.current_epoch)
            if trainer.should_stop:
                log.warning(
                    "holdfast: training had been stopped (trainer.should_stop) when the checkpoint was made, and is over"
                )
        if self._resumes:  # Lightning clears gradients before it begins
            self._gradients = [(p, p.grad) for p in pl_module.parameters() if p.grad is not None]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        state = self._known_state()
        state.begin()
        if self.saves:
            tree.encode(state.state_dict(), "trainer", {})  # refuse now what could not be saved later

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._trained = True
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self._metrics = {}
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            # Lightning has divided it, so that the gradients of a window add up.
            self._metrics["loss"] = loss.detach() * (
                trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            )

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        self._early = not progress.is_last_batch and progress.current.ready < trainer.fit_loop.max_batches
        if self._early:
            self._known_state().note_epoch_end()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The last boundary."""
        if self._trained:
            state = self._known_state()
            state.stopped_early = self._early
            if not state.stopped_early:
                for fed in self._fed:
                    fed.leave()
            self._pass_boundary()
        self._finish()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Also where there was nothing left to train."""
        if self._state is not None and not self._state.begun:
            self._state.end()
            for callback in filter(is_averaging, trainer.callbacks):
                callback.on_train_end(trainer, pl_module)  # the end of training gives the model the average
        self._finish()

    # The loaders' source

    def asked(self) -> None:
        if self._resumes:
            self._resumes = False
            self._go_on()
        elif self._trained and not self._finished:
            self._check_loop()
            if self._before_validation and self._validation_follows():
                self._known().save_next()
            self._pass_boundary()

    def batches(self, loader: Any) -> Iterator[Any]:
        if self._ckpt is None:  # while loaders are made: the length would have been known
            raise UnsupportedState(refusals.NO_LENGTH)
        ckpt = self._ckpt
        if id(loader) in self._begun:
            return ckpt.batches(loader, epochs=1)
        self._begun.add(id(loader))
        return ckpt.batches(loader, epochs=ckpt.passes(loader) + 1)

    def batch(self, loader: Any) -> int:
        return self._known().batch(loader)

    # Inside

    def _parts(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """By their names in the checkpoint."""
        optimizers = [o for o in trainer.optimizers if type(o).__name__ != "_MockOptimizer"]
        averages = [c._average_model for c in trainer.callbacks if is_averaging(c)]
        parts: dict[str, Any] = {"model": trainer.strategy.model}
        parts |= _numbered("optimizer", optimizers) | _numbered(
            "scheduler", [c.scheduler for c in trainer.lr_scheduler_configs]
        )
        parts |= _numbered("average", averages)
        if trainer.precision_plugin.state_dict():
            parts["precision"] = trainer.precision_plugin
        parts |= _numbered("loader", [fed.inside for fed in self._fed])
        if taken := sorted(self._given.keys() & {*parts, "trainer"}):
            raise ValueError(
                f"HoldfastCallback({taken[0]}=...): the Trainer's own is registered under this name; choose another"
            )
        return parts | self._given | {"trainer": self._state}

    def _describe(self, ckpt: _Checkpointer, pl_module: Any) -> None:
        described = dict(self._described)
        if described.get("config") is None and (found := getattr(pl_module, "hparams", None)):
            try:
                ckpt.describe(dict(found))
            except ValueError as e:
                log.warning("holdfast: the module's hparams are not kept with the checkpoints: %s", e)
        if described:
            ckpt.describe(described.pop("config"), **described)

    def _go_on(self) -> None:
        """The restored boundary: Lightning stands where it stood then."""
        self._known_state().go_on()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        self._gradients = []
        bar = getattr(self._trainer, "progress_bar_callback", None)
        if bar is not None:  # it would not be told of this epoch
            bar.on_train_epoch_start(self._trainer, self._trainer.lightning_module)

    def _validation_follows(self) -> bool:
        """Behind the batch that is asked for, as far as that is known now: not if it is the clock that says so, or the end of a loader without a length."""
        trainer, loop = self._trainer, self._trainer.fit_loop.epoch_loop
        every = trainer.val_check_batch
        if not loop._should_check_val_epoch() or every in (None, float("inf")):
            return False
        passed = loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx
        return bool((passed + 2) % every == 0)

    def _pass_boundary(self) -> None:
        logged = {n: v for n, v in self._trainer._logger_connector._callback_metrics.items() if _is_number(v)}
        self._trained = False
        self._known().step(**(logged | self._metrics))

    def _check_loop(self) -> None:
        """The loop stands between two batches. Raises UnsupportedState before the first checkpoint of this process; later, nothing is saved any more."""
        loop = self._trainer.fit_loop
        now = loop.epoch_loop.batch_progress.current
        if now.ready == now.started == now.processed == now.completed == loop._data_fetcher.fetched:
            self._checked = True
            return
        reason = refusals.other_release(
            refusals.version_of(self._trainer),
            f"a training loop that asks for a batch ({loop._data_fetcher.fetched} were asked for) when {now} is its progress",
        )
        if not self._checked:
            raise UnsupportedState(reason)
        self._known().lose(reason)

    def _finish(self) -> None:
        if self._ckpt is not None and not self._finished:
            self._finished = True
            self._ckpt.finish()

    def _known(self) -> _Checkpointer:
        assert self._ckpt is not None
        return self._ckpt

    def _known_state(self) -> TrainerState:
        assert self._state is not None
        return self._state


def _say_if_unused(attached: list[bool]) -> None:
    """The callback is gone, or the process ends."""
    if not attached:
        log.error(
            "holdfast: a HoldfastCallback was made and trainer.fit never called with it: NOTHING WAS SAVED. Pass it on: Trainer(callbacks=[HoldfastCallback()])"
        )


def _numbered(name: str, parts: list[Any]) -> dict[str, Any]:
    """One has the plain name."""
    return {name: parts[0]} if len(parts) == 1 else {f"{name}_{i}": part for i, part in enumerate(parts)}


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, int | float) and not isinstance(value, bool)
