"""`holdfast samples`: which samples a job has trained on, epoch by epoch, and whether each came exactly once."""

import json
from dataclasses import asdict

import typer
from rich.console import Console
from rich.table import Table

from holdfast_cli.shared import (
    EXIT_DAMAGED,
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
    stores_of,
    the_only,
)
from holdfast_store.overview import Standing as SaveStanding
from holdfast_store.overview import overview
from holdfast_store.samples import EpochSamples, Standing, judge, read


def samples(
    uri: Uri,
    namespace: Namespace,
    job: Job,
    uid: Uid = "",
    endpoint: Endpoint = "",
    region: Region = "",
    retry_seconds: Retry = 60.0,
    output: Format = Output.TABLE,
) -> None:
    """Show from the checkpoints that each sample was trained on exactly once per epoch. Exit code 1: one was lost or came twice."""
    with errors_end_the_program():
        store = the_only(stores_of(open_checked(uri, endpoint, region, retry_seconds), namespace, job, uid))
        usable = [v.record for v in overview(store) if v.standing is SaveStanding.USABLE and v.record]
        found = judge(read(store, record) for record in reversed(usable))
    if not usable:
        fail(
            f"{namespace}/{job} has no usable checkpoint; `holdfast checkpoints --all` shows what there is",
            EXIT_DAMAGED,
        )
    if not found:
        fail(f"the checkpoints of {namespace}/{job} hold no ledger: no loader is read through batches()", EXIT_DAMAGED)
    if output is Output.JSON:
        typer.echo(json.dumps([asdict(epoch) for epoch in found], indent=2))
    else:
        _show(found)
    if any(epoch.standing is Standing.WRONG for epoch in found):
        raise typer.Exit(EXIT_DAMAGED)


def _show(found: list[EpochSamples]) -> None:
    table = Table(box=None, header_style="", pad_edge=False)
    for name in ("LOADER", "EPOCH", "SAMPLES", "OF", "STANDING", "DETAIL"):
        table.add_column(name, no_wrap=True)
    for e in found:
        table.add_row(e.loader, str(e.epoch), str(e.count), str(e.size or "-"), e.standing.value, e.detail)
    console = Console(width=None if typer.get_text_stream("stdout").isatty() else 240)
    console.print(table, soft_wrap=True)
