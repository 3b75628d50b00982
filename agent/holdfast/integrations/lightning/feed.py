"""Stands between the training loaders and Lightning's loop: sees when the loop asks for a batch, and hands out those that have not been trained on.

Lightning makes iterators when it likes (one at the start, another at each later epoch), so one that was made begins a pass only with its first batch.
The moment at which the first loader is asked is the boundary (I1): everything that Lightning does after a batch, validation and the end of an epoch
included, has happened then, and nothing of the next batch has.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

_OWN = frozenset({"_loader", "_source", "_first", "_running", "_over", "_ended"})


class Source(Protocol):
    """Where batches come from: the callback."""

    def asked(self) -> None:
        """The loop wants the next batch."""

    def batches(self, loader: Any) -> Iterator[Any]:
        """The next pass over the loader, or the rest of the one that was not over when the checkpoint was made."""

    def batch(self, loader: Any) -> int:
        """Batches of the pass at hand that were handed out."""


class FedLoader:
    """Stands in for a training loader, and is it for everything but being iterated over."""

    _loader: Any
    _source: Source
    _first: bool
    _running: Any
    _over: bool
    _ended: bool

    def __init__(self, loader: Any, source: Source, *, first: bool) -> None:
        """`first`: it is the one whose being asked makes the boundary."""
        own = {"_loader": loader, "_source": source, "_first": first, "_running": None, "_over": False, "_ended": False}
        for name, value in own.items():
            object.__setattr__(self, name, value)

    def __iter__(self) -> Iterator[Any]:
        self.leave()
        self._over = False
        return _Pass(self)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._loader, name, value)

    def leave(self) -> None:
        """Ends the pass at hand, if there are batches left: an epoch may be shorter than the loader, and the next one begins anew. One whose batches have all
        been handed out is ended after the boundary, as in every loop: a loader that keeps its own place, or its workers, still stands in it."""
        if self._running is not None and not self._whole():
            self._running.close()
            self._running = None

    def restored_between_epochs(self) -> None:
        """If the pass that was restored has no batch left, the next one is wanted: its end belongs to an epoch that is over."""
        self._ended = True

    def begin(self) -> Iterator[Any]:
        before, self._running = self._running, None
        if before is not None:
            next(before, None)
            before.close()
        running = self._running = self._source.batches(self._loader)
        return running

    def begin_another(self) -> Iterator[Any] | None:
        """In place of a pass without a batch; None if there is to be no other."""
        wanted, self._ended = self._ended, False
        return self.begin() if wanted else None

    @property
    def inside(self) -> Any:
        return self._loader

    @property
    def is_over(self) -> bool:
        """It has no more batches in this epoch, and Lightning has been told so: of several loaders one may end before the others."""
        return self._over

    def end(self) -> None:
        self._over = True

    def asked(self) -> None:
        if self._first:
            self._source.asked()

    def _whole(self) -> bool:
        try:
            return self._source.batch(self._loader) >= len(self._loader)
        except (TypeError, NotImplementedError):
            return False


class _Pass:
    def __init__(self, fed: FedLoader) -> None:
        self._fed = fed
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._fed.asked()
        if self._fed.is_over:
            raise StopIteration
        try:
            if self._batches is None:
                return self._first_batch()
            return next(self._batches)
        except StopIteration:
            self._fed.end()
            raise

    def _first_batch(self) -> Any:
        self._batches = self._fed.begin()
        for batch in self._batches:
            return batch
        another = self._fed.begin_another()
        if another is None:
            raise StopIteration
        self._batches = another
        return next(another)


def take_over(trainer: Any, source: Source) -> list[FedLoader]:
    """Has Lightning make its training loaders, with ours in front of each: its own hook for strategies that change loaders shows them before anything
    is read. Returns them in Lightning's order."""
    fed: list[FedLoader] = []
    process: Callable[[Any], Any] = trainer.strategy.process_dataloader

    def in_front(loader: Any) -> Any:
        fed.append(FedLoader(process(loader), source, first=not fed))
        return fed[-1]

    trainer.strategy.process_dataloader = in_front
    try:
        trainer.fit_loop.setup_data()
    finally:
        del trainer.strategy.process_dataloader
    return fed
