"""Any nested `state_dict` as strict JSON beside named tensors, and back. No pickle: what has no form here is refused by name (I9, B10).

Plain JSON values stand for themselves. Everything else is an object with a single key that starts with `$`:

    {"$tensor": "optimizer.state.0.exp_avg"}      the tensor of that name; with "device": "cuda" if it lay on one
    {"$tuple": [...]}  {"$set": [...]}  {"$dict": [[key, value], ...]}  {"$ordered": ...}  {"$counter": ...}
    {"$float": "nan"}  {"$bytes": "<base64>"}  {"$complex": [re, im]}  {"$size": [...]}  {"$dtype": "float32"}  {"$device": "cpu"}
    {"$ndarray": "<tensor name>"}  {"$npscalar": ["float64", value]}
    {"$part": "<tensor name>", "of": [4, 6], "at": [2, 0], "placed": ["S(0)"]}    this rank's part of a DTensor of shape [4, 6]

A dict whose keys are all strings, none starting with `$`, is a plain JSON object.
"""

import base64
import binascii
import collections
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from holdfast import sharding
from holdfast.bits import copyable
from holdfast.errors import CheckpointDamaged, UnsupportedState

MAX_DEPTH = 64
Tensors = dict[str, torch.Tensor]
PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def encode(value: Any, path: str, out: Tensors) -> Any:
    """The JSON form of `value`; its tensors are put into `out`, named by where they lie below `path`. Raises UnsupportedState naming the path."""
    return _encode(value, path, out, 0)


def decode(tree: Any, tensors: Mapping[str, torch.Tensor], *, place: bool = True) -> Any:
    """What `encode` was given. Tensors are those of `tensors`; with `place` moved to the device kind they lay on. Raises CheckpointDamaged."""
    try:
        return _decode(tree, tensors, place)
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error, RecursionError) as e:
        raise CheckpointDamaged(f"the saved state cannot be decoded: {type(e).__name__}: {e}") from e


def check_tensor(tensor: torch.Tensor, path: str) -> None:
    """Raises UnsupportedState for a tensor whose bytes are not its whole content or are not here (I9)."""
    if type(tensor) not in PLAIN_TENSORS:
        raise UnsupportedState(f"{path} is a {_kind(tensor)}, {_why_no_subclass(tensor)}")
    if tensor.is_meta:
        raise UnsupportedState(
            f"{path} is on the meta device and has no content; materialize it before the Checkpointer is made"
        )
    if tensor.is_nested or tensor.layout is not torch.strided or tensor.is_quantized:
        what = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else str(tensor.layout)
        raise UnsupportedState(f"{path} is a {what} tensor, which this release cannot save; convert it to a dense one")
    if not copyable(tensor.dtype) and not tensor.is_contiguous():
        raise UnsupportedState(
            f"{path} is a strided tensor of {tensor.dtype}, which torch cannot copy; store it contiguously"
        )


def _kind(tensor: torch.Tensor) -> str:
    return f"{type(tensor).__module__}.{type(tensor).__qualname__}"


def _why_no_subclass(tensor: torch.Tensor) -> str:
    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
        return "which has no content yet; run one batch through lazy modules before the Checkpointer is made"
    if sharding.is_sharded(tensor):
        return (
            "a tensor subclass that this release saves only as a parameter or buffer of a registered module, its gradient, and in the state of a "
            "registered torch optimizer; give its to_local() here, or keep it as a buffer of a module"
        )
    return "a tensor subclass that this release cannot save; only plain tensors are"


def _encode(value: Any, path: str, out: Tensors, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise UnsupportedState(f"{path} is nested deeper than {MAX_DEPTH}, or contains itself")
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, torch.Tensor):
        return _encode_tensor(value, path, out)
    if kind is sharding.Part:
        name = _encode_tensor(value.local, path, out)["$tensor"]
        return {
            "$part": name,
            "of": list(value.box.global_shape),
            "at": list(value.box.offset),
            "placed": list(value.placements),
        }

    def inner(items: Iterable[Any]) -> list[Any]:
        return [_encode(v, f"{path}.{i}", out, depth + 1) for i, v in enumerate(items)]

    if kind is list:
        return inner(value)
    if kind in _SEQUENCES:
        return {_SEQUENCES[kind]: inner(value)}
    if kind in (set, frozenset):
        return {"$set": inner(sorted(value, key=repr))}
    if kind in _MAPPINGS:
        return _encode_dict(value, path, out, depth)
    return _encode_leaf(value, path, out)


def _encode_tensor(value: torch.Tensor, path: str, out: Tensors) -> Any:
    check_tensor(value, path)
    name = _free_name(path, out)
    plain = type(value) is torch.Tensor and not value.requires_grad
    out[name] = value if plain else value.detach()
    return {"$tensor": name} if value.device.type == "cpu" else {"$tensor": name, "device": value.device.type}


def _encode_dict(value: dict[Any, Any], path: str, out: Tensors, depth: int) -> Any:
    tag = _MAPPINGS[type(value)]
    pairs = [(k, _encode(v, f"{path}.{k}", out, depth + 1)) for k, v in value.items()]
    if tag == "$dict" and all(type(k) is str and not k.startswith("$") for k, _ in pairs):
        return dict(pairs)
    return {tag: [[_encode(k, f"{path} (key)", out, depth + 1), v] for k, v in pairs]}


def _encode_leaf(value: Any, path: str, out: Tensors) -> Any:
    if type(value) in (bytes, bytearray):
        return {"$bytes": base64.b64encode(value).decode()}
    if type(value) is complex:
        return {"$complex": [_encode(value.real, path, out, 0), _encode(value.imag, path, out, 0)]}
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"$device": str(value)}
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind in "biuf":
        return {"$npscalar": [str(value.dtype), _encode(value.item(), path, out, 0)]}
    if numpy is not None and type(value) is numpy.ndarray and value.dtype.kind in "biufc":
        name = _free_name(path, out)
        out[name] = torch.from_numpy(numpy.ascontiguousarray(value)).reshape(value.shape)
        return {"$ndarray": name}
    raise UnsupportedState(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be saved. "
        "Leave it out of the state_dict, or turn it into tensors, numbers, text, lists and dicts"
    )


def _free_name(path: str, out: Tensors) -> str:
    if not path.isascii():  # half a character as text: no reader of safetensors takes it in a header (J1)
        path = path.encode(errors="backslashreplace").decode()
    name, n = path, 1
    while name in out:  # {"a.b": t} beside {"a": {"b": t}}
        n += 1
        name = f"{path}~{n}"
    return name


_SEQUENCES: dict[type, str] = {tuple: "$tuple", torch.Size: "$size"}
_MAPPINGS: dict[type, str] = {
    dict: "$dict",
    collections.defaultdict: "$dict",
    collections.OrderedDict: "$ordered",
    collections.Counter: "$counter",
}


def _decode(tree: Any, tensors: Mapping[str, torch.Tensor], place: bool) -> Any:
    if isinstance(tree, list):
        return [_decode(v, tensors, place) for v in tree]
    if not isinstance(tree, dict):
        return tree
    tag = next((k for k in tree if k.startswith("$")), None)
    if tag is None:
        return {k: _decode(v, tensors, place) for k, v in tree.items()}
    if tag == "$tensor":
        tensor = tensors[tree[tag]]
        return tensor.to(tree["device"]) if place and "device" in tree else tensor
    if tag == "$part":
        box = sharding.Box(tuple(map(int, tree["of"])), tuple(map(int, tree["at"])))
        return sharding.Part(tensors[tree[tag]], box, tuple(map(str, tree["placed"])))
    if tag == "$ndarray":
        return tensors[tree[tag]].numpy()
    if tag not in _DECODERS:
        raise ValueError(f"unknown tag {tag!r}")
    body = tree[tag]
    return _DECODERS[tag]([_decode(v, tensors, place) for v in body] if isinstance(body, list) else body)


def _npscalar(body: list[Any]) -> Any:
    import numpy

    return numpy.dtype(body[0]).type(body[1])


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return dtype


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$tuple": tuple,
    "$size": torch.Size,
    "$set": set,
    "$dict": dict,
    "$ordered": collections.OrderedDict,
    "$counter": lambda pairs: collections.Counter(dict(pairs)),
    "$float": float,
    "$bytes": lambda text: base64.b64decode(text, validate=True),
    "$complex": lambda pair: complex(*pair),
    "$dtype": _dtype,
    "$device": torch.device,
    "$npscalar": _npscalar,
}
