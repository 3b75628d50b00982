"""`holdfast verify`: reads every byte of a checkpoint and compares it with its digest, as a restore would."""

import json
from typing import Annotated

import typer

from holdfast_cli.progress import bar
from holdfast_cli.shared import (
    EXIT_DAMAGED,
    Format,
    Output,
    Place,
    at_a_place,
    errors_end_the_program,
    newest_of,
    parse_ref,
    record_of,
    size,
)
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
        record = record_of(store, wanted or newest_of(store))
        with bar() as shown:
            task = shown.add_task(f"checkpoint {record.ref}", total=None)
            result = verify_bytes(
                store,
                record,
                threads=threads,
                progress=lambda done, total: shown.update(task, completed=done, total=total),
            )
    _print(result, output)
    if result.problems:
        raise typer.Exit(EXIT_DAMAGED)


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
