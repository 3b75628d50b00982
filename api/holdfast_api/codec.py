"""Strict, versioned JSON for frozen dataclasses. The compatibility rule of the whole project stands here and nowhere else (protocol B10):

- a reader ignores fields that it does not know,
- a reader refuses an object that lacks a field which has no default,
- a type with a `schema` field is refused unless its number is the class's `SCHEMA`,
- JSON is strict: UTF-8, no NaN or Infinity, no duplicate keys, bounded length checked before parsing.

Adding a field with a default is compatible; anything else needs a new schema number.
"""

import dataclasses
import enum
import functools
import json
import math
import types
import typing
from datetime import UTC, datetime
from typing import Any, TypeVar, Union

from holdfast_api.errors import Malformed, TooLarge, WrongSchema

T = TypeVar("T")

MAX_MESSAGE_BYTES = 4 << 20
"""Bound of a message between parts. Manifests have a bound of their own (`manifest.MAX_MANIFEST_BYTES`)."""

MAX_DEPTH = 64
"""Bound of nesting; deeper input is refused, not recursed into."""


def to_json(value: object) -> bytes:
    """The one JSON form of a dataclass: UTF-8, keys in field order, no spaces. Equal values give equal bytes, so digests of it are stable.

    Half a character, as Python gives it for the name of a file that is no UTF-8, has no UTF-8: it is written as JSON's own escape, and read back as it was.
    """
    text = json.dumps(to_plain(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace")


def from_json(cls: type[T], data: bytes | bytearray | memoryview, *, max_bytes: int = MAX_MESSAGE_BYTES) -> T:
    """Reads one `cls`. Raises TooLarge, Malformed or WrongSchema; the message names the field."""
    return from_plain(cls, parse(data, max_bytes=max_bytes))


def parse(data: bytes | bytearray | memoryview, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    """Strict JSON to plain values."""
    if len(data) > max_bytes:
        raise TooLarge(f"{len(data)} bytes of JSON where at most {max_bytes} are allowed")
    try:
        return json.loads(bytes(data).decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise Malformed(f"not strict JSON: {e}") from e


def to_plain(value: Any) -> Any:
    """Dataclasses, enums, times and tuples as what `json` can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value


def from_plain(cls: type[T], data: Any, path: str = "") -> T:
    """Builds a `cls` from parsed JSON. `path` leads the field name in errors."""
    where = path or cls.__name__
    if not isinstance(data, dict):
        raise Malformed(f"{where}: expected an object, found {_kind(data)}")
    fields = _fields(typing.cast(Any, cls))
    expected = getattr(cls, "SCHEMA", None)
    if expected is not None and data.get("schema") != expected:
        raise WrongSchema(f"{where}: schema {data.get('schema')!r}, this release reads {expected}")
    values = {}
    for name, (hint, required) in fields.items():
        if name in data:
            values[name] = _convert(hint, data[name], f"{where}.{name}", 0)
        elif required:
            raise Malformed(f"{where}.{name}: missing")
    try:
        return cls(**values)
    except ValueError as e:
        raise Malformed(f"{where}: {e}") from e


def format_time(value: datetime) -> str:
    """RFC 3339 in UTC with microseconds. Times without a zone are refused: they mean something else on every machine."""
    if value.tzinfo is None:
        raise ValueError("a time without a zone cannot be sent")
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """RFC 3339 with a zone, as Kubernetes writes it and as `format_time` does."""
    value = datetime.fromisoformat(text)
    if value.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return value.astimezone(UTC)


@functools.cache
def _fields(cls: type) -> dict[str, tuple[Any, bool]]:
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls} is not a dataclass")
    hints = typing.get_type_hints(cls)
    return {
        f.name: (hints[f.name], f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
        for f in dataclasses.fields(cls)
    }


def _convert(hint: Any, value: Any, path: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise Malformed(f"{path}: nested deeper than {MAX_DEPTH}")
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_optional(hint, value, path, depth)
    if origin is tuple:
        return _convert_tuple(hint, value, path, depth)
    if origin is dict:
        if not isinstance(value, dict):
            raise Malformed(f"{path}: expected an object, found {_kind(value)}")
        item = typing.get_args(hint)[1]
        return {k: _convert(item, v, f"{path}.{k}", depth + 1) for k, v in value.items()}
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value, path)
    return _convert_scalar(hint, value, path)


def _convert_optional(hint: Any, value: Any, path: str, depth: int) -> Any:
    arms = [a for a in typing.get_args(hint) if a is not type(None)]
    if value is None:
        return None
    if len(arms) == 1:
        return _convert(arms[0], value, path, depth)
    for arm in arms:
        try:
            return _convert(arm, value, path, depth)
        except Malformed:
            continue
    raise Malformed(f"{path}: {_kind(value)} is none of the allowed types")


def _convert_tuple(hint: Any, value: Any, path: str, depth: int) -> Any:
    if not isinstance(value, list):
        raise Malformed(f"{path}: expected a list, found {_kind(value)}")
    args = typing.get_args(hint)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_convert(args[0], v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value))
    if len(value) != len(args):
        raise Malformed(f"{path}: expected {len(args)} items, found {len(value)}")
    return tuple(_convert(a, v, f"{path}[{i}]", depth + 1) for i, (a, v) in enumerate(zip(args, value, strict=True)))


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    try:
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return hint(value)
        if hint is datetime:
            return parse_time(value)
    except (ValueError, TypeError) as e:
        raise Malformed(f"{path}: {e}") from e
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint in (str, int, bool) and type(value) is hint:
        return value
    raise Malformed(f"{path}: expected {getattr(hint, '__name__', hint)}, found {_kind(value)}")


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key in an object")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
