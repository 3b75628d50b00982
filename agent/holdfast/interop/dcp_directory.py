"""Reading a directory of torch.distributed.checkpoint, of any number of ranks, as a whole.

Its `.metadata` is a pickle, and torch reads it (and every object that is no tensor) with the unrestricted reader. Here it is read with a list of the
classes that torch itself writes there; everything else in it is refused.
"""

import io
import pickle
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from holdfast.interop.errors import Refused
from holdfast.interop.pickles import GuardedUnpickler, _of_torch

_REAL = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "builtins": {"set", "frozenset"},
}  # fmt: skip


class _Metadata(GuardedUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _REAL.get(module, ()):
            return super().find_class(module, name)
        if module.startswith("pathlib") and name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
            return PurePath  # where it was written; nobody looks there
        if module == "torch" and (found := _of_torch(name)) is not None:
            return found
        raise Refused(
            f".metadata names {module}.{name}, which torch does not write there: it is not what it seems to be"
        )


class _Reader(FileSystemReader):  # type: ignore[misc]
    """Reads what `_metadata_of` has let through."""

    def __init__(self, directory: Path, metadata: Any) -> None:
        super().__init__(str(directory))
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        return self._metadata


def _metadata_of(directory: Path) -> Any:
    with (directory / ".metadata").open("rb") as file:
        try:
            metadata = _Metadata(file).load()
        except Refused:
            raise
        except Exception as e:
            raise Refused(f".metadata cannot be read: {type(e).__name__}: {e}") from e
    for info in (metadata.storage_data or {}).values():
        name = info.relative_path
        if type(name) is not str:  # a path can say one name and mean another
            raise Refused(f".metadata says that data lie in a {type(name).__name__}, which is no name")
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            raise Refused(f".metadata says that data lie in {name!r}, outside of the directory")
        if not (directory / name).is_file():
            raise Refused(f"{name} is named by .metadata and not there: the directory is not complete")
    return metadata


class _Planner(_EmptyStateDictLoadPlanner):  # type: ignore[misc]
    """Objects that are no tensors are read by the restricted reader, as tensors are."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        try:
            loaded = torch.load(value, weights_only=True)
        except pickle.UnpicklingError as e:
            raise Refused(f"{name} holds more than plain values: {str(e).splitlines()[0]}") from e
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], loaded)
        else:
            self.state_dict[name] = loaded


def read(directory: Path) -> dict[str, Any]:
    """The nested state, as it was given to `dcp.save`. Held in memory. Raises Refused, OSError."""
    metadata = _metadata_of(directory)
    state: dict[str, Any] = {}
    try:
        _load_state_dict(state, storage_reader=_Reader(directory, metadata), planner=_Planner(), no_dist=True)
    except Refused:
        raise
    except Exception as e:
        cause = e.__cause__ or e
        refused = next((x for x in _causes(e) if isinstance(x, Refused)), None)
        raise refused or Refused(f"the DCP directory cannot be read: {type(cause).__name__}: {str(cause)[:500]}") from e
    lacking = [k for k, v in _leaves(state) if isinstance(v, BytesStorageMetadata)]
    if lacking:
        raise Refused(f"nothing was stored for {', '.join(lacking[:5])}")
    return state


def _causes(error: BaseException) -> list[BaseException]:
    found = [error]
    failures = getattr(error, "failures", {})
    for value in failures.values() if isinstance(failures, dict) else ():
        found += [x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, BaseException)]
    if error.__cause__ is not None:
        found += _causes(error.__cause__)
    return found


def _leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(tree, dict):
        return [leaf for k, v in tree.items() for leaf in _leaves(v, f"{path}.{k}".lstrip("."))]
    if isinstance(tree, list):
        return [leaf for k, v in enumerate(tree) for leaf in _leaves(v, f"{path}.{k}")]
    return [(path, tree)]
