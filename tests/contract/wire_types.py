"""Every type that crosses a process boundary, found by looking rather than by a list, and one full sample of each, made from its type hints."""

import dataclasses
import enum
import inspect
import types
import typing
from datetime import UTC, datetime
from typing import Any

from holdfast_api import config, manifest, messages, node_notices, peers, ranks
from holdfast_api.layout import CheckpointRef

MODULES = (messages, peers, manifest, node_notices, config)


def schema_types() -> list[type[Any]]:
    """Every dataclass with a SCHEMA: what is sent or stored by itself."""
    found = {
        cls
        for module in MODULES
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if dataclasses.is_dataclass(cls) and hasattr(cls, "SCHEMA")
    }
    return sorted(found, key=lambda c: c.__name__)


def rank_types() -> list[type[Any]]:
    """What agent and ranks say over the socket: no schema number, both ends come from one image."""
    return [*typing.get_args(ranks.FromRank), *typing.get_args(ranks.FromAgent)]


def sample(cls: Any, name: str = "value") -> Any:
    """A value with every field filled, the optional ones too, the same on every run."""
    origin, args = typing.get_origin(cls), typing.get_args(cls)
    if origin in (typing.Union, types.UnionType):
        return sample(next(a for a in args if a is not type(None)), name)
    if origin is tuple:
        return (sample(args[0], name),) if args[-1] is Ellipsis else tuple(sample(a, name) for a in args)
    if origin is dict:
        return {f"{name}-key": sample(args[1], name)}
    if cls is CheckpointRef:
        return CheckpointRef(3, 12)
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls)
        fields = [f for f in dataclasses.fields(typing.cast(Any, cls)) if f.name != "schema"]
        return typing.cast(Any, cls)(**{f.name: sample(hints[f.name], f.name) for f in fields})
    return _scalar(cls, name)


def _scalar(cls: Any, name: str) -> Any:
    if isinstance(cls, type) and issubclass(cls, enum.Enum):
        return [*cls][-1]
    scalars = {str: f"a {name} é", int: 7, float: 1.5, bool: True, datetime: datetime(2026, 3, 4, 5, 6, 7, 89, UTC)}
    return scalars[cls]
