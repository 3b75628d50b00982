"""`holdfast verify`: reads every byte of a checkpoint and compares it with its digest, as a restore would."""

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import CommitRecord
from holdfast_cli.shared import (
    EXIT_DAMAGED,
    Format,
    Output,
    Place,
    at_a_place,
    errors_end_the_program,
    fail,
    parse_ref,
    size,
    usable,
)
from holdfast_store.errors import Absent
from holdfast_store.job import JobStore
from holdfast_store.verify import Verification
from holdfast_store.verify import verify as verify_bytes


@at_a_place(retry_seconds=60.0)
def verify(
    place: Place,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", "-c", help="ATTEMPT/SAVE; default: the newest usable one.")
    ] = "",
    threads: Annotated[int, typer.Option("--threads", min=1, max=64, help="Chunks read at a time.")] = 4,
    output: Format = Output.TABLE,
) -> None:
    """Verify every byte of a checkpoint. Exit code 1: it is damaged, or does not exist."""
    wanted = parse_ref(checkpoint) if checkpoint else None
    with errors_end_the_program():
        store = place.store()
        record = _record(store, wanted or _newest(store))
        with _bar() as bar:
            task = bar.add_task(f"checkpoint {record.ref}", total=None)
            result = verify_bytes(
                store,
                record,
                threads=threads,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    _print(result, output)
    if result.problems:
        raise typer.Exit(EXIT_DAMAGED)


def _record(store: JobStore, ref: CheckpointRef) -> CommitRecord:
    try:
        return store.read_commit(ref)[0]
    except Absent:
        fail(
            f"checkpoint {ref} does not exist: it is expired, or was never committed; see `holdfast checkpoints --all`",
            EXIT_DAMAGED,
        )


def _newest(store: JobStore) -> CheckpointRef:
    found = usable(store)
    if not found:
        fail(
            f"{store.namespace}/{store.job} has no usable checkpoint; `holdfast checkpoints --all` shows what there is",
            EXIT_DAMAGED,
        )
    return found[0]


def _bar() -> Progress:
    """On standard error, so that standard output holds the result alone; nothing where nobody looks."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())


def _print(result: Verification, output: Output) -> None:
    if output is Output.JSON:
        plain = {
            "checkpoint": str(result.ref),
            "intact": not result.problems,
            "chunks": result.chunks,
            "bytes": result.bytes_read,
            "problems": [*result.problems],
        }
        typer.echo(json.dumps(plain, indent=2))
        return
    for problem in result.problems:
        typer.echo(problem)
    word = f"DAMAGED: {len(result.problems)} problems" if result.problems else "intact"
    typer.echo(f"checkpoint {result.ref}: {word}; {result.chunks} chunks, {size(result.bytes_read)}")
