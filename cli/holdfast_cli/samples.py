"""`holdfast samples`: which samples a job has trained on, epoch by epoch, and whether each came exactly once."""

import json
from dataclasses import asdict

import typer
from rich.console import Console
from rich.table import Table

from holdfast_cli.shared import EXIT_DAMAGED, Format, Output, Place, at_a_place, errors_end_the_program, fail
from holdfast_store.overview import Standing as SaveStanding
from holdfast_store.overview import overview
from holdfast_store.samples import EpochSamples, Standing, judge, read


@at_a_place(retry_seconds=60.0)
def samples(place: Place, output: Format = Output.TABLE) -> None:
    """Show from the checkpoints that each sample was trained on exactly once per epoch. Exit code 1: one was lost or came twice."""
    job = f"{place.namespace}/{place.job}"
    with errors_end_the_program():
        store = place.store()
        usable = [v.record for v in overview(store) if v.standing is SaveStanding.USABLE and v.record]
        found = judge(read(store, record) for record in reversed(usable))
    if not usable:
        fail(f"{job} has no usable checkpoint; `holdfast checkpoints --all` shows what there is", EXIT_DAMAGED)
    if not found:
        fail(f"the checkpoints of {job} hold no ledger: no loader is read through batches()", EXIT_DAMAGED)
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
