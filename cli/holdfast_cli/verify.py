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
    EXIT_USAGE,
    Endpoint,
    Format,
    Job,
    Namespace,
    Output,
    Region,
    Retry,
    Uid,
    Uri,
    errors_end_the_program,
    fail,
    open_checked,
    size,
    stores_of,
    the_only,
)
from holdfast_store.errors import Absent
from holdfast_store.job import JobStore
from holdfast_store.overview import Standing, overview
from holdfast_store.verify import Verification
from holdfast_store.verify import verify as verify_bytes


def verify(
    uri: Uri,
    namespace: Namespace,
    job: Job,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", "-c", help="ATTEMPT/SAVE; default: the newest usable one.")
    ] = "",
    uid: Uid = "",
    endpoint: Endpoint = "",
    region: Region = "",
    retry_seconds: Retry = 60.0,
    threads: Annotated[int, typer.Option("--threads", min=1, max=64, help="Chunks read at a time.")] = 4,
    output: Format = Output.TABLE,
) -> None:
    """Verify every byte of a checkpoint. Exit code 1: it is damaged, or does not exist."""
    wanted = _parse(checkpoint)
    with errors_end_the_program():
        store = the_only(stores_of(open_checked(uri, endpoint, region, retry_seconds), namespace, job, uid))
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


def _parse(text: str) -> CheckpointRef | None:
    try:
        return CheckpointRef.parse(text) if text else None
    except ValueError as e:
        fail(f"--checkpoint: {e}", EXIT_USAGE)


def _record(store: JobStore, ref: CheckpointRef) -> CommitRecord:
    try:
        return store.read_commit(ref)[0]
    except Absent:
        fail(
            f"checkpoint {ref} does not exist: it is expired, or was never committed; see `holdfast checkpoints --all`",
            EXIT_DAMAGED,
        )


def _newest(store: JobStore) -> CheckpointRef:
    usable = [view.ref for view in overview(store) if view.standing is Standing.USABLE]
    if not usable:
        fail(
            f"{store.namespace}/{store.job} has no usable checkpoint; `holdfast checkpoints --all` shows what there is",
            EXIT_DAMAGED,
        )
    return usable[0]


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
