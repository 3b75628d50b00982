"""Reading files that hold pickle, without running what a stranger has written into them.

A pickle is a program: it may name any function of any installed package and call it. So

1. every file is first read by torch's own restricted reader (`weights_only=True`), which knows tensors and plain containers;
2. where that refuses, and only if the person trusts the file, it is read with stand-ins: names of the list below are the real thing, every other class
   or function is an inert object that remembers what it was given. Nothing of another package is imported or called, so a DeepSpeed or Lightning file
   can be read where neither is installed.

Python's own unpickler, which would run it, is used nowhere in Holdfast.
"""

import collections
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar

import torch

from holdfast.interop.errors import Refused

FLAG = "--i-trust-this-file"

_REAL = {
    "collections": {"OrderedDict", "defaultdict", "Counter", "deque"},
    "builtins": {"set", "frozenset", "dict", "list", "tuple", "int", "float", "complex", "str", "bytes", "bytearray", "bool", "slice", "range"},
    "datetime": {"datetime", "date", "timedelta", "timezone"},
    "torch": {"Size", "device"},
    "torch._utils": {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state"},
    "torch.nn.parameter": {"Parameter", "Buffer"},
    "torch.serialization": {"_get_layout"},
}  # fmt: skip
"""Functions and classes that build data and do nothing else."""


class StandIn:
    """What an unknown class or function of a pickle becomes. Inert: it keeps what it was given and does nothing with it."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *arguments: Any, **more: Any) -> "StandIn":
        return type(self)(*arguments)

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __hash__(self) -> int:
        return id(self)


class GuardedUnpickler(pickle._Unpickler):
    """Python's reader in Python, which sets attributes of what a file has made and never of a class or function: a name, a flag or a default of one of
    those, set by the file, would change what torch itself does with it afterwards (a class with `dump_patches` makes it write a file of the class's name).
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        target = self.stack[-2]  # type: ignore[attr-defined]
        if isinstance(target, type | types.FunctionType | types.BuiltinFunctionType):
            raise pickle.UnpicklingError(
                f"the file would change {target.__name__[:100]!r}, a class or function of the reader's"
            )
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build


class InertUnpickler(GuardedUnpickler):
    """Resolves the names of `_REAL` and of torch's dtypes and storages; all others to stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "__builtin__":
            module = "builtins"
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2"):
            return _without_its_subclass
        if name in _REAL.get(module, ()):
            return super().find_class(module, name)
        if module in ("torch", "torch.storage") and (found := _of_torch(name)) is not None:
            return found
        return type(name.rpartition(".")[2] or "unknown", (StandIn,), {"__module__": f"stand-in.{module}"})


def _without_its_subclass(function: Any, _kind: Any, arguments: tuple[Any, ...], _state: Any) -> Any:
    """The tensor below a subclass of somebody's (DeepSpeed's parameters of stage 3). `function` has come through `find_class`."""
    return function(*arguments)


def _of_torch(name: str) -> Any:
    value = getattr(torch, name, None) or getattr(torch.storage, name, None)
    storage = isinstance(value, type) and (name.endswith("Storage"))
    return value if storage or isinstance(value, torch.dtype | torch.layout | torch.memory_format) else None


def _load(file: IO[bytes], **options: Any) -> Any:
    return InertUnpickler(file, **options).load()


_READER = types.SimpleNamespace(Unpickler=InertUnpickler, load=_load, __name__="holdfast.interop.pickles")


def read(path: Path, *, trusted: bool) -> Any:
    """What `torch.save` wrote, on the CPU. Raises Refused."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_mappable(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError, TypeError, KeyError) as e:
        if not _asks_for_trust(e) and not trusted:
            raise Refused(f"{path.name} is not a file of torch.save, or it is damaged: {_first_line(e)}") from e
        if not trusted:
            raise Refused(
                f"{path.name} holds more than tensors and plain containers ({_first_line(e)}). If it comes from where you think, add {FLAG}: then it "
                "is read in a process without credentials, with inert stand-ins for every class that is not on a short list, and no code of it is run"
            ) from e
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_READER, mmap=_mappable(path))
    except Exception as e:
        raise Refused(
            f"{path.name} is damaged, or cannot be read even with stand-ins: {type(e).__name__}: {_first_line(e)}"
        ) from e


def plain(value: Any, where: str, dropped: list[str]) -> Any:
    """`value` without what cannot be kept: stand-ins and the like are left out, their places are added to `dropped`."""
    if isinstance(value, dict):
        kept = {}
        for key, item in value.items():
            if type(key) not in (str, int, float, bool, tuple) and key is not None:
                dropped.append(f"{where}.{key!r}"[:200])
            elif _keepable(item):
                kept[key] = plain(item, f"{where}.{key}", dropped)
            else:
                dropped.append(f"{where}.{key} ({type(item).__name__})")
        return collections.OrderedDict(kept) if isinstance(value, collections.OrderedDict) else kept
    if isinstance(value, list | tuple):
        kept_items = [plain(v, f"{where}.{i}", dropped) if _keepable(v) else None for i, v in enumerate(value)]
        dropped += [f"{where}.{i} ({type(v).__name__})" for i, v in enumerate(value) if not _keepable(v)]
        return tuple(kept_items) if type(value) is tuple else kept_items
    return value.detach() if isinstance(value, torch.Tensor) else value


_PLAIN = (
    dict,
    list,
    tuple,
    str,
    int,
    float,
    bool,
    bytes,
    complex,
    set,
    torch.Tensor,
    torch.dtype,
    torch.device,
    type(None),
)


def _keepable(value: Any) -> bool:
    return isinstance(value, _PLAIN) and not isinstance(value, StandIn)


def _mappable(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _asks_for_trust(error: Exception) -> bool:
    text = str(error)
    return "Unsupported operand" not in text and (
        "weights_only" in text or "Weights only" in text or "Unsupported" in text
    )


def _first_line(error: Exception) -> str:
    """The line of torch's message that says what was refused."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or "Unsupported" in line or "global" in line.lower()]
    return (telling or lines or [type(error).__name__])[0][:300]
