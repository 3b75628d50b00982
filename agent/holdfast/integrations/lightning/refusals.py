"""What the callback refuses, each by name and with a remedy, before anything is restored.

Lightning tells nobody the place where training stands, so the callback reads and writes some of its insides. `check_seam` looks whether they are what they
were in the releases this was tried with, so that another release is refused at its start and not found out by a run that went wrong.
"""

import inspect
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from holdfast.errors import UnsupportedState
from holdfast_api import names

log = logging.getLogger("holdfast")
TRIED = "2.6"
REMEDY = (
    f"Install 'lightning>={TRIED},<2.7', or let the script save its own files in directory mode (docs/directory.md)"
)

SEAM = {
    "": (
        "fit_loop strategy callbacks optimizers lr_scheduler_configs precision_plugin _logger_connector should_stop accumulate_grad_batches "
        "reload_dataloaders_every_n_epochs ckpt_path world_size val_check_batch check_val_every_n_epoch"
    ),
    "strategy": "process_dataloader model lightning_module reduce root_device",
    "fit_loop": "setup_data epoch_loop epoch_progress max_batches _combined_loader _data_fetcher _restart_stage restarted_mid_epoch",
    "fit_loop.epoch_loop": (
        "batch_progress scheduler_progress automatic_optimization manual_optimization val_loop _batches_that_stepped _results _should_check_val_epoch "
        "total_batch_idx batch_idx"
    ),
    "fit_loop.epoch_loop.val_loop": "_restarting _combined_loader batch_progress",
    "fit_loop.epoch_loop.batch_progress.current": "ready started processed completed",
    "_logger_connector": "_first_loop_iter _current_fx _callback_metrics _logged_metrics _progress_bar_metrics",
}
"""By its path below the Trainer, what each object must have."""
_ABSENT = object()
NO_LENGTH = (
    "the training loader has no length, and Lightning then reads one batch ahead of training, which a resumed run would lose. Give the data set a __len__, or "
    "say how long an epoch is: Trainer(limit_train_batches=N)"
)
MID_EPOCH = "restarted_mid_epoch"

CALLBACKS = {
    "StochasticWeightAveraging": "exchanges the schedulers in the middle of training. Use WeightAveraging or EMAWeightAveraging",
    "BaseFinetuning": "adds parameter groups to the optimizer in the middle of training. Give it all groups in configure_optimizers; freeze by requires_grad",
    "ModelPruning": "gives the model other parameters in the middle of training. Prune before training, or in a run of its own",
    "BatchSizeFinder": "would search again at every start, and change the batch size of a run that is resumed. Search in a run of its own",
    "LearningRateFinder": "would search again at every start, and change the learning rate of a run that is resumed. Search in a run of its own",
    "OnExceptionCheckpoint": "makes trainer.fit load the file that it wrote. Holdfast has a newer checkpoint of the same run: leave it out",
}
"""By the name of the class or a base of it, why."""
STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")


def version_of(trainer: Any) -> str:
    for base in type(trainer).__mro__:
        version = getattr(sys.modules.get(base.__module__.partition(".")[0]), "__version__", None)
        if base.__name__ == "Trainer" and isinstance(version, str):
            return version
    return "of an unknown version"


def check_trainer(trainer: Any, ours: type) -> None:
    """Raises ValueError for what is asked for wrongly, UnsupportedState for what cannot be saved."""
    if sum(isinstance(c, ours) for c in trainer.callbacks) > 1:
        raise ValueError(
            "the Trainer has two HoldfastCallbacks; a run has one state and one agent: leave one of them out"
        )
    check_seam(trainer)
    for problem in (*_of_the_start(trainer), *_of_callbacks(trainer), *_of_the_strategy(trainer)):
        raise UnsupportedState(problem)


def check_seam(trainer: Any) -> None:
    """Raises UnsupportedState where something of Lightning's is not there, or does not mean what it did."""
    version = version_of(trainer)
    for path, wanted in SEAM.items():
        target: Any = trainer
        for step in filter(None, path.split(".")):
            target = getattr(target, step)
        for name in wanted.split():
            if inspect.getattr_static(target, name, _ABSENT) is _ABSENT:
                raise UnsupportedState(other_release(version, f"no trainer.{path}{'.' if path else ''}{name}"))
    loop = trainer.fit_loop
    before, loop._restart_stage = loop._restart_stage, MID_EPOCH
    known, loop._restart_stage = loop.restarted_mid_epoch, before
    if known is not True:
        raise UnsupportedState(other_release(version, f"another sense of fit_loop._restart_stage = {MID_EPOCH!r}"))
    if not version.startswith(f"{TRIED}."):
        log.warning("holdfast: Lightning %s has what is needed of it, but has not been tried; %s has", version, TRIED)


def other_release(version: str, what: str) -> str:
    return f"Lightning {version} has {what}, by which training is put back to its place; Holdfast's callback has been tried with {TRIED}. {REMEDY}"


def check_start(trainer: Any) -> None:
    """Once Lightning has looked for a file to load. Raises UnsupportedState."""
    if trainer.ckpt_path:
        raise UnsupportedState(
            f"trainer.fit(ckpt_path={str(trainer.ckpt_path)!r}) beside HoldfastCallback: two checkpoints cannot both be restored, and Holdfast's is the newer. "
            "Leave ckpt_path out; to begin from that file make a checkpoint of it: holdfast import --from FILE (docs/interoperability.md)"
        )


def check_loaders(trainer: Any) -> None:
    """Once they have been made. Raises UnsupportedState."""
    if type(trainer.fit_loop._data_fetcher).__name__ == "_DataLoaderIterDataFetcher":
        raise UnsupportedState(
            "training_step(self, dataloader_iter) reads batches by itself, so nobody knows which were trained on: take the batch as an argument, "
            "training_step(self, batch, batch_idx)"
        )


def check_world(trainer: Any) -> None:
    """Raises ValueError where the agent has started another number of ranks than the Trainer has."""
    started = os.environ.get("WORLD_SIZE", "1")
    if os.environ.get(names.ENV_SOCKET) and started.isdecimal() and int(started) != trainer.world_size:
        raise ValueError(
            f"the agent has started {started} ranks, and the Trainer has {trainer.world_size}: Trainer(strategy='ddp', devices=<ranks per machine>, "
            "num_nodes=<machines>), or processesPerWorker and workers in the TrainingJob"
        )


def _of_the_start(trainer: Any) -> Iterator[str]:
    if trainer.reload_dataloaders_every_n_epochs:
        yield (
            f"Trainer(reload_dataloaders_every_n_epochs={trainer.reload_dataloaders_every_n_epochs}) makes new loaders, whose order cannot be met again. Keep "
            "one loader, and choose by epoch in its sampler or data set (set_epoch)"
        )


def _of_callbacks(trainer: Any) -> Iterator[str]:
    for callback in trainer.callbacks:
        for base in type(callback).__mro__:
            if base.__name__ in CALLBACKS:
                yield f"the callback {type(callback).__name__} {CALLBACKS[base.__name__]}"


def _of_the_strategy(trainer: Any) -> Iterator[str]:
    strategy, kind = trainer.strategy, type(trainer.strategy).__name__
    if kind not in STRATEGIES:
        yield (
            f"the strategy {kind} has not been tried, so nobody knows whether a resumed run is the same run; known are one device and 'ddp'. FSDP2 "
            "and tensor parallel: a loop of your own with fully_shard (docs/library.md); DeepSpeed and others: directory mode (docs/directory.md)"
        )
    if getattr(strategy, "_start_method", "popen") != "popen":
        yield "the strategy starts its own processes; the agent has started the ranks already: Trainer(strategy='ddp')"
    if getattr(strategy, "_model_averager", None) is not None or getattr(strategy, "_model_averaging_period", None):
        yield "DDPStrategy(model_averaging_period=...) lets ranks go apart and keeps a count that it gives nobody: leave it out"
