"""`holdfast checkpoints`: what a job has saved, and what of it can be used."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from holdfast_api import soundness
from holdfast_api.codec import format_time
from holdfast_cli.shared import (
    Format,
    Output,
    Place,
    at_a_place,
    errors_end_the_program,
    size,
)
from holdfast_store.overview import SaveView, Standing, overview


@at_a_place()
def checkpoints(
    place: Place,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also show expired and unfinished saves.")] = False,
    output: Format = Output.TABLE,
) -> None:
    """List the checkpoints of a job, newest first. A checkpoint is named ATTEMPT/SAVE."""
    with errors_end_the_program():
        stores = place.stores()
        found = [(store.job_uid, view) for store in stores for view in overview(store) if everything or _counts(view)]
    if output is Output.JSON:
        typer.echo(json.dumps([_plain(job_uid, view) for job_uid, view in found], indent=2))
    else:
        _show(found, several=len(stores) > 1)


def _counts(view: SaveView) -> bool:
    return view.standing not in (Standing.EXPIRED, Standing.UNFINISHED)


def _plain(job_uid: str, view: SaveView) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "jobUid": job_uid,
        "checkpoint": str(view.ref),
        "standing": view.standing.value,
        "storedBytes": view.stored_bytes,
        "problem": view.problem,
    }
    if view.record:
        plain |= {
            "step": view.record.progress.boundary,
            "cause": view.record.cause.value,
            "createdAt": format_time(view.record.created_at),
            "bytes": sum(e.image_bytes for e in view.record.ranks),
            "ranks": len(view.record.ranks),
            "base": str(view.record.base) if view.record.base else None,
            "metrics": view.record.metrics,
            "run": view.record.run,
            "config": view.record.config,
            "finite": view.record.finite,
            "notFinite": list(view.record.not_finite),
            "suspect": view.record.suspect,
            "damage": view.damage,
        }
    return plain


_FINITE = {True: "yes", False: "NO", None: "unknown"}
"""Whether trained parameters and optimizer state are; nobody looks in an emergency."""


def _show(found: list[tuple[str, SaveView]], *, several: bool) -> None:
    table = Table(box=None, header_style="", pad_edge=False)
    for name in (
        *(("UID",) if several else ()),
        "CHECKPOINT",
        "STANDING",
        "STEP",
        "CAUSE",
        "CREATED",
        "SIZE",
        "STORED",
        "RANKS",
        "BASE",
        "FINITE",
    ):
        table.add_column(name, no_wrap=True)
    for job_uid, view in found:
        cells = [job_uid] if several else []
        cells += [str(view.ref), view.standing.value]
        if view.record:
            r = view.record
            created = r.created_at.strftime("%Y-%m-%d %H:%M:%SZ")
            cells += [
                str(r.progress.boundary),
                r.cause.value,
                created,
                size(sum(e.image_bytes for e in r.ranks)),
                size(view.stored_bytes),
            ]
            cells += [str(len(r.ranks)), str(r.base or "-"), _FINITE[r.finite]]
        else:
            cells += ["-", "-", "-", "-", size(view.stored_bytes), "-", "-", "-"]
        table.add_row(*cells)
    # A pipe has no width; cutting columns there would break scripts.
    console = Console(width=None if typer.get_text_stream("stdout").isatty() else 240)
    console.print(table, soft_wrap=True)
    for _, view in found:
        if view.problem:
            typer.echo(f"{view.ref}: {view.problem}", err=True)
        if view.damage:
            typer.echo(f"{view.ref}: a scrub has found damage in the store: {view.damage}", err=True)
        if view.record and view.record.suspect:
            typer.echo(f"{view.ref}: {soundness.words(view.record.suspect)}", err=True)
