"""Which samples a rank has trained on, by epoch: so that "each exactly once" (K1) can be shown from the checkpoints alone.

Of a map-style data set the indices themselves are kept, one bit each, for the epoch at hand and the one before, up to EXACT_SAMPLES; of larger ones a
count and a sum over a hash of each index, which does not depend on the order and adds up over ranks. Of iterable data there are no indices, and
samples are counted. What is kept never grows with the length of training. docs/format.md has the form; `holdfast samples` reads it.
"""

import base64
import zlib
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

EXACT_SAMPLES = 1 << 20
"""A bit for each: 128 KiB per loader and epoch."""
KEPT_EPOCHS = 32
"""Epochs of which count and sum are kept; of older ones their number."""
MASK = (1 << 64) - 1


class Ledger:
    """One loader's, of one rank. Main thread only."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._rule: dict[str, Any] = _counted(None)
        self._epoch = 0
        self._count = self._again = self._sum = 0
        self._seen = bytearray()
        self._before: dict[str, Any] | None = None
        self._closed: deque[dict[str, Any]] = deque(maxlen=KEPT_EPOCHS)
        self._older = 0
        self._joined: list[dict[str, Any]] = []
        """Of all ranks together, from before their number changed."""

    def state(self) -> dict[str, Any]:
        """As it is now, a copy; plain values and bytes, by epoch as `holdfast_store.samples` reads them."""
        return {
            "now": self._page(left=False) | {"seen": bytes(self._seen)},
            "before": self._before,
            "closed": list(self._closed),
            "older": self._older,
        } | ({"joined": self._joined} if self._joined else {})

    def load(self, state: dict[str, Any] | None) -> None:
        """Goes on from there. None: a checkpoint of an earlier release."""
        if state is None:
            return
        now = state["now"]
        self._rule = {k: v for k, v in now.items() if k not in ("epoch", "count", "again", "sum", "left", "seen")}
        self._epoch, self._count, self._again = now["epoch"], now["count"], now["again"]
        self._sum, self._seen = int(now["sum"], 16), bytearray(now["seen"])
        self._before, self._older = state["before"], state["older"]
        self._closed = deque(state["closed"], maxlen=KEPT_EPOCHS)
        self._joined = list(state.get("joined", []))

    def joined(self, epoch: int) -> dict[str, Any] | None:
        """What all ranks together had been given of an epoch before their number changed."""
        return page_of({"joined": self._joined}, epoch)

    def begin(self, epoch: int, *, fresh: bool, rule: dict[str, Any] | None = None) -> None:
        """A pass begins, or goes on. Of one that goes on from a checkpoint without a ledger, not all is known: it promises nothing. `rule`: of the rest
        of a pass that other ranks had begun."""
        known, rule = rule is not None, rule or rule_of(self._loader)
        if not known and not fresh and not self._count:
            rule = rule | {"once": False}
        if epoch != self._epoch or not self._count:
            self._epoch, self._count, self._again, self._sum = epoch, 0, 0, 0
            self._rule, self._seen = rule, bytearray(_bitmap_bytes(rule))
        elif rule != self._rule and len(self._seen) < _bitmap_bytes(rule):
            self._rule = rule | {"kind": "hashed" if rule["kind"] == "exact" else rule["kind"]}
            self._seen = bytearray()  # the data set has grown in the middle of an epoch, as was allowed by name

    def take(self, indices: Any, samples: int) -> None:
        """A batch was handed out. `indices`: what the sampler gave for it, None where there is no sampler."""
        if indices is None or self._rule["kind"] == "counted":
            self._rule = self._rule | {"kind": "counted"}
            self._count += samples
            return
        keys = indices if isinstance(indices, list | tuple) else [indices]
        self._count += len(keys)
        numbers = _as_numbers(keys)
        if numbers is None:
            self._rule = self._rule | {"kind": "hashed"}
            self._seen = bytearray()
            self._sum += sum(_hash_of_text(repr(key)) for key in keys)
        else:
            self._sum += int(mixed(numbers).sum(dtype=numpy.uint64))
            self._mark(numbers)
        self._sum &= MASK

    def end(self, epoch: int, *, left: bool) -> None:
        """A pass is over, to its end or `left` before."""
        if epoch != self._epoch:
            return
        self._older += len(self._closed) == KEPT_EPOCHS
        page = self._page(left=left)
        self._closed.append(page)
        self._before = page | {"seen": bytes(self._seen)}
        self._joined = [p if p["epoch"] >= epoch else p | {"seen": b""} for p in self._joined][-KEPT_EPOCHS:]
        self._epoch, self._count, self._again, self._sum = epoch + 1, 0, 0, 0
        self._seen = bytearray(len(self._seen))

    def _page(self, *, left: bool) -> dict[str, Any]:
        numbers = {"epoch": self._epoch, "count": self._count, "again": self._again, "sum": f"{self._sum:016x}"}
        return numbers | {"left": left} | self._rule

    def _mark(self, numbers: Any) -> None:
        if not self._seen:
            return
        if int(numbers.max()) >= 8 * len(self._seen):
            self._seen, self._rule = bytearray(), self._rule | {"kind": "hashed"}
            return
        bits = numpy.frombuffer(self._seen, dtype=numpy.uint8)
        places, masks = (numbers >> 3).astype(numpy.int64), (1 << (numbers & 7)).astype(numpy.uint8)
        known = int(numpy.count_nonzero(bits[places] & masks))
        self._again += known + len(numbers) - len(numpy.unique(numbers))
        numpy.bitwise_or.at(bits, places, masks)


def page_of(state: dict[str, Any], epoch: int) -> dict[str, Any] | None:
    """Of those that were joined."""
    return next((page for page in state.get("joined", []) if page["epoch"] == epoch), None)


def joined(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The ledger of a rank of another number of ranks: what all of those had been given stands in pages of its own, the same for every rank; what this one is
    given is counted anew. Ranks that read the same share count once."""
    before = states[0].get("joined", [])
    own = [{p["epoch"]: p | {"over": over} for over, p in _pages(s)} for s in states]
    epochs = sorted({p["epoch"] for p in before} | {e for pages in own for e in pages})
    pages = [
        _join(next((p for p in before if p["epoch"] == e), None), [pages[e] for pages in own if e in pages])
        for e in epochs
    ]
    newest = states[0]["now"]["epoch"]
    kept = [p if p["epoch"] >= newest - 1 else p | {"seen": b""} for p in pages]
    empty = {"epoch": newest, "count": 0, "again": 0, "sum": f"{0:016x}", "left": False, **_counted(None), "seen": b""}
    left_out = max(0, len(kept) - KEPT_EPOCHS)
    older = max(s["older"] for s in states) + left_out
    return {"now": empty, "before": None, "closed": [], "older": older, "joined": kept[left_out:]}


def begun_again(state: dict[str, Any], epoch: int) -> dict[str, Any]:
    """After a joined pass was given up: what was given of it says nothing about what is left."""
    return state | {"joined": [p if p["epoch"] < epoch else p | {"once": False} for p in state["joined"]]}


def _pages(state: dict[str, Any]) -> list[tuple[bool, dict[str, Any]]]:
    """(over, page) of one rank's ledger, the fullest of an epoch last."""
    found = [(True, p | {"seen": b""}) for p in state["closed"]]
    found += [(True, state["before"])] if state["before"] is not None else []
    return found + ([(False, state["now"])] if state["now"]["count"] else [])


def _join(before: dict[str, Any] | None, pages: list[dict[str, Any]]) -> dict[str, Any]:
    shares: dict[int, dict[str, Any]] = {}
    for page in pages:
        shares.setdefault(page["share"][0], page)
    same = all((p["count"], p["sum"]) == (shares[p["share"][0]]["count"], shares[p["share"][0]]["sum"]) for p in pages)
    parts = [*shares.values()] + ([before] if before is not None else [])
    of = pages[0]["share"][1] if pages else 0
    over = all(p["over"] for p in pages) if pages else before is not None and before["over"]
    once = same and all(p["once"] for p in parts) and (len(shares) == of or before is not None)
    seen = 0
    for part in parts:
        seen |= int.from_bytes(part["seen"], "little")
    bits = all(part["seen"] for part in parts)
    count, length = sum(p["count"] for p in parts), max(len(p["seen"]) for p in parts)
    return {
        "epoch": parts[0]["epoch"],
        "count": count,
        "again": sum(p["again"] for p in parts),
        "sum": f"{sum(int(p['sum'], 16) for p in parts) & MASK:016x}",
        "left": any(p["left"] for p in parts),
        "kind": parts[0]["kind"]
        if len({p["kind"] for p in parts}) == 1
        else "counted"
        if any(p["kind"] == "counted" for p in parts)
        else "hashed",
        "size": parts[0]["size"],
        "share": [0, 1],
        "once": once,
        # Where a pass goes on, the rest of it says what its sampler leaves out and pads; until then nothing has been left out.
        "drops": sum(p["drops"] for p in parts) if over else 0,
        "cuts": max(p["cuts"] for p in parts) if over else 0,
        "pads": max(p["pads"] for p in parts) if over else count - seen.bit_count() if bits else 0,
        "over": over,
        "seen": seen.to_bytes(length, "little") if bits else b"",
    }


def rule_of(loader: Any) -> dict[str, Any]:
    """What one epoch of `loader` holds, as far as its samplers are torch's own: `size` of the data set, which `share` of how many this rank reads, and
    whether every sample comes `once`, but for `drops` of this rank and `cuts` or `pads` of all shares together. Without `once` it is a sampler of
    the user's own that decides."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return _counted(None)
    if hasattr(loader, "load_state_dict"):
        return _counted(_length(loader.dataset))
    size = _length(loader.dataset)
    kind = "exact" if size is not None and size <= EXACT_SAMPLES else "hashed"
    rule = _counted(size) | {"kind": kind}
    batches = loader.batch_sampler
    if batches is not None and type(batches) is not BatchSampler:
        return rule
    sampler = loader.sampler if batches is None else batches.sampler
    if size is None or _length(getattr(sampler, "data_source", getattr(sampler, "dataset", None))) != size:
        return rule
    share = size
    if type(sampler) is DistributedSampler:
        share = sampler.num_samples
        rule["share"] = [sampler.rank, sampler.num_replicas]
        rule |= {"cuts": max(0, size - sampler.total_size), "pads": max(0, sampler.total_size - size)}
    elif type(sampler) is RandomSampler:
        if sampler.replacement or sampler.num_samples != size:
            return rule
    elif type(sampler) is not SequentialSampler:
        return rule
    drops = share % batches.batch_size if batches is not None and batches.drop_last else 0
    return rule | {"once": True, "drops": drops}


def _counted(size: int | None) -> dict[str, Any]:
    return {"kind": "counted", "size": size, "share": [0, 1], "once": False, "drops": 0, "cuts": 0, "pads": 0}


def mixed(numbers: Any) -> Any:
    """A hash of each number, as unsigned 64-bit integers (the finalizer of splitmix64)."""
    with numpy.errstate(over="ignore"):
        z = numbers + numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        return z ^ (z >> numpy.uint64(31))


def _as_numbers(keys: Iterable[Any]) -> Any:
    """Unsigned 64-bit integers, or None for keys that are no indices."""
    try:
        numbers = numpy.asarray(keys)
    except (TypeError, ValueError, RuntimeError):
        return None
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not numbers.size or int(numbers.min()) < 0:
        return None
    return numbers.astype(numpy.uint64)


def _hash_of_text(text: str) -> int:
    data = text.encode()
    return zlib.crc32(data) << 32 | zlib.adler32(base64.b64encode(data))


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except Exception:  # whatever a data set of the user's says: it has none
        return None


def _bitmap_bytes(rule: dict[str, Any]) -> int:
    return -(-rule["size"] // 8) if rule["kind"] == "exact" else 0
