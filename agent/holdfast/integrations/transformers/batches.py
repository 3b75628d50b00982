"""Stands between the training loader and the Trainer's loop: hands out, for each epoch, the batches that have not been trained on.

Accelerate's loader reads one batch ahead of training. A batch that was read and not trained on would have to be read again after a resume, when what it drew
from the random generators has been drawn already; so the plain loader inside is read instead, and no batch before its turn.
"""

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from holdfast import rng
from holdfast.checkpointer import Checkpointer
from holdfast.integrations.accelerate import PreparedLoader


class Batches:
    """The loader of one epoch, as the Trainer's loop sees it; but for being iterated over it is that loader."""

    def __init__(
        self, ckpt: Checkpointer, loader: Any, source: Any, grants: int, behind: int, *, resumed: bool, over: bool
    ) -> None:
        """`source`: what is read (`source_of`). `grants`: passes over it that are asked for now. `behind`: batches of this epoch that earlier lives have
        trained on. `resumed`: this process begins in this epoch. `over`: the epoch had been given up at the boundary that was restored."""
        self._ckpt, self._loader, self._source, self._grants = ckpt, loader, source, grants
        self.position = behind
        """Batches of this epoch that were handed out, by earlier lives too."""
        self._resumed, self._over = resumed, over
        self._iterator: Iterator[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        if self._over:
            return iter(())
        self._iterator = self._read()
        if not self._resumed:
            return self._counted(self._iterator)
        # At once: the generators are put back when the iterator is made, and what follows draws from them, even if no batch is left.
        return self._counted(chain(list(islice(self._iterator, 1)), self._iterator))

    def leave(self, *, stops: bool) -> None:
        """The Trainer has done with this epoch. `stops`: with training as well, and then a pass that is not over can be gone on with."""
        if self._iterator is not None:
            if self._whole():
                next(self._iterator, None)
            self._iterator.close()  # type: ignore[attr-defined]
        elif self._over and not stops:
            # The pass was left before the restart: it is left again, without a trace.
            before = rng.capture()
            iterator = self._read()
            next(iterator, None)
            iterator.close()  # type: ignore[attr-defined]
            rng.put_back(before)

    def _whole(self) -> bool:
        with contextlib.suppress(TypeError, NotImplementedError):  # without a length it is not known to be at its end
            return self.position >= len(self._source)
        return False

    def _counted(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            self.position += 1
            yield batch

    def _read(self) -> Iterator[Any]:
        batches = self._ckpt.batches(self._source, epochs=self._grants)
        if self._source is getattr(self._loader, "base_dataloader", None):
            yield from _as_prepared(self._loader, batches)
        else:
            yield from batches


def _as_prepared(loader: Any, batches: Iterator[Any]) -> Iterator[Any]:
    """What accelerate's loader does around the plain one inside it."""
    tools: Any = sys.modules["accelerate.utils"]
    if loader.rng_types is not None:
        tools.synchronize_rng_states(loader.rng_types, loader.synchronized_generator)
    loader.begin()
    try:
        for batch in batches:
            moved = loader.device is not None
            yield tools.send_to_device(batch, loader.device, non_blocking=loader._non_blocking) if moved else batch
    finally:
        loader.end()


def source_of(loader: Any) -> Any:
    """What is read in the loader's place: the plain one inside that which Accelerate has prepared; one that hands out batches which another rank has read is
    itself read, and its position kept by counting."""
    name = type(loader).__name__
    if name == "DataLoaderShard" and not loader.skip_batches:
        return loader.base_dataloader
    return PreparedLoader(loader) if name in ("DataLoaderShard", "DataLoaderDispatcher") else loader


def leave_skipping_to_us() -> None:
    """The Trainer resumes by a loader that begins later (`skip_first_batches`). Ours does so by itself; for all others the function is what it was."""
    module: Any = sys.modules["transformers.trainer"]
    if hasattr(module.skip_first_batches, "holdfast"):
        return
    original = module.skip_first_batches

    @functools.wraps(original)
    def skip_first_batches(dataloader: Any, num_batches: int = 0) -> Any:
        return dataloader if type(dataloader) is Batches else original(dataloader, num_batches)

    skip_first_batches.holdfast = True  # type: ignore[attr-defined]
    module.skip_first_batches = skip_first_batches
