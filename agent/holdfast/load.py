"""From a verified image file to the live objects (C3, C4, S3).

Everything is checked before anything is touched: bounds of every tensor, the document, finite parameters, keys and shapes in both directions. A load
that fails has changed nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import torch

from holdfast import filling, rng
from holdfast.errors import CheckpointDamaged
from holdfast.finite import must_be_finite
from holdfast.mapped import MappedImage
from holdfast.progress import Progress
from holdfast.reshard import Source
from holdfast.state import Registry, read_document
from holdfast_api import codec
from holdfast_api.errors import ContractError
from holdfast_api.manifest import MAX_MANIFEST_BYTES, TensorEntry
from holdfast_api.ranks import OtherWorld
from holdfast_rank.image import STATE_NAME


def load_image(
    path: str,
    image_bytes: int,
    entries: Sequence[TensorEntry],
    registry: Registry,
    progress: Progress,
    *,
    finite: bool = False,
    image: MappedImage | None = None,
) -> dict[str, Any]:
    """Makes the registered objects equal to the image. Returns the random generators' state, which has been put back already. `finite`: it has been seen
    already that what must be finite is. `image`: the file, if it has been mapped ahead.

    Raises CheckpointDamaged when the image is at fault, RestoreError when image and program do not fit, OSError.
    """
    tensors = open_image(path, image_bytes, entries, image)
    try:
        document = read_document(tensors.pop(STATE_NAME).numpy().tobytes())
    except (KeyError, TypeError, AttributeError) as e:
        raise CheckpointDamaged(f"the state in the image is incomplete: {type(e).__name__}: {e}") from e
    return _load(document, tensors, registry, progress, finite=finite)


def load_parts(
    document: dict[str, Any],
    path: str,
    image_bytes: int,
    entries: Sequence[TensorEntry],
    registry: Registry,
    progress: Progress,
    *,
    finite: bool = False,
) -> dict[str, Any]:
    """As `load_image`, of an image that holds tensors alone, and the state that was made for it (reshard.py)."""
    return _load(document, open_image(path, image_bytes, entries), registry, progress, finite=finite)


def read_sources(offer: OtherWorld) -> list[Source]:
    """What every rank of a checkpoint says of itself. Raises CheckpointDamaged, OSError."""
    found = []
    with open(offer.path, "rb") as file:
        for at in offer.sources:
            state, tensors = (
                _bytes_at(file, at.state_at, at.state_bytes),
                _bytes_at(file, at.tensors_at, at.tensors_bytes),
            )
            try:
                entries = [codec.from_plain(TensorEntry, t) for t in codec.parse(tensors, max_bytes=MAX_MANIFEST_BYTES)]
            except ContractError as e:
                raise CheckpointDamaged(f"rank {at.rank}: the list of tensors is not readable: {e}") from e
            found.append(Source(read_document(state), {e.name: e for e in entries}))
    return found


def _bytes_at(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _load(
    document: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    registry: Registry,
    progress: Progress,
    *,
    finite: bool,
) -> dict[str, Any]:
    try:
        if not finite:
            check_finite(document, tensors)
        registry.compare(document, tensors)
    except (KeyError, TypeError, AttributeError) as e:
        raise CheckpointDamaged(f"the state in the image is incomplete: {type(e).__name__}: {e}") from e
    with torch.no_grad():
        generators = registry.load(document, tensors, progress)
    rng.put_back(generators)
    return generators


def open_image(
    path: str, image_bytes: int, entries: Sequence[TensorEntry], image: MappedImage | None = None
) -> dict[str, torch.Tensor]:
    """Tensors that view the file, by name, ties included. A private mapping: whatever is done to them, the file stays."""
    if image is None or not image.is_of(path, image_bytes):
        image = MappedImage(path, image_bytes)
    return {entry.name: view_of(image.bytes, entry) for entry in entries}


def check_finite(document: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Parameters that are trained, and optimizer state, must be finite (C4). Gradients need not: a scaler skips the infinite ones.

    A read of its own, by several threads, before anything is touched: what is half loaded could not be told from what is whole afterwards.
    """
    name = filling.first_not_finite([(name, tensors[name]) for name in must_be_finite(document)])
    if name is not None:
        raise CheckpointDamaged(f"{name} holds NaN or infinite values")


def view_of(whole: torch.Tensor, entry: TensorEntry) -> torch.Tensor:
    dtype = getattr(torch, entry.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointDamaged(f"{entry.name}: dtype {entry.dtype!r} is unknown to torch {torch.__version__}")
    length = math.prod(entry.shape) * dtype.itemsize
    inside = entry.offset_bytes >= 0 and entry.offset_bytes + length <= whole.numel()
    if not inside or length != entry.length_bytes or any(n < 0 for n in entry.shape):
        raise CheckpointDamaged(
            f"{entry.name}: {entry.length_bytes} bytes at {entry.offset_bytes} do not hold {entry.dtype} of shape {entry.shape}"
        )
    if length == 0:
        return torch.empty(entry.shape, dtype=dtype)
    return whole[entry.offset_bytes : entry.offset_bytes + length].view(dtype).view(entry.shape)
