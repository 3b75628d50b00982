"""What a stored checkpoint holds, read without torch: the parts by name, and the tensors that belong to each."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from holdfast_api import codec
from holdfast_api.errors import ContractError
from holdfast_api.manifest import CommitRecord, RankManifest, TensorEntry
from holdfast_cli.shared import EXIT_DAMAGED, EXIT_USAGE, fail
from holdfast_rank.image import STATE_NAME
from holdfast_store.fetching import chunks_of, fetch
from holdfast_store.job import JobStore
from holdfast_store.whole import copy, whole

MOST_STATE_BYTES = 1 << 30


@dataclass(frozen=True)
class Stored:
    """Rank 0's part of a checkpoint. Of data-parallel ranks each holds the whole model; buffers are those of rank 0. Tensors of which each rank holds a part
    are whole after `put_together`."""

    record: CommitRecord
    manifest: RankManifest
    parts: dict[str, Any]
    entries: dict[str, TensorEntry]

    def modules(self) -> list[str]:
        return [name for name, body in self.parts.items() if is_module(body)]

    def chosen_module(self, wanted: str) -> str:
        """Ends the program if the choice is not clear."""
        modules = self.modules()
        if wanted and wanted not in modules:
            fail(f"--part {wanted}: the checkpoint's modules are {', '.join(modules) or 'none'}", EXIT_USAGE)
        if not wanted and len(modules) != 1:
            fail(f"the checkpoint has {len(modules)} modules; choose one with --part: {', '.join(modules)}", EXIT_USAGE)
        return wanted or modules[0]

    def entries_of(self, body: Any) -> list[TensorEntry]:
        """Ends the program if rank 0 does not know one of them."""
        names = tensor_names(body)
        lacking = [n for n in names if n not in self.entries]
        if lacking:
            fail(
                f"rank 0 does not hold {lacking[0]} (and {len(lacking) - 1} more): state that is spread over ranks is not exported yet",
                EXIT_DAMAGED,
            )
        return [self.entries[n] for n in names]


def put_together(
    store: JobStore,
    found: Stored,
    entries: list[TensorEntry],
    image: Path,
    *,
    threads: int,
    progress: Callable[[int, int], None],
) -> Stored:
    """The same with those of `entries` that are parts (FSDP2, tensor parallel) as wholes behind rank 0's image in the file `image`. The images of the ranks are
    fetched one after the other, and only as far as they are needed. Raises as the store does; Corrupt where the parts do not make a whole."""
    names = [e.name for e in entries if e.global_shape]
    if not names:
        return found
    manifests = {e.rank: store.read_manifest(found.record, e.rank) for e in found.record.ranks}
    made = whole(names, manifests, found.manifest.image_bytes)
    part = image.with_name("image-of-a-rank")
    total, done = sum(e.length_bytes for entries in made.needed.values() for e in entries), 0
    with image.open("r+b") as target:
        target.truncate(made.end)
        for rank, needed in made.needed.items():
            fetch(store, manifests[rank], chunks_of(manifests[rank], needed), part, threads=threads)
            with part.open("rb") as source:
                copy((r for r in made.runs if r.rank == rank), source.fileno(), target.fileno())
            part.unlink()
            done += sum(e.length_bytes for e in needed)
            progress(done, total)
    return replace(
        found,
        manifest=replace(found.manifest, image_bytes=made.end),
        entries=found.entries | {e.name: e for e in made.entries},
    )


def as_wholes(tree: Any) -> Any:
    """A part of the document in which no tensor is a part of another one any more."""
    if isinstance(tree, list):
        return [as_wholes(v) for v in tree]
    if isinstance(tree, dict):
        return {"$tensor": tree["$part"]} if "$part" in tree else {k: as_wholes(v) for k, v in tree.items()}
    return tree


def is_module(body: Any) -> bool:
    return isinstance(body, dict) and {"state", "loose"} <= body.keys()


def tensor_names(tree: Any) -> list[str]:
    """Every tensor that a part of the document refers to, in order."""
    if isinstance(tree, list):
        return [n for v in tree for n in tensor_names(v)]
    if isinstance(tree, dict):
        for tag in ("$tensor", "$ndarray", "$part"):
            if tag in tree:
                return [tree[tag]]
        return [n for v in tree.values() for n in tensor_names(v)]
    return []


def read(store: JobStore, record: CommitRecord, scratch: Path) -> Stored:
    """Fetches the state's document into the sparse image `scratch`. Raises as the store does, and Corrupt-like failures end the program."""
    manifest = store.read_manifest(record, 0)
    entries = {e.name: e for e in manifest.tensors}
    state = entries.get(STATE_NAME)
    if state is None or state.length_bytes > MOST_STATE_BYTES:
        fail(
            f"checkpoint {record.ref} was not made by the holdfast library: there is no {STATE_NAME} in it",
            EXIT_DAMAGED,
        )
    fetch(store, manifest, chunks_of(manifest, [state]), scratch)
    with scratch.open("rb") as file:
        file.seek(state.offset_bytes)
        text = file.read(state.length_bytes)
    try:
        parts = codec.parse(text, max_bytes=MOST_STATE_BYTES)["parts"]
        if not isinstance(parts, dict):
            raise TypeError("parts is no object")
    except (ContractError, KeyError, TypeError) as e:
        fail(f"the state in checkpoint {record.ref} is not readable: {e}", EXIT_DAMAGED)
    return Stored(record, manifest, parts, entries)
