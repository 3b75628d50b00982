"""What may be registered with a Checkpointer, each kind behind the same narrow face: capture, compare, load.

`capture` runs on the main thread at a boundary and copies nothing: it lists tensors and makes a JSON tree that refers to them. `compare` says what
does not fit before anything is touched, so that a failed load leaves nothing half loaded. `load` then cannot fail for reasons of the user's.

For copies between two boundaries (I6) a part tells beforehand where its large tensors lie (`places`), keeps a copy of what is small at each boundary
(`snapshot`), and makes of both, on another thread and without touching the object, what `capture` would have said at that boundary (`render`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch

from holdfast import sharding, tree
from holdfast.allowed import Allowed, Apart
from holdfast.bits import clone_bits
from holdfast.filling import cloned
from holdfast_rank.image import Tier

LARGE_BYTES = 64 << 10
"""A tensor up to this size is copied at each boundary where nothing else is known to keep it still."""
_ATOMS = frozenset({type(None), bool, int, float, str, bytes, complex, torch.dtype, torch.device, torch.Size})


class Leaves:
    """The tensors of one capture, by their names in the image, with the tier that each belongs to."""

    def __init__(self) -> None:
        self.tensors: tree.Tensors = {}
        self.tiers: dict[str, Tier] = {}
        self.boxes: dict[str, sharding.Box] = {}
        """Of those that are parts of a larger tensor."""
        self.groups: dict[str, str] = {}
        """Of those that other ranks hold as well: the ranks (TensorEntry.group)."""

    def put(self, value: Any, path: str, tier: Tier) -> Any:
        """The JSON tree of `value`; its tensors are added."""
        before = len(self.tensors)
        body = tree.encode(value, path, self.tensors)
        for name in islice(reversed(self.tensors), len(self.tensors) - before):
            self.tiers[name] = tier
        return body

    def put_tensor(self, value: Any, path: str, tier: Tier, group: str = "") -> Any:
        """As `put`, for what may be a DTensor. `group`: the ranks that hold the same, where that is known."""
        if not sharding.is_sharded(value):
            body = self.put(value, path, tier)
            if group and isinstance(value, torch.Tensor):
                self.groups[body["$tensor"]] = group
            return body
        part = sharding.part_of(value, path)
        body = self.put(part, path, tier)
        self.boxes[body["$part"]], self.groups[body["$part"]] = part.box, sharding.group_of(value)
        return body


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of the image and where the program keeps it: `holder[key] is tensor`, as long as nobody exchanges it."""

    name: str
    holder: Any
    key: Any
    tensor: torch.Tensor
    fixed: bool
    """A parameter or optimizer state, which only an update changes. Not: what a forward may change, as a buffer, or an embedding that it normalizes."""


class Part(Protocol):
    """One registered object."""

    allowed: Allowed
    """What of a checkpoint that does not fit is accepted; set before `compare`."""

    @property
    def kind(self) -> str:
        """The class, where another one could not go on with this one's state; else empty."""

    def capture(self, leaves: Leaves) -> Any:
        """JSON tree of the state; tensors go into `leaves`. Raises UnsupportedState."""

    def places(self) -> list[Place]:
        """Main thread, at a boundary. Raises NotLive when the state has tensors or plain values that no list can name."""

    def snapshot(self) -> Any:
        """Main thread, at a boundary: what is not among `places`, copied."""

    def put_back(self, snapshot: Any) -> None:
        """Main thread: what `snapshot` has copied is again as it was there."""

    def render(self, snapshot: Any, template: Any, leaves: Leaves) -> Any:
        """Any thread. `template` is what `capture` gave when `places` was called. Raises NotLive, UnsupportedState."""

    def apart(self, saved: Any) -> Apart:
        """The keys that one side alone has, whether or not that is allowed."""

    def compare(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
        """Sentences about what does not fit and is not allowed, none if all fits."""

    def load(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        """Makes the object equal to the saved one. `tensors` are views of the image: they must be copied."""


class NotLive(Exception):
    """This state cannot be copied between two boundaries. The message says why and names what it is about."""


def freeze(value: Any) -> Any:
    """A copy that later changes of `value` do not reach. Tensors above LARGE_BYTES are referred to, not copied: they stand still like parameters,
    or the audit finds that they do not (I5, I8)."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if isinstance(value, torch.Tensor):
        large = value.numel() * value.element_size() > LARGE_BYTES
        return value.detach() if large else clone_bits(value.detach())
    if isinstance(value, dict):
        copied = value.copy()
        for key, item in value.items():
            if type(item) not in _ATOMS:
                copied[key] = freeze(item)
        return copied
    if kind is list or kind is tuple:
        return kind([item if type(item) in _ATOMS else freeze(item) for item in value])
    if kind in (set, bytearray) or kind.__module__ == "numpy":
        return value.copy()
    return value


def load_gradient(parameter: torch.Tensor, saved: Any, tensors: Mapping[str, torch.Tensor], path: str) -> None:
    value = tree.decode(saved, tensors, place=False)
    if isinstance(value, sharding.Part):
        parameter.grad = sharding.whole(cloned(value), parameter.detach(), path)
    else:
        parameter.grad = value.to(parameter.device, copy=True)


def same_form(path: str, live: torch.Tensor, saved: torch.Tensor) -> Iterator[str]:
    if live.shape != saved.shape or live.dtype != saved.dtype:
        yield f"{path}: {tuple(live.shape)} {live.dtype} here, {tuple(saved.shape)} {saved.dtype} in the checkpoint"


def as_part(value: Any, path: str) -> Any:
    """A DTensor as this rank's part of it; anything else as it is. Raises UnsupportedState."""
    return sharding.part_of(value, path) if sharding.is_sharded(value) else value


def listed(names: list[str]) -> str:
    shown = ", ".join(names[:20])
    return (shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")) or "nothing"
