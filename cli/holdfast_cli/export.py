"""`holdfast export`: a stored checkpoint in the files of other tools. Reads and verifies what it needs, writes beside the target, and renames at the end."""

import contextlib
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast_api import codec
from holdfast_cli import safetensors_layout, stored
from holdfast_cli.converter import convert
from holdfast_cli.progress import bar
from holdfast_cli.shared import (
    EXIT_DAMAGED,
    EXIT_USAGE,
    Format,
    Output,
    Place,
    at_a_place,
    errors_end_the_program,
    fail,
    newest_of,
    parse_ref,
    record_of,
    size,
)
from holdfast_cli.stored import Stored
from holdfast_store.fetching import chunks_of, fetch

PREFIX = ".holdfast-export-"
"""Of what is not whole yet: an export that is killed leaves such folders, and nothing under the target's name."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?\Z")
_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}


class Kind(StrEnum):
    SAFETENSORS = "safetensors"
    STATE_DICT = "state-dict"
    DCP = "dcp"


@at_a_place(retry_seconds=60.0)
def export(
    place: Place,
    to: Annotated[
        Path,
        typer.Option(
            "--to", help="What to write; must not exist. A directory for safetensors and dcp, a file for state-dict."
        ),
    ],
    kind: Annotated[
        Kind,
        typer.Option(
            "--format",
            "-f",
            help="safetensors: weights in the Hugging Face layout. state-dict: a .pt file that "
            "torch.load(weights_only=True) reads. dcp: a directory of torch.distributed.checkpoint.",
        ),
    ] = Kind.SAFETENSORS,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", "-c", help="ATTEMPT/SAVE; default: the newest usable one.")
    ] = "",
    part: Annotated[str, typer.Option("--part", help="Which registered module, where there are several.")] = "",
    everything: Annotated[
        bool,
        typer.Option("--everything", help="All parts, optimizers and schedulers too, by name. Not for safetensors."),
    ] = False,
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", help="Of a .safetensors file, for example 5GB or 512MiB.")
    ] = "5GB",
    scratch: Annotated[
        Path | None,
        typer.Option(
            "--scratch", help="Where the chunks that are needed are put meanwhile; default: beside the target."
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, max=64, help="Chunks read at a time.")] = 4,
    output: Format = Output.TABLE,
) -> None:
    """Write a checkpoint's weights, or everything, as safetensors, state_dict or DCP directory. Exit code 1: it is damaged, or cannot be written so."""
    if everything and kind is Kind.SAFETENSORS:
        fail("--everything: safetensors hold tensors alone; add --format state-dict or --format dcp", EXIT_USAGE)
    if everything and part:
        fail("--everything and --part exclude each other", EXIT_USAGE)
    limit = shard_bytes(max_shard_size)
    wanted = parse_ref(checkpoint) if checkpoint else None
    with errors_end_the_program(), beside(to, scratch) as (room, written):
        store = place.store()
        record = record_of(store, wanted or newest_of(store))
        image = room / "image"
        source = store.for_job(record.job_uid)
        found = stored.read(source, record, image)
        bodies = _chosen(found, part, everything)
        entries = [e for body in bodies.values() for e in found.entries_of(body)]
        if everything and (
            many := [n for n, b in bodies.items() if isinstance(b, dict) and int(b.get("ranks") or 1) > 1]
        ):
            fail(
                f"{', '.join(many)} is spread over {len(record.ranks)} ranks (ZeRO-1), which an export does not merge: leave --everything out",
                EXIT_DAMAGED,
            )
        with bar() as shown:
            fetching = shown.add_task(f"checkpoint {record.ref}", total=None)
            told = lambda done, total: shown.update(fetching, completed=done, total=total)  # noqa: E731
            own = chunks_of(found.manifest, [e for e in entries if not e.global_shape])
            fetch(source, found.manifest, own, image, threads=threads, progress=told)
            found = stored.put_together(source, found, entries, image, threads=threads, progress=told)
            bodies = {name: stored.as_wholes(body) for name, body in bodies.items()}
            entries = [found.entries[e.name] for e in entries]
            counted = _write(found, bodies, entries, image, kind, everything, limit, written, shown)
        hand_out(written, to)
    said: dict[str, Any] = {
        "checkpoint": str(record.ref),
        "boundary": record.progress.boundary,
        "to": str(to),
        "format": kind.value,
        "parts": [*bodies],
    } | counted
    if output is Output.JSON:
        typer.echo(json.dumps(said, indent=2))
        return
    typer.echo(f"checkpoint {record.ref} (step {record.progress.boundary}): {', '.join(bodies)} as {kind.value} in {to}; "
               f"{said['tensors']} tensors, {size(said['bytes'])}")  # fmt: skip
    for key in said["leftOut"]:
        typer.echo(f"left out, no tensor: {key}", err=True)


def _chosen(found: Stored, part: str, everything: bool) -> dict[str, Any]:
    if everything:
        return found.parts
    name = found.chosen_module(part)
    return {name: found.parts[name] | {"loose": {}}}


def _write(
    found: Stored,
    bodies: dict[str, Any],
    entries: list[Any],
    image: Path,
    kind: Kind,
    everything: bool,
    limit: int,
    written: Path,
    shown: Any,
) -> dict[str, Any]:
    if kind is Kind.SAFETENSORS:
        (body,) = bodies.values()
        try:
            weights, others = safetensors_layout.weights(body["state"], found.entries)
        except ValueError as e:
            fail(str(e), EXIT_DAMAGED)
        written.mkdir()
        files = safetensors_layout.write(image, weights, limit, written)
        return {"files": files, "tensors": len(weights), "bytes": sum(w.length for w in weights), "leftOut": others}
    request = {
        "verb": "export",
        "format": kind.value,
        "flat": not everything,
        "image": str(image.resolve()),
        "image_bytes": found.manifest.image_bytes,
        "entries": [codec.to_plain(e) for e in {e.name: e for e in entries}.values()],
        "parts": bodies,
        "to": str(written.resolve()),
    }
    writing = shown.add_task(f"writing {kind.value}", total=None)
    answer = convert(request, lambda done, total: shown.update(writing, completed=done, total=total))
    files = sorted(p.name for p in written.iterdir()) if written.is_dir() else []
    return {"files": files, "tensors": answer["tensors"], "bytes": answer["bytes"], "leftOut": []}


@contextlib.contextmanager
def beside(to: Path, scratch: Path | None) -> Iterator[tuple[Path, Path]]:
    """(room for the sparse image, the name under which the result is made); both are gone at the end, whatever happens but SIGKILL. Ends the program if `to`
    exists; says what exports that were killed have left there."""
    if to.exists() or to.is_symlink():
        fail(f"--to {to} exists; nothing is overwritten", EXIT_USAGE)
    folders = [scratch or to.parent, to.parent]
    for left in dict.fromkeys(left for folder in folders for left in left_behind(folder)):
        typer.echo(f"left by an export that was killed, and of no use: {left}", err=True)
    with contextlib.ExitStack() as held:
        try:
            room, made = (held.enter_context(_folder(folder)) for folder in folders)
        except OSError as e:
            fail(f"{e.filename}: {e.strerror}", EXIT_USAGE)
        try:
            yield room, made / to.name
        except OSError as e:
            fail(f"{e.filename or to}: {e.strerror or e}", EXIT_USAGE)


@contextlib.contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """A new one, locked for as long as this process lives."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True) as name:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(name)
        finally:
            os.close(fd)


def left_behind(parent: Path) -> list[Path]:
    """Folders of exports that no process works in any more."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(parent.glob(f"{PREFIX}*")):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    found.append(path)
                finally:
                    os.close(fd)
    return found


def hand_out(written: Path, to: Path) -> None:
    """`to` appears whole and durably, also if the power fails right after. FileExistsError if another has made it meanwhile: nothing is overwritten."""
    for path in (*(sorted(written.rglob("*")) if written.is_dir() else ()), written):
        _flush(path)
    if written.is_dir():
        written.rename(to)  # replaces an empty directory at most
    else:
        try:
            to.hardlink_to(written)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            written.rename(to)
    _flush(to.parent)


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def shard_bytes(text: str) -> int:
    match = _SIZE.match(text.strip())
    count = int(float(match[1]) * _UNITS[match[2] or "B"]) if match else 0
    if count < 1:
        fail(f"--max-shard-size {text!r} is no size: write for example 5GB or 512MiB", EXIT_USAGE)
    return count
