"""The list of storages of one plan, resolved on the main thread at a boundary, from which the helper thread copies (I6, I7, I9).

The helper sees this list and nothing else: it walks no modules and calls no `state_dict`, which in the middle of a step would see gathered
parameters or change a model under a running forward. Whether the list still says where the state lies is checked by looking: each tensor is the
same object under the same key, with the same address and shape, and no holder has gained or lost one. What of it lies on a GPU is live_device.py's.
"""

import mmap
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from holdfast import device
from holdfast.audit import Block, blocks_of, fingerprint_blocks
from holdfast.bits import copy_bits, copyable
from holdfast.gather import Gather
from holdfast.generators import Generators, Noted
from holdfast.live_device import LiveOnDevice
from holdfast.part import LARGE_BYTES, NotLive, Place
from holdfast.snapshot import SnapshotPlan, document_bytes, items_of
from holdfast.state import Captured, Registry, Small
from holdfast_rank.image import STATE_NAME

LANE_BYTES = 64 << 20
"""A tensor is split into pieces of this size, so that all lanes have the same to do."""
LANES = 4
BOUNDARY_PATH_BYTES = 16 << 20
"""More than this is not copied at every boundary."""


class Noting(NamedTuple):
    """The small state of one boundary, with what was collected as memory beside it."""

    small: Small
    generators: Noted


class Live:
    """One plan's list. Made and noted on the main thread, `problem`, `compose` and `write` on the helper's."""

    def __init__(
        self, registry: Registry, plan: SnapshotPlan, captured: Captured, places: Sequence[Place], moved: Iterable[str]
    ) -> None:
        """`captured` is the state at this boundary, for which `plan` was found to fit; `moved` names the tensors that an audit has found to change
        between boundaries. Raises NotLive."""
        self._registry, self.plan, self._template = registry, plan, captured.document
        self._places = {p.name: p for p in places}
        unknown = sorted(self._places.keys() - captured.leaves.tensors.keys())
        if unknown:
            raise NotLive(f"{unknown[0]} has another name in the image")
        self._objects = [(p.holder, p.key, p.tensor, p.name) for p in places] + _anchors(registry)
        for place in places:
            if not _same_memory(captured.leaves.tensors[place.name], place.tensor):
                raise NotLive(f"state_dict() gives a copy of {place.name}, made at that moment")
        self._lengths = [(h, len(h)) for h in _holders(registry, places)]
        self._seen = [(p.tensor, p.tensor.data_ptr(), p.tensor.shape, p.name) for p in places]
        stored = {e.name for e in plan.layout.entries if e.tied_to is None and e.length_bytes}
        own = {n: captured.leaves.tensors[n] for n in self._places if n in stored}
        small = {n for n, t in own.items() if not self._places[n].fixed and _size(t) <= LARGE_BYTES}
        self.noted_names = sorted((small | set(moved)) & own.keys())
        """Tensors of the boundary path."""
        self.live = {n: t for n, t in own.items() if n not in self.noted_names}
        self._check(own)
        self._referred = {
            n: t
            for n, t in captured.leaves.tensors.items()
            if n in stored and n not in self._places and _size(t) > LARGE_BYTES
        }
        """Large tensors in the small state: kept by reference there (parts.freeze), and only audited here."""
        if changing := sorted(self._referred.keys() & set(moved)):
            raise NotLive(f"{changing[0]} changes between boundaries, in an object that keeps it by its own ways")
        loose = {n: t for n, t in self.live.items() if not self._places[n].fixed} | self._referred
        self._loose, self._fixed = loose, {n: t for n, t in self.live.items() if n not in loose}
        parameters = {  # a write to a part of a small one is found by looking
            n: t
            for n, t in self._fixed.items()
            if isinstance(self._places[n].tensor, torch.nn.Parameter) and _size(t) > LARGE_BYTES
        }
        self._versioned = [(n, t) for n, t in (loose | parameters).items() if not t.is_inference()]
        self._versions = self._now_versions()
        self._generators = Generators()
        fingerprint = [*fingerprint_blocks(self._fixed), *fingerprint_blocks(loose)]
        self._fingerprint = [b for b in fingerprint if b.view is None]
        self._near_noted = [n for n in self.noted_names if not device.is_far(own[n])]
        noted = [(own[n].data_ptr(), _size(own[n])) for n in self._near_noted]
        points = [b.segment for b in self._fingerprint]
        self.far = self._on_device(own, [b for b in fingerprint if b.view is not None])
        """What lies on a GPU, if something does."""
        self._at = (len(self._generators.segments), len(self._generators.segments) + len(noted))
        self._noted = Gather([*self._generators.segments, *noted, *points])
        self._points = Gather(points)
        self._kept = (own, self._referred)
        """The addresses stay valid."""
        self._tables: dict[int, _Table] = {}
        self._reading = threading.Lock()

    # Main thread

    def note(self, small: Small) -> Noting:
        """At the boundary. Raises OSError."""
        with self._reading:
            self._noted.take()
            self._versions = self._now_versions()
            if self.far is not None:
                self.far.note()
        return Noting(small, self._generators.note())

    def moved_since_note(self) -> bool:
        """The fingerprint is not the one of the last `note`, or torch has counted a write: something has changed. Any thread; waits for a GPU until it
        has come to that note. Raises OSError, RuntimeError."""
        return self.moved_on_host() or (self.far is not None and self.far.moved())

    def moved_on_host(self) -> bool:
        """As far as it can be seen without waiting for a GPU."""
        first, last = self._at[1], len(self._noted.segments)
        with self._reading:
            if self._now_versions() != self._versions:
                return True
            self._points.take()
            return self._points.pieces(0, last - first) != self._noted.pieces(first, last)

    def seemed_to_move(self) -> bool:
        """As `moved_since_note`, at a boundary without an update; what lies on a GPU is looked at now, and what was found is said at a later boundary:
        nobody waits for it. Main thread."""
        return self.moved_on_host() or (self.far is not None and self.far.look())

    def written_since_note(self) -> list[str]:
        """Of what a forward may write, that which torch has counted a write to, by name. A few rows of a large table are hard to find by looking."""
        now = zip(self._versioned, self._now_versions(), self._versions, strict=True)
        return [name for (name, _), version, noted in now if version != noted and name in self._loose]

    def _now_versions(self) -> list[int]:
        return [t._version for _, t in self._versioned]

    def updated_since_note(self) -> list[str]:
        """Of those that the fingerprint looks at, the parameters and optimizer states that have changed, by name. Main thread. Raises OSError."""
        first = self._at[1]
        with self._reading:
            self._points.take()
        found = [
            block.name
            for i, block in enumerate(self._fingerprint)
            if self._points.piece(i) != self._noted.piece(first + i)
        ]
        found += self.far.written() if self.far is not None else []
        return [name for name in found if name in self._fixed]

    def blocks(self, turn: int, budget_bytes: int) -> list[Block]:
        """What an audit looks at (audit.py). Half of it is for what a forward may write."""
        loose = blocks_of(self._loose, turn, budget_bytes // 2)
        return loose + blocks_of(self._fixed, turn, budget_bytes - sum(b.length for b in loose))

    def contiguous(self) -> set[str]:
        """Those whose bytes are in a slot as they are in memory."""
        return {
            n
            for n, t in (self._loose | self._fixed).items()
            if t.is_contiguous() and not t.is_conj() and not t.is_neg()
        }

    def prepare(self, slots: Sequence[mmap.mmap]) -> None:
        """Tables for all slots; made before a round needs them."""
        for index, memory in enumerate(slots):
            self._tables[index] = table = self._table(memory)
            if self.far is not None:
                self.far.prepare(table.whole)

    # Helper thread, or main thread at a boundary

    def problem(self) -> str:
        """Why the list does not hold any more, in words; "" if it does. Constant calls into torch apart, it only reads."""
        for holder, key, known, name in self._objects:
            if _found(holder, key) is not known:
                return f"{name} was exchanged for another object"
        for tensor, address, shape, name in self._seen:
            if tensor.data_ptr() != address or tensor.shape != shape:
                return f"{name} lies elsewhere than at the boundary"
        for holder, length in self._lengths:
            if len(holder) != length:
                return "tensors were added or removed since the layout was planned"
        return "" if self._generators.valid else "NumPy's global generator is another one now"

    def compose(self, noting: Noting) -> tuple[bytes, dict[str, torch.Tensor]]:
        """The document, and the small tensors that go with it. Raises NotLive, UnsupportedState."""
        pieces = [self._noted.piece(i) for i in range(self._at[0])]
        generators = self._generators.state(noting.generators, pieces)
        rendered = self._registry.render(noting.small, self._template, generators)
        document = document_bytes(rendered.document)
        if len(document) > self.plan.layout.state_bytes:
            raise NotLive("the small state has outgrown its place in the image")
        tensors = rendered.leaves.tensors
        planned = {i.name: i for i in self.plan.items if i.name not in self._places}
        if tensors.keys() != planned.keys():
            raise NotLive(f"tensors of the small state have changed: {sorted(tensors.keys() ^ planned.keys())[:3]}")
        for name, known in self._referred.items():
            if not _same_memory(tensors[name], known):
                raise NotLive(f"{name} lies elsewhere than when it was planned")
        for item in items_of(rendered.leaves):
            if replace(item, tied_to=None) != replace(planned[item.name], tied_to=None):
                raise NotLive(f"{item.name} has another form than when it was planned")
        return document, tensors

    def write(
        self, slot: int, document: bytes, small: dict[str, torch.Tensor], pool: Callable[[], ThreadPoolExecutor]
    ) -> str:
        """Copies everything into the slot, and waits for it. Returns what speaks against the copy, "" if nothing does. Raises RuntimeError."""
        extra = self._write_host(slot, document, small, pool)
        if self.far is None:
            return ""
        self.far.begin(self._tables[slot].whole, extra, now=False)
        return self.far.finish()

    def begin(
        self, slot: int, document: bytes, small: dict[str, torch.Tensor], pool: Callable[[], ThreadPoolExecutor]
    ) -> LiveOnDevice:
        """Main thread, at the boundary that was noted last: copies what is on the host, and has a GPU copy the rest beside training. The slot is clean
        after `finish` of what is returned."""
        assert self.far is not None
        self.far.begin(self._tables[slot].whole, self._write_host(slot, document, small, pool), now=True)
        return self.far

    def beside(self) -> AbstractContextManager[object]:
        """What is asked of a GPU inside is asked beside training, after the last `note`."""
        return self.far.beside() if self.far is not None else nullcontext()

    def _write_host(
        self, slot: int, document: bytes, small: dict[str, torch.Tensor], pool: Callable[[], ThreadPoolExecutor]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns what is small and lies on a GPU, with its places."""
        table, extra = self._tables[slot], []
        with torch.no_grad():
            table.copy(pool)
            for name, tensor in small.items():
                if (place := table.small.get(name)) is None:
                    continue
                if device.is_far(tensor):
                    extra.append((place, tensor))
                else:
                    copy_bits(place.view(tensor.dtype).view(tensor.shape), tensor)
        offset, capacity = self.plan.layout.state_offset, self.plan.layout.state_bytes
        table.memory[offset : offset + capacity] = document.ljust(capacity)
        return extra

    def _on_device(self, own: dict[str, torch.Tensor], points: Sequence[Block]) -> "LiveOnDevice | None":
        """Raises NotLive."""
        live = {n: t for n, t in (self.live | self._referred).items() if device.is_far(t)}
        noted = {n: own[n] for n in self.noted_names if device.is_far(own[n])}
        if not live and not noted:
            return None
        if why := device.why_not_beside([*live.values(), *noted.values()]):
            raise NotLive(why)
        offsets = {e.name: e.offset_bytes for e in self.plan.layout.entries}
        try:
            return LiveOnDevice(live, noted, offsets, points)
        except torch.OutOfMemoryError as e:
            raise NotLive(f"the GPU has no memory left for copies beside training: {e}") from e

    def _table(self, memory: mmap.mmap) -> "_Table":
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        at = {n: self._noted.offsets[self._at[0] + i] for i, n in enumerate(self._near_noted)}
        far = self.far.names if self.far is not None else frozenset()
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        small = {}
        for entry in self.plan.layout.entries:
            if entry.tied_to is not None or entry.name == STATE_NAME or not entry.length_bytes:
                continue
            target = whole[entry.offset_bytes : entry.offset_bytes + entry.length_bytes]
            if entry.name in far:
                continue
            if entry.name in at:
                start = at[entry.name]
                pairs.append((target, self._noted.bytes[start : start + entry.length_bytes]))
            elif entry.name in self.live:
                pairs += _pairs(target, self.live[entry.name])
            else:
                small[entry.name] = target
        return _Table(memory, whole, pairs, small)

    def _check(self, own: dict[str, torch.Tensor]) -> None:
        total = 0
        for name in self.noted_names:
            total += _size(own[name])
            if not own[name].is_contiguous() or own[name].is_conj() or own[name].is_neg():
                raise NotLive(f"{name} changes between boundaries, and is not contiguous")
        if total > BOUNDARY_PATH_BYTES:
            largest = max(self.noted_names, key=lambda n: _size(own[n]))
            raise NotLive(
                f"{total >> 20} MiB change between boundaries ({largest} the largest), more than {BOUNDARY_PATH_BYTES >> 20} MiB to copy at each"
            )
        for name, tensor in own.items():
            if tensor.device.type != "cpu" and not device.is_far(tensor):
                raise NotLive(f"{name} is on {tensor.device}")


class _Table:
    """Sources and targets of one slot, in as many lists as there are threads: one call copies a list (I7)."""

    def __init__(
        self,
        memory: mmap.mmap,
        whole: torch.Tensor,
        pairs: list[tuple[torch.Tensor, torch.Tensor]],
        small: dict[str, torch.Tensor],
    ) -> None:
        self.memory, self.whole, self.small = memory, whole, small
        count = max(1, LANES // torch.get_num_threads()) if sum(_size(s) for _, s in pairs) > LANE_BYTES else 1
        self._lanes: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = [([], []) for _ in range(count)]
        loads = [0] * count
        for target, source in sorted(pairs, key=lambda p: -_size(p[1])):
            lane = loads.index(min(loads))
            loads[lane] += _size(source)
            self._lanes[lane][0].append(target)
            self._lanes[lane][1].append(source)

    def copy(self, pool: Callable[[], ThreadPoolExecutor]) -> None:
        if len(self._lanes) == 1:
            _copy(self._lanes[0])
        else:
            list(pool().map(_copy, self._lanes))


def _copy(lane: tuple[list[torch.Tensor], list[torch.Tensor]]) -> None:
    if lane[0]:
        with torch.no_grad():
            torch._foreach_copy_(*lane)


def _pairs(target: torch.Tensor, source: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if not copyable(source.dtype):
        if not source.is_contiguous():
            raise NotLive(f"a strided tensor of {source.dtype} cannot be copied by this release of torch")
        source = source.view(torch.uint8)
    target = target.view(source.dtype).view(source.shape)
    if not source.is_contiguous() or source.is_conj() or source.is_neg() or _size(source) <= LANE_BYTES:
        return [(target, source)]
    step = LANE_BYTES // source.element_size()
    return list(zip(target.view(-1).split(step), source.view(-1).split(step), strict=True))


def _holders(registry: Registry, places: Sequence[Place]) -> list[Any]:
    """Everything that may gain or lose a tensor."""
    found = {id(p.holder): p.holder for p in places}
    for part in registry.modules.values():
        for module in part.module.modules():
            for holder in (module._parameters, module._buffers, module._modules):
                found[id(holder)] = holder
    for optimizer in registry.optimizers.values():
        groups = optimizer.inner.param_groups
        for holder in (optimizer.inner.state, groups, *(g["params"] for g in groups)):
            found[id(holder)] = holder
    return list(found.values())


def _anchors(registry: Registry) -> list[tuple[Any, Any, Any, str]]:
    """What leads from the registered objects to the holders."""
    found: list[tuple[Any, Any, Any, str]] = []
    for part in registry.modules.values():
        for module in part.module.modules():
            found += [(module._modules, k, child, f"{part.name}: {k}") for k, child in module._modules.items()]
    for optimizer in registry.optimizers.values():
        inner, name = optimizer.inner, optimizer.name
        found += [(vars(inner), k, getattr(inner, k), f"{name}.{k}") for k in ("state", "param_groups")]
        found += [(inner.state, p, state, f"the state in {name}") for p, state in inner.state.items()]
        for group in inner.param_groups:
            found.append((group, "params", group["params"], f"the parameters of {name}"))
            found += [(group["params"], i, p, f"a parameter of {name}") for i, p in enumerate(group["params"])]
    return found


def _found(holder: Any, key: Any) -> Any:
    if isinstance(holder, dict):
        return holder.get(key)  # a defaultdict would make what is missing
    return holder[key] if key < len(holder) else None


def _same_memory(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    return (tensor.data_ptr(), tensor.stride(), tensor.dtype) == (other.data_ptr(), other.stride(), other.dtype)


def _size(tensor: torch.Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())
