"""The position in a data loader: which batch comes next, in which order of samples (K1, K3, K4).

A shuffling loader draws its order from a generator when its iterator is made. So the generators are captured at that moment, and a resumed run
puts them back, makes the iterator anew, and walks the *indices* up to the position without loading any data; what lay in prefetch is asked for
again and nothing is lost or repeated. A running checksum over the indices shows whether the walk met the same order; if not, `batches` refuses
to go on rather than to lose samples silently.
"""

import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from holdfast import rng
from holdfast.errors import RestoreError

FOREVER = 1 << 62


class Position:
    """Where one loader stands. Main thread only."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.epoch = 0
        """Epochs finished; the number of the one that runs."""
        self.batch = 0
        """Batches of this epoch handed out."""
        self.samples = 0
        self.used = False
        self._inside = False
        """An epoch's iterator exists."""
        self._start: dict[str, Any] | None = None
        """Generators just before that iterator was made; None for a loader that keeps its place by itself."""
        self._reused = False
        """The epoch's iterator is one that workers of an earlier epoch go on serving: then it drew no seed of its own."""
        self._granted = 0
        self._resume = False
        self._check_order = True
        self._indices: _Indices | None = None
        self._crc = 0

    def state(self) -> dict[str, Any]:
        """Plain values and bytes."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "samples": self.samples,
            "inside": self._inside,
            "start": self._start if self._inside else None,
            "reused": self._reused,
            "crc": self._indices.crc_at(self.batch) if self._indices and self._inside else self._crc,
            "owned": [rng.generator_bytes(g) for g in owned_generators(self.loader)],
        }

    def load(self, state: dict[str, Any]) -> None:
        """The next `run` goes on from there."""
        self.epoch, self.batch, self.samples = state["epoch"], state["batch"], state["samples"]
        self._inside, self._start = state["inside"], state["start"]
        self._reused, self._crc, self._resume = state["reused"], state["crc"], True
        _put_owned_back(self.loader, state["owned"])

    def allow_other_order(self) -> None:
        """The user accepts that samples may be lost or repeated once."""
        self._check_order = False

    def run(self, epochs: int | None, generators: dict[str, Any] | None) -> Iterator[Any]:
        """Batches of `epochs` more epochs. `generators` are those of the checkpoint, where training resumes.

        Called again, as by a loop of the user's own over epochs, it grants further epochs: those that a restored run has behind it pass
        without a batch.
        """
        self.used = True
        self._granted += FOREVER if epochs is None else epochs
        while self.epoch < self._granted:
            iterator = self._begin(generators)
            generators = None
            for batch in iterator:
                self.batch += 1
                self.samples += batch_size(batch)
                yield batch
            self.epoch, self.batch, self._inside = self.epoch + 1, 0, False

    def _begin(self, generators: dict[str, Any] | None) -> Iterator[Any]:
        """The epoch's iterator. Where it goes on in an epoch, the generators are put back after it exists, else before (K4)."""
        for target in (self.loader, getattr(self.loader, "sampler", None), getattr(self.loader, "batch_sampler", None)):
            set_epoch = getattr(target, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(self.epoch)  # DistributedSampler: without it the same order in every epoch
        resumed, self._resume = self._resume and self._inside, False
        if resumed:
            iterator = self._go_on()
            if generators is not None:
                rng.put_back(generators)
            return iterator
        if generators is not None:
            rng.put_back(generators)
        self._inside = True
        if hasattr(self.loader, "load_state_dict"):
            self._start = None
            return iter(self.loader)
        self._start = rng.capture() | {"owned": [rng.generator_bytes(g) for g in owned_generators(self.loader)]}
        self._reused = _goes_on_serving(self.loader)
        return self._make(0)

    def _go_on(self) -> Iterator[Any]:
        if self._start is None:  # the loader has been put to its place by its own `load_state_dict`
            return iter(self.loader)
        self._put_start_back(self._start)
        return self._make(self.batch)

    def _put_start_back(self, start: dict[str, Any]) -> None:
        rng.put_back(start)
        _put_owned_back(self.loader, start["owned"])

    def _make(self, skip: int) -> Iterator[Any]:
        if isinstance(self.loader, DataLoader) and not isinstance(self.loader.dataset, IterableDataset):
            return self._skip_indices(self.loader, skip)
        return self._skip_data(iter(self.loader), skip)

    def _skip_data(self, iterator: Iterator[Any], skip: int) -> Iterator[Any]:
        for n in range(skip):
            try:
                next(iterator)
            except StopIteration:
                raise RestoreError(f"the loader ended after {n} batches; the checkpoint stands after {skip}") from None
        return iterator

    def _skip_indices(self, loader: Any, skip: int) -> Iterator[Any]:
        key = "sampler" if loader.batch_sampler is None else "batch_sampler"
        if self._indices is None:
            self._indices = _Indices(loader.__dict__[key])
        self._indices.begin(skip)
        if self._reused and skip:
            self._indices.walk_to_start()  # the original drew the order first, because its iterator existed already
        # DataLoader forbids setting the attribute, and reads it only while the iterator is made.
        loader.__dict__[key] = self._indices
        try:
            iterator: Iterator[Any] = iter(loader)
        finally:
            loader.__dict__[key] = self._indices.sampler
        self._indices.walk_to_start()
        if skip and self._check_order and self._indices.crc_at(skip) != self._crc:
            raise RestoreError(
                f"the order of samples in epoch {self.epoch} is not the one the checkpoint was made with: the data set, the batch size, "
                "the sampler or its seed has changed, or the sampler draws while training does. Put it back, "
                'or accept that samples of this epoch are lost or repeated: ckpt.restore(allow=("sample-order",))'
            )
        return iterator


class _Indices:
    """Stands in for a loader's index sampler while its iterator is made: skips, and keeps a checksum of what it gave out after each batch."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.begin(0)

    def begin(self, skip: int) -> None:
        """The next iterator starts after `skip` batches."""
        self._skip = skip
        self._walk: Iterator[Any] | None = None
        self._given = 0
        self._crcs: deque[int] = deque([0])
        self._first = 0
        """The batch count that `_crcs[0]` belongs to."""

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> "_Indices":
        if self._given:  # persistent workers keep this object: somebody iterates the loader without `batches`
            self.begin(0)
        return self  # also when asked twice before the first index, as iterators with workers do

    def __next__(self) -> Any:
        self.walk_to_start()
        self._given += 1
        return self._step()

    def walk_to_start(self) -> None:
        """Makes the sampler's iterator, which draws the order, and skips. Does nothing the second time."""
        if self._walk is not None:
            return
        self._walk = iter(self.sampler)
        for _ in range(self._skip):
            try:
                self._step()
            except StopIteration:
                return  # the checksum will say so

    def _step(self) -> Any:
        assert self._walk is not None
        indices = next(self._walk)
        self._crcs.append(zlib.crc32(repr(indices).encode(), self._crcs[-1]))
        return indices

    def crc_at(self, batch: int) -> int:
        """Checksum after `batch` batches; older ones are forgotten."""
        while self._first < batch and len(self._crcs) > 1:
            self._crcs.popleft()
            self._first += 1
        return self._crcs[0] if self._first == batch else -1


def owned_generators(loader: Any) -> list[torch.Generator]:
    """Generators that a loader and its samplers draw from, the global one left out, in a fixed order."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    holders = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found: list[torch.Generator] = []
    for holder in holders:
        generator = getattr(holder, "generator", None)
        known = any(generator is g for g in found)
        if isinstance(generator, torch.Generator) and generator is not torch.default_generator and not known:
            found.append(generator)
    return found


def batch_size(batch: Any) -> int:
    """Samples in a batch: the first dimension of its first tensor, the length of its first list, else 1."""
    for _ in range(8):
        if isinstance(batch, torch.Tensor):
            return int(batch.shape[0]) if batch.ndim else 1
        if isinstance(batch, dict) and batch:
            batch = next(iter(batch.values()))
        elif isinstance(batch, list | tuple) and batch:
            if not isinstance(batch[0], torch.Tensor | dict | list | tuple):
                return len(batch)
            batch = batch[0]
        else:
            return 1
    return 1


def _put_owned_back(loader: Any, states: list[bytes]) -> None:
    for generator, state in zip(owned_generators(loader), states, strict=False):
        rng.put_generator_back(generator, state)


def _goes_on_serving(loader: Iterable[Any]) -> bool:
    return bool(getattr(loader, "persistent_workers", False)) and getattr(loader, "_iterator", None) is not None
