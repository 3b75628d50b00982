"""What of the Trainer belongs to the state: how far its loops have come, what it has logged, its callbacks' and data module's own state, what
`on_save_checkpoint` hooks add. Model, optimizers and schedulers are parts of their own.

It is put back in three steps, because Lightning changes some of it at every start: when it is loaded (whoever asks how far training has come is told the
truth from then on), when training begins (after the sanity check, which clears what was logged), and when the first batch is asked for, if that lies
inside an epoch (Lightning has begun the epoch anew by then).
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch

from holdfast import rng
from holdfast.errors import RestoreError, UnsupportedState
from holdfast.integrations.lightning.feed import FedLoader
from holdfast.integrations.lightning.refusals import MID_EPOCH, version_of
from holdfast.loader import owned_generators

log = logging.getLogger("holdfast")
SMALL_BYTES = 4096
"""A tensor up to this size is kept among the plain values: those of metrics come and go, and would change the layout of the image each time."""
_TENSOR = "holdfast.tensor"
AVERAGING = "WeightAveraging"
"""Its hooks exchange the weights in the checkpoint for the average; the average is a part of its own instead, see callback.py."""
SWAPS = "replaces checkpoint[{key!r}], which Holdfast saves by itself and cannot exchange: add what is to be kept under a key of your own"


class TrainerState:
    """Has `state_dict` and `load_state_dict`, and is registered as `trainer`. Main thread only."""

    def __init__(self, trainer: Any, ours: Any, fed: Sequence[FedLoader], *, other_callbacks: bool) -> None:
        """`ours`: the callback that is none of the others. `other_callbacks`: the state of callbacks that are no longer there may be dropped."""
        self._trainer, self._ours, self._fed, self._other_callbacks = trainer, ours, fed, other_callbacks
        self.begun = False
        """Training has begun: hooks of the script's may be called."""
        self.stopped_early = False
        """Training has ended inside an epoch, which Lightning counts as a whole one."""
        self._noted: dict[str, Any] = {}
        """What was logged when such an epoch ended, before Lightning cleared it."""
        self._saved: dict[str, Any] | None = None

    @property
    def inside_epoch(self) -> bool:
        """The state that was loaded lies inside an epoch."""
        return self._saved is not None and bool(self._saved["inside_epoch"])

    # Saving

    def state_dict(self) -> dict[str, Any]:
        trainer = self._trainer
        loop = trainer.fit_loop
        progress = _progress(loop)
        epochs = progress["epoch_progress"]
        if self.stopped_early:
            _count_epoch(epochs, -1)
        hooks: dict[str, Any] = self._added_by_hooks() if self.begun else (self._saved or {}).get("hooks", {})
        datamodule = getattr(trainer, "datamodule", None)
        logged = self._logged()
        state = {
            "lightning": version_of(trainer),
            "ranks": trainer.world_size,
            "progress": progress,
            "at_end": logged["logged"] if self.stopped_early else None,
            "inside_epoch": epochs["current"]["ready"] > epochs["current"]["processed"],
            "batches_that_stepped": loop.epoch_loop._batches_that_stepped,
            "should_stop": bool(trainer.should_stop),
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "callbacks": self._callbacks(),
            "datamodule": datamodule.state_dict() if datamodule is not None else {},
            "hooks": hooks,
            "validation": [[rng.generator_bytes(g) for g in owned_generators(v)] for v in _validation(loop)],
            "over": [fed.is_over for fed in self._fed],
            **(self._noted if self.stopped_early else logged),
        }
        return _packed(state)  # type: ignore[no-any-return]

    def _logged(self) -> dict[str, Any]:
        connector = self._trainer._logger_connector
        logged = {
            "first": connector._first_loop_iter,
            "hook": connector._current_fx,
            "callback": dict(connector._callback_metrics),
            "logged": dict(connector._logged_metrics),
            "bar": dict(connector._progress_bar_metrics),
        }
        sums, metrics = _sums(self._trainer.fit_loop.epoch_loop._results), _metrics(self._trainer.lightning_module)
        return {"logged": logged, "sums": sums, "metrics": metrics}

    def note_epoch_end(self) -> None:
        """Before anything at the end of an epoch; it may be the last, and one that is not whole."""
        self._noted = _packed(self._logged())
        self._noted["logged"]["first"] = self._trainer.fit_loop.epoch_loop.batch_progress.current.ready == 1

    def _callbacks(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for callback in self._others():
            state = callback.state_dict()
            if state:
                found[callback.state_key] = state
        return found

    def _others(self) -> list[Any]:
        return [c for c in self._trainer.callbacks if c is not self._ours]

    def _hooked(self, name: str) -> Iterator[tuple[str, Any]]:
        """Who has a hook of that name of its own."""
        module = self._trainer.lightning_module
        if _overridden(module, name):
            yield type(module).__name__, getattr(module, name)
        for callback in self._others():
            if _overridden(callback, name) and not is_averaging(callback):
                hook = getattr(callback, name)
                yield type(callback).__name__, lambda checkpoint, hook=hook: hook(self._trainer, module, checkpoint)

    def _added_by_hooks(self) -> dict[str, Any]:
        """Raises UnsupportedState where a hook does more than to add."""
        hooked = list(self._hooked("on_save_checkpoint"))
        if not hooked:
            return {}
        checkpoint = self._checkpoint({})
        known, weights = checkpoint.copy(), dict(checkpoint["state_dict"])
        for name, hook in hooked:
            hook(checkpoint)
            if changed := [k for k, v in known.items() if checkpoint.get(k) is not v]:
                raise UnsupportedState(f"{name}.on_save_checkpoint {SWAPS.format(key=changed[0])}")
            if any(weights.get(k) is not v for k, v in checkpoint["state_dict"].items()):
                raise UnsupportedState(f"{name}.on_save_checkpoint {SWAPS.format(key='state_dict')}")
        return {k: v for k, v in checkpoint.items() if k not in known}

    def _checkpoint(self, added: dict[str, Any]) -> dict[str, Any]:
        """As Lightning's hooks know it."""
        trainer = self._trainer
        return added | {
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "pytorch-lightning_version": version_of(trainer),
            "state_dict": trainer.lightning_module.state_dict(),
            "loops": {"fit_loop": _progress(trainer.fit_loop)},
            "callbacks": self._callbacks(),
            "optimizer_states": [o.state_dict() for o in trainer.optimizers],
            "lr_schedulers": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
        }

    # Putting back

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises RestoreError where other things are there than were saved."""
        trainer = self._trainer
        saved = self._saved = _unpacked(state, trainer.strategy.root_device)
        begun = self.inside_epoch and saved["progress"]["epoch_loop.batch_progress"]["current"]["ready"] > 0
        if begun and saved.get("ranks", trainer.world_size) != trainer.world_size:
            # It would end the epoch after as many batches as its loader has for this number of ranks, those of the other number counted in.
            raise RestoreError(
                f"the checkpoint stands inside an epoch that {saved['ranks']} ranks have begun; {trainer.world_size} are here, and Lightning counts the "
                f"batches of an epoch by itself. Go on with {saved['ranks']} ranks to the end of the epoch; between two epochs any number can go on"
            )
        _put_progress(trainer.fit_loop, saved["progress"], saved["lightning"], version_of(trainer))
        trainer.fit_loop.epoch_loop._batches_that_stepped = saved["batches_that_stepped"]
        trainer.should_stop = saved["should_stop"]
        datamodule = getattr(trainer, "datamodule", None)
        if saved["datamodule"]:
            if datamodule is None:
                raise RestoreError(
                    "the checkpoint has the state of a data module, and trainer.fit was given none: give it the same"
                )
            datamodule.load_state_dict(saved["datamodule"])
        self._load_callbacks(saved["callbacks"])
        for _, hook in self._hooked("on_load_checkpoint"):
            hook(self._checkpoint(dict(saved["hooks"])))
        # Nothing of what follows may look like a first start: the sanity check would count its batches.
        trainer.fit_loop.epoch_loop.val_loop._restarting = True

    def _load_callbacks(self, saved: dict[str, Any]) -> None:
        here = {c.state_key: c for c in self._others()}
        gone = sorted(saved.keys() - here.keys())
        if gone and not self._other_callbacks:
            raise RestoreError(
                f"the checkpoint has the state of callbacks that the Trainer does not have: {gone}; it has {sorted(here)}. Put them back with the same "
                'arguments, or accept that their state is dropped: HoldfastCallback(allow=("callbacks",))'
            )
        for key in saved.keys() & here.keys():
            here[key].load_state_dict(saved[key])

    def begin(self) -> None:
        """Training begins, after the sanity check. Raises UnsupportedState for what hooks add that cannot be saved."""
        trainer, saved = self._trainer, self._saved
        trainer.fit_loop.epoch_loop.val_loop._restarting = False
        self.begun = True
        if saved is None:
            return
        self._put_logged_back(saved["logged"])
        if self.inside_epoch:
            trainer.fit_loop._restart_stage = MID_EPOCH  # hooks for the start of the epoch have been called

    def end(self) -> None:
        """There was nothing left to train: who asks is told what was so at the end."""
        saved = self._saved
        if saved is None:
            return
        self._put_logged_back(saved["at_end"] or saved["logged"])
        if saved["at_end"] is not None:
            epochs = saved["progress"]["epoch_progress"]
            _count_epoch(epochs, 1)
            self._trainer.fit_loop.epoch_progress.load_state_dict(epochs)

    def go_on(self) -> None:
        """The first batch is asked for, inside an epoch: everything is as it was when it was asked for then."""
        trainer, saved = self._trainer, self._saved
        assert saved is not None
        loop = trainer.fit_loop
        _put_progress(loop, saved["progress"], saved["lightning"], version_of(trainer))
        loop._data_fetcher.fetched = loop.epoch_loop.batch_progress.current.ready
        trainer.accumulate_grad_batches = saved["accumulate_grad_batches"]
        logged, connector = saved["logged"], trainer._logger_connector
        connector._first_loop_iter, connector._current_fx = logged["first"], logged["hook"]
        self._put_logged_back(logged)
        _put_sums_back(trainer, saved["sums"])
        _put_metrics_back(trainer.lightning_module, saved["metrics"])
        for loader, states in zip(_validation(loop), saved["validation"], strict=False):
            for generator, state in zip(owned_generators(loader), states, strict=False):
                rng.put_generator_back(generator, state)
        for fed, over in zip(self._fed, saved["over"], strict=False):
            if over:
                fed.end()

    def _put_logged_back(self, logged: dict[str, Any]) -> None:
        connector = self._trainer._logger_connector
        connector._callback_metrics = dict(logged["callback"])
        connector._logged_metrics = dict(logged["logged"])
        connector._progress_bar_metrics = dict(logged["bar"])


def is_averaging(callback: Any) -> bool:
    return any(base.__name__ == AVERAGING for base in type(callback).__mro__)


def _overridden(target: Any, name: str) -> bool:
    """Not Lightning's own empty hook."""
    home = getattr(getattr(target, name, None), "__module__", "") or ""
    return home not in (
        "",
        *(
            f"{root}.{part}"
            for root in ("lightning.pytorch", "pytorch_lightning")
            for part in ("callbacks.callback", "core.hooks")
        ),
    )


def _counters(loop: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The progress objects of a loop and of those inside it, by their names."""
    for name, value in vars(loop).items():
        if is_dataclass(value) and hasattr(value, "load_state_dict"):
            yield path + name, value
        elif hasattr(value, "restarting") and name != "trainer":
            yield from _counters(value, f"{path}{name}.")


def _progress(loop: Any) -> dict[str, Any]:
    return {name: counter.state_dict() for name, counter in _counters(loop)}


def _put_progress(loop: Any, saved: dict[str, Any], there: str, here: str) -> None:
    counters = dict(_counters(loop))
    if counters.keys() != saved.keys():
        raise RestoreError(
            f"Lightning {here} counts {sorted(counters.keys() - saved.keys())} that the checkpoint, made with {there}, does not have; the checkpoint has "
            f"{sorted(saved.keys() - counters.keys())}. Go on with Lightning {there}"
        )
    for name, counter in counters.items():
        counter.load_state_dict(saved[name])


def _count_epoch(epochs: dict[str, Any], by: int) -> None:
    for count in (epochs["total"], epochs["current"]):
        count["processed"] += by
        count["completed"] += by


def _validation(loop: Any) -> list[Any]:
    combined = loop.epoch_loop.val_loop._combined_loader
    return list(combined.flattened) if combined is not None else []


def _sums(results: Any) -> dict[str, Any]:
    """Of each value that is logged: its meaning, and what has come together of it in this epoch. Metrics of torchmetrics are parts of the module."""
    found: dict[str, Any] = {}
    for key, result in results.items():
        meta = result.meta
        if not result.is_tensor or meta.sync._group is not None:
            continue
        plain = (
            "fx",
            "name",
            "prog_bar",
            "logger",
            "on_step",
            "on_epoch",
            "enable_graph",
            "add_dataloader_idx",
            "dataloader_idx",
            "metric_attribute",
        )
        found[key] = {
            "meta": {name: getattr(meta, name) for name in plain},
            "reduce": [meta.reduce_fx.__module__, meta.reduce_fx.__name__],
            "sync": {"_should": meta.sync._should, "rank_zero_only": meta.sync.rank_zero_only, "_op": meta.sync._op},
            "state": dict(result.metric_state),
            "last": result._forward_cache,
            "has_reset": result.has_reset,
            "updates": result._update_count,
        }
    return found


def _put_sums_back(trainer: Any, saved: dict[str, Any]) -> None:
    results = trainer.fit_loop.epoch_loop._results
    kinds: Any = sys.modules[type(results).__module__]
    for key, entry in saved.items():
        home, name = entry["reduce"]
        reduce = getattr(sys.modules["builtins"] if home == "builtins" else torch, name)
        meta = kinds._Metadata(**entry["meta"], reduce_fx=reduce)
        meta.sync = kinds._Sync(fn=trainer.strategy.reduce, **entry["sync"])
        result = kinds._ResultMetric(meta, True)
        result.to(trainer.strategy.root_device)
        for state, value in entry["state"].items():
            setattr(result, state, value)
        result._forward_cache, result.has_reset, result._update_count = (
            entry["last"],
            entry["has_reset"],
            entry["updates"],
        )
        results[key] = result


def _metrics_of(module: Any) -> Iterator[tuple[str, Any]]:
    for name, part in module.named_modules():
        if hasattr(part, "metric_state") and hasattr(part, "_defaults"):
            yield name, part


def _metrics(module: Any) -> dict[str, Any]:
    """What torchmetrics have gathered, which is no part of a module's state_dict."""
    return {n: {"state": dict(m.metric_state), "updates": m._update_count} for n, m in _metrics_of(module)}


def _put_metrics_back(module: Any, saved: dict[str, Any]) -> None:
    for name, metric in _metrics_of(module):
        if name in saved:
            for key, value in saved[name]["state"].items():
                setattr(metric, key, value)
            metric._update_count, metric._computed = saved[name]["updates"], None


def _packed(value: Any) -> Any:
    """Small tensors as bytes."""
    if isinstance(value, torch.Tensor):
        plain = (
            type(value) in (torch.Tensor, torch.nn.Parameter)
            and value.layout is torch.strided
            and not value.is_quantized
        )
        if not plain or value.numel() * value.element_size() > SMALL_BYTES or value.dtype not in _DTYPES:
            return value
        at_hand = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        data = at_hand.view(torch.uint8).numpy().tobytes() if at_hand.numel() else b""
        return {_TENSOR: data, "dtype": value.dtype, "shape": list(value.shape), "device": value.device.type}
    if isinstance(value, Mapping) and type(value) is dict:
        return {k: _packed(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_packed(v) for v in value)
    return value


def _unpacked(value: Any, device: torch.device) -> Any:
    if type(value) is dict and _TENSOR in value:
        data = bytearray(value[_TENSOR])
        tensor = torch.frombuffer(data, dtype=value["dtype"]).clone() if data else torch.empty(0, dtype=value["dtype"])
        return tensor.reshape(value["shape"]).to(device if value["device"] == device.type else "cpu")
    if type(value) is dict:
        return {k: _unpacked(v, device) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_unpacked(v, device) for v in value)
    return value


_DTYPES = frozenset(
    {
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    }
)  # fmt: skip
