"""What `attach` refuses, each by the name of the setting and with a remedy, before anything is restored.

The Trainer has no interface for what is done here: methods of the one object are wrapped, and it matters in which order its loop uses what. `check_seam` looks
whether all that is as it was in the releases this was tried with, so that another release is refused at its start and not found out by a run that went wrong.
"""

import inspect
import logging
import os
import sys
from collections.abc import Collection, Iterator
from typing import Any

from holdfast.errors import UnsupportedState
from holdfast_api import names

log = logging.getLogger("holdfast")
TRIED = "5.24"
DIRECTORY_MODE = "let the Trainer save for itself, in directory mode (docs/directory.md)"

SEAM = {
    "train": ("resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
    "set_initial_training_values": ("args", "dataloader"),
    "_init_training_state": (
        "max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial",
    ),
    "_prepare_for_training": ("max_steps", "train_dataloader", "resume_from_checkpoint"),
    "_run_epoch": (
        "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial", "ignore_keys_for_eval", "start_time",
        "resume_from_checkpoint", "epochs_trained", "steps_trained_in_current_epoch",
    ),
    "_load_rng_state": ("checkpoint",),
    "_evaluate": ("trial", "ignore_keys_for_eval", "skip_scheduler"),
    "_maybe_log_save_evaluate": (
        "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time", "learning_rate",
    ),
    "_finalize_training": ("trial", "num_train_samples", "start_time"),
}  # fmt: skip
"""The wrapped methods and their parameters."""
ORDER = {
    "_inner_training_loop": (
        "set_initial_training_values", "_init_training_state", "_prepare_for_training", "_initial_num_input_tokens_seen", "_initial_global_step",
        "_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "on_train_begin", "_evaluate", "on_epoch_begin", "_run_epoch", "_finalize_training",
    ),
    "_run_epoch": (
        "skip_first_batches", "_load_rng_state", "get_batch_samples", "on_step_begin", "on_step_end", "_maybe_log_save_evaluate", "on_epoch_end",
    ),
}  # fmt: skip
"""What those methods use, in the order in which they first do."""
SAVES = "save-strategy"
CALLBACKS = "callbacks"
OWN_WORDS = (SAVES, CALLBACKS)
"""Allowances that are `attach`'s own; the others are `restore`'s."""
NO_STATE = {
    "adalomo": "updates in the backward pass and keeps its state to itself",
    "lomo": "updates in the backward pass, past optimizer.step()",
    "layerwise": "has one optimizer per parameter, each hidden in a hook, and gives their state to nobody",
}
"""By the end of `optim`, why."""


def version() -> str:
    return str(getattr(sys.modules.get("transformers"), "__version__", "of an unknown release"))


def check_trainer(trainer: Any, allow: Collection[str]) -> None:
    """Raises ValueError for settings that cannot be served, UnsupportedState for what cannot be saved or is not known."""
    check_seam(type(trainer))
    check_settings(trainer, allow)
    check_world(trainer.args)


def check_seam(kind: Any) -> None:
    """Raises UnsupportedState where the Trainer is not the one that is known, or a subclass has a loop of its own."""
    changed = [] if hasattr(sys.modules.get("transformers.trainer"), "skip_first_batches") else ["skip_first_batches"]
    for name, wanted in SEAM.items():
        method = getattr(kind, name, None)
        if method is None or tuple(inspect.signature(method).parameters)[1:] != wanted:
            changed.append(f"{kind.__name__}.{name}")
    for name, used in ORDER.items():
        code = getattr(inspect.unwrap(getattr(kind, name, len)), "__code__", None)
        if tuple(n for n in getattr(code, "co_names", ()) if n in used) != used:
            changed.append(f"{kind.__name__}.{name}")
    if changed:
        raise UnsupportedState(
            f"transformers {version()} has another Trainer than the one that Holdfast knows ({', '.join(dict.fromkeys(changed))}): it could not be resumed "
            f"exactly. Use 'transformers>={TRIED},<{_next(TRIED)}' and leave these methods as they are, or {DIRECTORY_MODE}"
        )
    if not version().startswith(f"{TRIED}."):
        log.warning("holdfast: tried with transformers %s; this is %s, whose Trainer looks the same", TRIED, version())


def check_settings(trainer: Any, allow: Collection[str]) -> None:
    """Also at the start of `train`: they may have been changed since `attach`. Raises ValueError, UnsupportedState."""
    for problem in _of_settings(trainer.args, allow):
        raise ValueError(problem)
    for problem in _of_what_is_not_tried(trainer):
        raise UnsupportedState(problem)


def check_world(args: Any) -> None:
    """Raises ValueError where the agent has started another number of ranks than the Trainer has."""
    started = os.environ.get("WORLD_SIZE", "1")
    if os.environ.get(names.ENV_SOCKET) and started.isdecimal() and int(started) != args.world_size:
        raise ValueError(
            f"the agent has started {started} ranks, and the Trainer has {args.world_size}. The Trainer takes part where RANK, LOCAL_RANK, WORLD_SIZE, "
            "MASTER_ADDR and MASTER_PORT are set, which the agent does: start the script itself, without torchrun or accelerate launch"
        )


def _of_settings(args: Any, allow: Collection[str]) -> Iterator[str]:
    saves = str(getattr(args.save_strategy, "value", args.save_strategy))
    if saves != "no" and SAVES not in allow:
        yield (
            f"save_strategy={saves!r}: the Trainer would write checkpoints of its own beside Holdfast's, while training waits, and none of them is ever "
            'resumed from. Set save_strategy="no"; or, if something else reads them (load_best_model_at_end does, and then output_dir must be on a volume that '
            f'survives the machine), accept them: attach(trainer, allow=("{SAVES}",))'
        )
    if args.auto_find_batch_size:
        yield (
            "auto_find_batch_size=True starts training again with another batch size in the middle of a run, whose place in the data is then unknown: leave it "
            "out and set per_device_train_batch_size"
        )
    if args.ignore_data_skip:
        yield "ignore_data_skip=True trains on the samples of an epoch again after a resume: leave it out; Holdfast skips them without reading them"
    if getattr(args, "dataloader_in_order", True) is False and args.dataloader_num_workers:
        yield (
            "dataloader_in_order=False: after so many batches nobody can say which samples they held, and a resumed run would lose or repeat some. Leave it out"
        )
    optim = str(getattr(args.optim, "value", args.optim))
    for end, why in NO_STATE.items():
        if optim.endswith(end):
            yield f"optim={optim!r} {why}: it cannot be saved. Choose another, or {DIRECTORY_MODE}"
            return


def _of_what_is_not_tried(trainer: Any) -> Iterator[str]:
    args = trainer.args
    tried = {
        "DeepSpeed (deepspeed=...)": trainer.is_deepspeed_enabled,
        "FSDP (fsdp=...)": trainer.is_fsdp_enabled or bool(getattr(trainer, "is_fsdp_xla_enabled", False)),
        "a model that transformers has spread over devices (tp_plan, device_map)": bool(getattr(trainer, "is_distributed_loading_by_transformers", False))
        or bool(getattr(trainer, "is_model_parallel", False)),
        "parallelism_config": getattr(args, "parallelism_config", None) is not None,
        f"parallel_mode={args.parallel_mode}": str(getattr(args.parallel_mode, "value", args.parallel_mode))
        not in ("not_parallel", "not_distributed", "distributed"),
    }  # fmt: skip
    for what, there in tried.items():
        if there:
            yield (
                f"the Trainer with {what} has not been tried, so nobody knows whether a resumed run is the same run. Known are one process, DataParallel and "
                f"DistributedDataParallel; FSDP2 and tensor parallel in a loop of your own (docs/library.md); or {DIRECTORY_MODE}"
            )


def _next(release: str) -> str:
    major, minor = release.split(".")
    return f"{major}.{int(minor) + 1}"
