"""The files of other tools, one function a format; `recognise` says which it is."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from holdfast.interop import dcp_directory, deepspeed, pickles
from holdfast.interop.errors import Refused
from holdfast.interop.found import Found, by_form

INDEX = "model.safetensors.index.json"
FORMATS = ("safetensors", "state-dict", "dcp", "deepspeed", "lightning")


def recognise(path: Path) -> str:
    """By what lies there, not by its name alone. Raises Refused."""
    if not path.exists():
        raise Refused(f"{path} does not exist")
    if path.is_dir():
        if (path / ".metadata").exists():
            return "dcp"
        if (path / INDEX).exists() or list(path.glob("*.safetensors")):
            return "safetensors"
        if deepspeed.is_one(path):
            return "deepspeed"
        if (path / "pytorch_model.bin").exists():
            raise Refused(f"{path} holds pytorch_model.bin: name that file itself")
        raise Refused(
            f"{path} is a directory without .metadata (DCP), *.safetensors or a DeepSpeed checkpoint (latest, *_model_states.pt)"
        )
    with path.open("rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and head[:2] != b"PK"):
        return "safetensors"
    return "torch"


def read(path: Path, *, name: str, trusted: bool) -> Found:
    """`name`: what the module is to be called where the files do not say. Raises Refused, OSError."""
    format = recognise(path)
    if format == "safetensors":
        return read_safetensors(path, name)
    if format == "dcp":
        return by_form("dcp", dcp_directory.read(path), name)
    if format == "deepspeed":
        return deepspeed.read(path, name, trusted=trusted)
    whole = pickles.read(path, trusted=trusted)
    if isinstance(whole, dict) and "pytorch-lightning_version" in whole:
        return from_lightning(whole, name)
    dropped: list[str] = []
    found = by_form("state-dict", pickles.plain(whole, path.stem, dropped), name)
    found.dropped += dropped
    return found


def read_safetensors(path: Path, name: str) -> Found:
    """One file, or a directory in the Hugging Face layout. Nothing is read yet: tensors are views of the files."""
    files = [path] if path.is_file() else _shards(path)
    state: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for key in opened.keys():  # noqa: SIM118  no dictionary
                    if key in state:
                        raise Refused(f"{key} stands in {file.name} and in an earlier file")
                    state[key] = opened.get_tensor(key)
                ties |= {k: v for k, v in (opened.metadata() or {}).items() if k != "format"}
        except SafetensorError as e:
            raise Refused(f"{file.name} is no safetensors file, or it is damaged: {e}") from e
    for key, kept in ties.items():  # as safetensors.torch.save_model writes tied names
        if key not in state and kept in state:
            state[key] = state[kept]
    if not state:
        raise Refused(f"{path.name} holds no tensors")
    return Found("safetensors", modules={name: state})


def _shards(directory: Path) -> list[Path]:
    index = directory / INDEX
    if not index.exists():
        found = sorted(directory.glob("*.safetensors"))
        if len(found) > 1:
            raise Refused(
                f"{directory} holds {len(found)} .safetensors files and no {INDEX}: name one of them, or the index is missing"
            )
        return found
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as e:
        raise Refused(f"{INDEX} is not readable: {type(e).__name__}: {e}") from e
    for file in names:
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+", file):
            raise Refused(f"{INDEX} names the file {file!r}, which is no plain name")
        if not (directory / file).is_file():
            raise Refused(f"{INDEX} names {file}, which is not there: the download is not complete")
    return [directory / file for file in names]


def from_lightning(whole: dict[str, Any], name: str) -> Found:
    """What Trainer.save_checkpoint wrote: weights, optimizers, schedulers, global step."""
    dropped: list[str] = []
    state = whole.get("state_dict")
    if not isinstance(state, dict) or not state:
        raise Refused("the Lightning file has no state_dict")
    found = Found("lightning", modules={name: pickles.plain(state, name, dropped)})
    for key, group, base in (
        ("optimizer_states", found.optimizers, "optimizer"),
        ("lr_schedulers", found.others, "scheduler"),
    ):
        for n, value in enumerate(whole.get(key) or []):
            called = base if n == 0 else f"{base}_{n}"
            group[called] = pickles.plain(value, called, dropped)
    found.boundary, found.epoch = _count(whole, "global_step"), _count(whole, "epoch")
    taken = {"state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "pytorch-lightning_version"}
    found.dropped = dropped + sorted(k for k in whole if k not in taken and whole[k])
    return found


def _count(whole: dict[str, Any], key: str) -> int:
    value = whole.get(key, 0)
    if not isinstance(value, int) or value < 0:
        raise Refused(f"{key} is {value!r}, no count")
    return value
