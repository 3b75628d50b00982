"""The position in a data loader: which batch comes next, in which order of samples (K1, K3, K4).

A shuffling loader draws its order from a generator when its iterator is made. So the generators are captured at that moment, and a resumed run
puts them back, makes the iterator anew, and walks the *indices* up to the position without loading any data; what lay in prefetch is asked for
again and nothing is lost or repeated. A running checksum over the indices shows whether the walk met the same order; if not, `batches` refuses
to go on rather than to lose samples silently.

A pass over the loader is an epoch, however it ends. Who leaves the loop (`break`, an exception) and asks for batches again gets the next pass, as
from a plain DataLoader. Until then, or until a boundary is passed outside the loop, the place where it was left is kept: a run that ends there
can be gone on with.
"""

import logging
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import isgenerator
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from holdfast import rng, tree
from holdfast.errors import RestoreError, UnsupportedState
from holdfast.filling import cloned
from holdfast.ledger import Ledger
from holdfast.part import Leaves, freeze
from holdfast.redistribute import Rest, redistributed, together
from holdfast.stateful_part import StatefulPart
from holdfast_rank.image import Tier

log = logging.getLogger("holdfast")
FOREVER = 1 << 40
ACCEPT = 'Put it back, or accept that samples of this epoch are lost or repeated: ckpt.restore(allow=("sample-order",))'


class Position:
    """Where one loader stands. Main thread only."""

    def __init__(self, loader: Any) -> None:
        """Raises UnsupportedState for a loader that hands out batches in the order in which they happen to be ready."""
        if getattr(loader, "in_order", True) is False and getattr(loader, "num_workers", False):
            raise UnsupportedState(
                f"the loader ({type(loader).__name__}) has in_order=False: after so many batches nobody can say which samples they held, and a resumed run "
                "would lose or repeat some. Leave in_order out"
            )
        data = getattr(loader, "dataset", None)
        if hasattr(loader, "load_state_dict") and isinstance(data, IterableDataset) and not hasattr(data, "state_dict"):
            raise UnsupportedState(
                f"{type(loader).__name__} keeps its place by its data set's, and {type(data).__name__} is an iterable data set without state_dict and "
                "load_state_dict: give it both, or read it by a plain DataLoader, which is read again up to the position"
            )
        if hasattr(loader, "load_state_dict") and _forgets_its_buffer(data):
            raise UnsupportedState(
                f"{type(loader).__name__} keeps its place by its data set's, and {type(data).__name__} is a stream that was shuffled through a buffer: "
                "its state leaves the samples in the buffer out, and they would be lost after a resume. Read it by a plain DataLoader, which is read again up "
                "to the position, or shuffle before it becomes a stream"
            )
        self.loader = loader
        self.epoch = 0
        """Passes that are over, those that were left included; the number of the one that runs."""
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
        """Passes asked for by the calls of `run` in this process."""
        self._spent = 0
        """How many of those, counted from the very first start, are over or were given up: who leaves a loop over several leaves all of them."""
        self.skipped = False
        """A call of `run` had nothing to hand out, because what it asked for was over before the restart."""
        self._left = False
        """The loop over the pass at hand was left, and no boundary was passed since."""
        self._abandoned = False
        """The newest pass was left and is over. A loader that keeps its own place still stands in it."""
        self._reader = 0
        """The number of the call of `run` that hands out batches."""
        self._resume = False
        self._check_order = True
        self._rest = False
        """The pass at hand is the rest of one that another number of ranks had begun; `batch` counts from there."""
        self._together = together(loader)
        """Samples in a batch of all ranks together."""
        self._indices: _Indices | None = None
        self._crc = 0
        self._ledger = Ledger(loader)
        self._boundary = self._here()
        self._own: Any = None
        """What a loader that keeps its own place said at the last boundary; None if it is not read by `run`: then only it knows its state."""
        self._given: Any = None
        """The state that it was restored from."""

    def own_state(self) -> Any:
        """Of a loader that keeps its own place: where it stood at the last boundary. Of anything else that can be iterated over and has a state (a
        container of schedulers, a loader that the script reads by itself): its state now."""
        if self._own is not None:
            return self._own
        if _has_not_begun(self.loader):
            return self._given
        if not self._resume or not isinstance(self.loader, DataLoader):
            return freeze(self.loader.state_dict())
        before = torch.get_rng_state()  # it may make an iterator anew for it, which draws a seed (K4)
        try:
            return freeze(self.loader.state_dict())
        finally:
            torch.set_rng_state(before)

    def load_own_state(self, state: Any) -> None:
        """Raises RestoreError where the loader does not take it. None: it had not begun."""
        if state is None:
            return
        self._own = self._given = freeze(state)
        try:
            self.loader.load_state_dict(state)
        except Exception as e:
            raise RestoreError(
                f"the loader ({type(self.loader).__name__}) does not take its place back: {type(e).__name__}: {e}. Probably its data has changed: fewer files "
                "or shards, another number of worker processes, another release of its library. Put back what it was made with"
            ) from e

    def state(self) -> dict[str, Any]:
        """The position at the last boundary (I1): a batch that was handed out since then will be handed out again. Plain values and bytes."""
        return self._boundary | {"owned": [rng.generator_bytes(g) for g in owned_generators(self.loader)]}

    def load(self, state: dict[str, Any]) -> None:
        """The next `run` goes on from there. `state` may be that of all ranks of a checkpoint of another number of them (reshard.py). Raises RestoreError."""
        if "ranks" in state:
            state = redistributed(state["ranks"], self.loader, state["rank"], state["world"], restart=state["restart"])
        self._rest = state.get("rest", False)
        self.epoch, self.batch, self.samples = state["epoch"], state["batch"], state["samples"]
        # The same number until a loop was left; older checkpoints made after that cannot be resumed from anyway.
        self._spent = state.get("spent", self.epoch)
        self._inside, self._start = state["inside"], state["start"]
        self._reused, self._crc, self._resume = state["reused"], state["crc"], True
        self._abandoned = state.get("abandoned", False)
        self.used = self.samples > 0
        self._ledger.load(state.get("ledger"))
        self._boundary = self._here()  # what the loader has just been given is not asked back
        _put_owned_back(self.loader, state["owned"])

    def at_boundary(self) -> None:
        """A boundary is passed. After a loop that was left it shows that training goes on elsewhere: that pass is over."""
        if self._left:
            self._end_pass(left=True)
        self.note_boundary()

    def note_boundary(self) -> None:
        """`state` is from now on the position at hand."""
        self._boundary = self._here()
        reads = self._reader and hasattr(self.loader, "load_state_dict") and not _has_not_begun(self.loader)
        self._own = freeze(self.loader.state_dict()) if reads else None

    def allow_other_order(self) -> None:
        """The user accepts that samples may be lost or repeated once."""
        self._check_order = False

    def run(
        self,
        epochs: int | None,
        generators: Callable[[], dict[str, Any] | None],
        ended: Callable[[], None] = lambda: None,
    ) -> Iterator[Any]:
        """Batches of `epochs` more epochs. `generators` gives those of the checkpoint, once, where training resumes. `ended` is called when a pass
        ends, or is left, and no batch was handed out since the last boundary: before the script does anything else.

        Called again, as by a loop of the user's own over epochs, it grants further epochs: those that a restored run has behind it pass
        without a batch, and must not take the generators with them.
        """
        self.used = True
        self._reader += 1
        reader = self._reader
        if self._inside and not self._resume:
            self._end_pass(left=True)
        self._granted += FOREVER if epochs is None else epochs
        self.skipped = self.skipped or self._spent >= self._granted
        while self._spent < self._granted:
            iterator = self._begin(generators)
            whole = self.batch == 0 and not self._rest
            try:
                for batch in iterator:
                    self.batch += 1
                    samples = batch_size(batch)
                    self.samples += samples
                    self._ledger.take(self._indices_of(self.batch), samples)
                    yield batch
                    self._must_be_reader(reader)
            except BaseException as e:  # GeneratorExit too: `break`
                self._left = self._left or reader == self._reader
                if isinstance(e, GeneratorExit) and reader == self._reader and self._at_boundary:
                    ended()
                raise
            if whole and self.batch == 0:
                self._say_empty(epochs)
            if self._at_boundary:
                ended()
            self._end_pass(left=False)

    @property
    def _at_boundary(self) -> bool:
        """No batch was handed out since the last boundary."""
        last = self._boundary
        return self._inside and (last["inside"], last["epoch"], last["batch"]) == (True, self.epoch, self.batch)

    def _here(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "spent": self._spent,
            "batch": self.batch,
            "samples": self.samples,
            "inside": self._inside,
            "start": self._start if self._inside else None,
            "reused": self._reused,
            "abandoned": self._abandoned,
            "crc": self._indices.crc_at(self.batch) if self._indices is not None and self._inside else self._crc,
            "ledger": self._ledger.state(),
            "together": self._together,
        } | ({"rest": True} if self._rest else {})

    def _indices_of(self, batch: int) -> Any:
        return self._indices.taken(batch) if self._indices is not None else None

    def _end_pass(self, *, left: bool) -> None:
        self._ledger.end(self.epoch, left=left)
        self._spent = self._granted if left else self._spent + 1
        self.epoch, self.batch, self._inside, self._left = self.epoch + 1, 0, False, False
        self._rest = False
        self._abandoned = left

    def _must_be_reader(self, reader: int) -> None:
        if reader != self._reader:
            raise RuntimeError(
                "batches() has been called again for this loader, so this loop over it cannot go on: a loader has one position. "
                "Read it in one loop at a time, or make a second DataLoader"
            )

    def _say_empty(self, epochs: int | None) -> None:
        kind = type(self.loader).__name__
        if epochs is None:
            raise ValueError(
                f"the loader ({kind}) gave no batch in a whole epoch, and batches(epochs=None) asks for ever"
            )
        if self._spent + 1 == self._granted:  # once a call
            log.warning("holdfast: the loader (%s) gave no batch in epoch %d", kind, self.epoch)

    def _begin(self, generators: Callable[[], dict[str, Any] | None]) -> Iterator[Any]:
        """The epoch's iterator. Where it goes on in an epoch, the generators are put back after it exists, else before (K4)."""
        for target in (
            self.loader,
            *(getattr(self.loader, name, None) for name in ("sampler", "batch_sampler", "dataset")),
        ):
            set_epoch = getattr(target, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(self.epoch)  # DistributedSampler, shuffled streams: without it the same order in every epoch
        left = self._abandoned
        if self._resume and left and hasattr(self.loader, "load_state_dict"):
            self._leave_restored_pass()
        self._abandoned = False
        resumed, over = self._resume and self._inside, self._resume and not self._inside and self.epoch > 0 and not left
        self._resume = False
        saved = generators()
        if not (resumed and self._rest):
            self._ledger.begin(self.epoch, fresh=self.batch == 0)
        if resumed:
            # Of several loaders the first has put them back already; the walk of the next must not move them.
            after = saved or rng.capture()
            iterator = self._go_on()
            rng.put_back(after)
            return iterator
        if saved is not None:
            rng.put_back(saved)
        self._inside = True
        if hasattr(self.loader, "load_state_dict"):
            self._start = None
            return self._after_restored_pass() if over else iter(self.loader)
        self._start = rng.capture() | {"owned": [rng.generator_bytes(g) for g in owned_generators(self.loader)]}
        self._reused = _goes_on_serving(self.loader)
        return self._make(0)

    def _leave_restored_pass(self) -> None:
        """The loader stands in a pass that was left before the restart, and would give its rest as the next one: it is left once more. No batch is taken
        unless the loader begins a pass by that: from a data set that goes on where it is, whoever reads it, it would be lost."""
        before, owned = rng.capture(), [rng.generator_bytes(g) for g in owned_generators(self.loader)]
        iterator = iter(self.loader)
        if isgenerator(iterator) and isinstance(self.loader, DataLoader):
            next(iterator, None)
            iterator.close()
        rng.put_back(before)
        _put_owned_back(self.loader, owned)

    def _after_restored_pass(self) -> Iterator[Any]:
        """The next pass of a loader that was restored at the end of one: it would give the rest of that, nothing, as the next (MosaicML's, K1), or makes the
        iterator of that pass once more before that of the next, and the seed that it draws for it must not come from the generators (torchdata's, K4)."""
        before = rng.capture()
        if _has_not_begun(self.loader) and isinstance(self._given, dict) and self._given.get("_iterator_finished"):
            self.loader.state_dict()
            rng.put_back(before)
        iterator: Iterator[Any] = iter(self.loader)
        if not (isgenerator(iterator) and isinstance(self.loader, DataLoader)):
            return iterator
        first = list(islice(iterator, 1))
        if first:  # it has begun the next pass by itself
            return chain(first, iterator)
        rng.put_back(before)
        return iter(self.loader)

    def _go_on(self) -> Iterator[Any]:
        if self._start is None:  # the loader has been put to its place by its own `load_state_dict`
            iterator = iter(self.loader)
            late = isgenerator(iterator) and isinstance(self.loader, DataLoader)
            return self._made_late(iterator) if late else iterator
        self._put_start_back(self._start)
        return self._make(self.batch)

    def _made_late(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Of a loader whose `__iter__` is a generator (MosaicML's) the real iterator is made with the first batch, when the generators are back already:
        the seed that it draws must not come from them (K4)."""
        loader: Any = self.loader
        given, loader.generator = loader.generator, torch.Generator()
        try:
            first = list(islice(iterator, 1))
        finally:
            loader.generator = given
        yield from first
        yield from iterator

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
                if self._check_order:
                    raise RestoreError(self._too_short(n, skip)) from None
                return iter(())
        return iterator

    def _too_short(self, have: int, skip: int) -> str:
        return (
            f"the loader ended after {have} batches of epoch {self.epoch}, and the checkpoint stands after {skip} of them: the data set or the "
            f"batch size has changed. {ACCEPT}"
        )

    def _skip_indices(self, loader: Any, skip: int) -> Iterator[Any]:
        key = "sampler" if loader.batch_sampler is None else "batch_sampler"
        sampler = loader.__dict__[key]
        if self._indices is None:
            self._indices = _Indices(sampler)
        # The same object for good: the iterator of workers that go on serving keeps it.
        self._indices.sampler = self._rest_of(loader) if self._rest else sampler
        self._indices.begin(skip)
        if self._reused and skip:
            self._indices.walk_to_start()  # the original drew the order first, because its iterator existed already
        # DataLoader forbids setting the attribute, and reads it only while the iterator is made.
        loader.__dict__[key] = self._indices
        try:
            iterator: Iterator[Any] = iter(loader)
        finally:
            loader.__dict__[key] = sampler
        self._indices.walk_to_start()
        if skip and self._check_order:
            if self._indices.walked < skip:
                raise RestoreError(self._too_short(self._indices.walked, skip))
            if self._indices.crc_at(skip) != self._crc:
                raise RestoreError(
                    f"the order of samples in epoch {self.epoch} is not the one the checkpoint was made with: the data set, the batch size, "
                    f"the sampler or its seed has changed, or the sampler draws while training does. {ACCEPT}"
                )
        return iterator

    def _rest_of(self, loader: Any) -> Rest:
        page = self._ledger.joined(self.epoch)
        assert page is not None  # `redistributed` has looked
        rest = Rest(loader, page, check=self._check_order)
        self._ledger.begin(self.epoch, fresh=self.batch == 0, rule=rest.rule)
        return rest


class LoaderPart(StatefulPart):
    """A loader that keeps its own place, as torchdata's or MosaicML's: its state is that of the last boundary (I1), also when a batch was read since."""

    def __init__(self, name: str, position: Position) -> None:
        super().__init__(name, position.loader)
        self._position = position

    def capture(self, leaves: Leaves) -> Any:
        return leaves.put(self.snapshot(), self.name, Tier.OPTIMIZER)

    def snapshot(self) -> Any:
        return self._position.own_state()

    def put_back(self, snapshot: Any) -> None:
        self._position.load_own_state(cloned(snapshot))

    def load(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        self._position.load_own_state(cloned(tree.decode(saved, tensors)))


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
        self._drawn: deque[tuple[int, Any]] = deque()
        """(number of the batch, its indices) that have not been handed out: what the workers have read ahead."""
        self._first = 0
        """The batch count that `_crcs[0]` belongs to."""
        self.walked = 0
        """Batches whose indices have been drawn, those skipped included."""

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
                return  # `walked` says so

    def _step(self) -> Any:
        assert self._walk is not None
        indices = next(self._walk)
        self.walked += 1
        self._crcs.append(zlib.crc32(repr(indices).encode(), self._crcs[-1]))
        if self.walked > self._skip:
            self._drawn.append((self.walked, indices))
        return indices

    def taken(self, batch: int) -> Any:
        """The indices of a batch that is handed out, batches counted from 1; None if the loader has been iterated by somebody else meanwhile."""
        while self._drawn and self._drawn[0][0] <= batch:
            number, indices = self._drawn.popleft()
            if number == batch:
                return indices
        return None

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


def _forgets_its_buffer(data: Any) -> bool:
    source = getattr(data, "_ex_iterable", None)
    for _ in range(64):  # each step of a stream's pipeline holds the one before it
        if source is None or type(source).__name__ == "BufferShuffledExamplesIterable":
            break
        source = getattr(source, "ex_iterable", None)
    return type(source).__name__ == "BufferShuffledExamplesIterable"


def _has_not_begun(loader: Any) -> bool:
    """torchdata's loader, and nobody has read it in this process. It is not asked for its state then: it would make an iterator for that, whose seed comes from
    the global generator, and keep it for the first pass, which would draw none (K4)."""
    return isinstance(loader, DataLoader) and hasattr(loader, "next_iter_state") and loader._iterator is None


def _goes_on_serving(loader: Iterable[Any]) -> bool:
    return bool(getattr(loader, "persistent_workers", False)) and getattr(loader, "_iterator", None) is not None
