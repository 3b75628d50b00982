"""`holdfast scrub`: re-reads everything that a job has stored, mends what it can, and says what is damaged."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from holdfast_api.layout import CheckpointRef
from holdfast_cli.progress import bar
from holdfast_cli.shared import (
    EXIT_DAMAGED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    Format,
    Output,
    Place,
    at_a_place,
    errors_end_the_program,
    fail,
    size,
)
from holdfast_store.job import JobStore
from holdfast_store.local import LocalTier
from holdfast_store.scrub import Ended, OnNode, Pace, Round, Scrubbed, Source
from holdfast_store.scrub import scrub as scrub_store


@at_a_place(retry_seconds=60.0)
def scrub(
    place: Place,
    bytes_per_second: Annotated[
        int, typer.Option("--bytes-per-second", min=0, help="Read no faster, on average. 0: no limit.")
    ] = 0,
    local_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--local-dir",
            help="A node's directory of this job (spec.checkpoint.local) to mend from; may be given several times.",
        ),
    ] = None,
    mend: Annotated[
        bool, typer.Option("--mend/--no-mend", help="Write damaged chunks anew where the same bytes are found.")
    ] = True,
    anew: Annotated[
        bool, typer.Option("--anew", help="Begin a new round instead of going on with one that was cut short.")
    ] = False,
    output: Format = Output.TABLE,
) -> None:
    """Re-read every stored checkpoint and verify every byte; goes on where it was cut short. Exit code 1: something is damaged."""
    with errors_end_the_program():
        store = place.store()
        sources = [_node(store, folder) for folder in local_dir or ()]
        with bar() as shown, _interrupts() as interrupted:
            task = shown.add_task("scrub", total=None)

            def progress(ref: CheckpointRef, done: int, total: int) -> None:
                shown.update(task, description=f"checkpoint {ref}", completed=done, total=total)

            pace = Pace(bytes_per_second, ended=interrupted.is_set)
            try:
                found = scrub_store(store, pace=pace, sources=sources, mend=mend, anew=anew, progress=progress)
            except Ended:
                fail("interrupted; the next `holdfast scrub` goes on from here", EXIT_INTERRUPTED)
    if not (found.done or found.before):
        fail(f"{store.namespace}/{store.job} ({store.job_uid}) has no checkpoint", EXIT_DAMAGED)
    _print(found, output)
    if found.problems:
        raise typer.Exit(EXIT_DAMAGED)


def _node(store: JobStore, folder: Path) -> Source:
    if not folder.is_dir():
        fail(f"--local-dir {folder} is no directory", EXIT_USAGE)
    return OnNode(LocalTier(folder, store.namespace, store.job, store.job_uid))


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM end it after the chunk in hand, with the notes written."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(found: Round, output: Output) -> None:
    if output is Output.JSON:
        plain = {
            "intact": not found.problems,
            "readBefore": [_plain(each) for each in found.before],
            "checkpoints": [_plain(each) for each in found.done],
        }
        typer.echo(json.dumps(plain, indent=2))
        return
    table = Table(box=None, header_style="", pad_edge=False)
    for name in ("CHECKPOINT", "VERDICT", "CHUNKS", "READ", "DETAIL"):
        table.add_column(name, no_wrap=True)
    for each in (*found.before, *found.done):
        detail = "; ".join((*each.problems, *each.mended)) or "-"
        read = (str(each.chunks), size(each.bytes_read)) if each in found.done else ("-", "before")
        table.add_row(str(each.ref), _word(each), *read, detail)
    console = Console(width=None if typer.get_text_stream("stdout").isatty() else 2000)
    console.print(table, soft_wrap=True)
    before = f", {len(found.before)} were read before" if found.before else ""
    typer.echo(f"{len(found.done)} checkpoints, {size(sum(e.bytes_read for e in found.done))} read{before}")


def _word(each: Scrubbed) -> str:
    return "DAMAGED" if each.problems else "mended" if each.mended else "intact"


def _plain(each: Scrubbed) -> dict[str, Any]:
    return {
        "checkpoint": str(each.ref),
        "verdict": _word(each).lower(),
        "chunks": each.chunks,
        "bytes": each.bytes_read,
        "mended": list(each.mended),
        "problems": list(each.problems),
    }
