"""Weights in the layout of Hugging Face: `model.safetensors`, or shards with an index. Bytes go from file to file; no tensor is made, so no torch is needed."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast_api.manifest import TensorEntry
from holdfast_rank.image import HEADER_DTYPES

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_COPY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the export and where its bytes lie in the source."""

    key: str
    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]
    offset: int
    length: int


def weights(state: dict[str, Any], entries: dict[str, TensorEntry]) -> tuple[list[Weight], list[str]]:
    """The tensors of a module's state, and the keys that are no tensors. Two names of the same bytes become two tensors: every reader takes that.

    Raises ValueError for a dtype that safetensors does not have.
    """
    found, others = [], []
    for key, body in state.items():
        if not (isinstance(body, dict) and "$tensor" in body):
            others.append(key)
            continue
        e = entries[body["$tensor"]]
        if e.dtype not in HEADER_DTYPES:
            raise ValueError(f"{key} is {e.dtype}, which safetensors does not have: export with --format state-dict")
        found.append(Weight(key, HEADER_DTYPES[e.dtype], tuple(e.shape), e.offset_bytes, e.length_bytes))
    return found, others


def shards(all_: list[Weight], limit: int) -> list[list[Weight]]:
    """In the given order, each as full as it can be; a tensor above the limit has one of its own."""
    cut: list[list[Weight]] = [[]]
    used = 0
    for weight in all_:
        if cut[-1] and used + weight.length > limit:
            cut.append([])
            used = 0
        cut[-1].append(weight)
        used += weight.length
    return cut


def write(source: Path, all_: list[Weight], limit: int, directory: Path) -> list[str]:
    """Names of the files that were written into `directory`."""
    cut = shards(all_, limit)
    if len(cut) == 1:
        write_file(source, cut[0], directory / SINGLE)
        return [SINGLE]
    names = [f"model-{n:05d}-of-{len(cut):05d}.safetensors" for n in range(1, len(cut) + 1)]
    for name, shard in zip(names, cut, strict=True):
        write_file(source, shard, directory / name)
    index = {
        "metadata": {"total_size": sum(w.length for w in all_)},
        "weight_map": {w.key: name for name, shard in zip(names, cut, strict=True) for w in shard},
    }
    _write_durably(directory / INDEX, [json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"])
    return [*names, INDEX]


def write_file(source: Path, shard: list[Weight], path: Path) -> None:
    """Tensors are laid by falling alignment, as safetensors itself does: so every one lies where its dtype may."""
    ordered = sorted(shard, key=lambda w: (-_item_bytes(w), w.key))
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for w in ordered:
        table[w.key] = {"dtype": w.dtype, "shape": list(w.shape), "data_offsets": [offset, offset + w.length]}
        offset += w.length
    header = json.dumps(table, separators=(",", ":")).encode()
    header = header.ljust(len(header) + -len(header) % 8)
    with source.open("rb") as file:
        pieces = (piece for w in ordered for piece in _read(file.fileno(), w.offset, w.length))
        _write_durably(path, [len(header).to_bytes(8, "little") + header], pieces)


def _item_bytes(weight: Weight) -> int:
    count = 1
    for n in weight.shape:
        count *= n
    return weight.length // count if count else 1


def _read(fd: int, offset: int, length: int) -> Any:
    while length:
        piece = os.pread(fd, min(length, _COPY_BYTES), offset)
        if not piece:
            raise OSError(f"the scratch file ends before byte {offset + length}")
        yield piece
        offset, length = offset + len(piece), length - len(piece)


def _write_durably(path: Path, head: list[bytes], more: Any = ()) -> None:
    with path.open("wb") as file:
        for piece in head:
            file.write(piece)
        for piece in more:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
