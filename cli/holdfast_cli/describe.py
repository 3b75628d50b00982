"""`holdfast describe`: everything a checkpoint says about the run that made it."""

import json
from typing import Annotated, Any

import typer

from holdfast_api.codec import format_time
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


@at_a_place()
def describe(
    place: Place,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", "-c", help="ATTEMPT/SAVE; default: the newest usable one.")
    ] = "",
    output: Format = Output.TABLE,
) -> None:
    """Show what a checkpoint says about its run: code, data, packages, machine, hyper-parameters, metrics, timings."""
    wanted = parse_ref(checkpoint) if checkpoint else None
    with errors_end_the_program():
        record = _record(place.store(), wanted)
    if output is Output.JSON:
        typer.echo(json.dumps(_plain(record), indent=2))
    else:
        typer.echo("\n".join(_lines(record)))


def _record(store: JobStore, wanted: CheckpointRef | None) -> CommitRecord:
    found = [wanted] if wanted else usable(store)[:1]
    try:
        return store.read_commit(found[0])[0]
    except (Absent, IndexError):
        what = (
            f"checkpoint {wanted} does not exist"
            if wanted
            else f"{store.namespace}/{store.job} has no usable checkpoint"
        )
        fail(f"{what}; `holdfast checkpoints --all` shows what there is", EXIT_DAMAGED)


def _plain(record: CommitRecord) -> dict[str, Any]:
    at = record.progress
    return {
        "checkpoint": str(record.ref),
        "cause": record.cause.value,
        "createdAt": format_time(record.created_at),
        "step": at.boundary,
        "updates": at.updates,
        "epoch": at.epoch,
        "samples": at.samples,
        "ranks": len(record.ranks),
        "bytes": record.bytes_logical,
        "run": record.run,
        "config": {name: _value(text) for name, text in record.config.items()},
        "metrics": record.metrics,
        "history": [{"step": p.boundary, **p.values} for p in record.history],
        "timings": record.timings,
    }


def _value(text: str) -> Any:
    """Another writer's text may be no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _lines(record: CommitRecord) -> list[str]:
    plain = _plain(record)
    about = {k: plain[k] for k in ("cause", "createdAt", "step", "updates", "epoch", "samples", "ranks")}
    lines = [f"checkpoint {record.ref}", *_table(about | {"bytes": size(record.bytes_logical)})]
    for title, table in (
        ("run", record.run),
        ("config", record.config),
        ("metrics", record.metrics),
        ("timings, seconds", {k: f"{v:.3f}" for k, v in record.timings.items()}),
    ):
        lines += ["", title, *(_table(table) if table else ["  missing: none recorded"])]
    lines += ["", "history"]
    lines += [f"  step {p.boundary}  " + "  ".join(f"{k}={v:.6g}" for k, v in p.values.items()) for p in record.history]
    return lines if record.history else [*lines, "  missing: none recorded"]


def _table(values: dict[str, Any]) -> list[str]:
    width = max(map(len, values))
    return [f"  {name.ljust(width)}  {_printable(str(value))}" for name, value in values.items()]


def _printable(text: str) -> str:
    """On one line, and nothing that a terminal would take for an order."""
    return "".join(c if c.isprintable() else " " for c in text)
