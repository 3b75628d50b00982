"""`holdfast import`: makes a checkpoint of files that another tool has saved, as the first save of a job of its own, which another job continues."""

import dataclasses
import json
import tempfile
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast_api import codec
from holdfast_api.manifest import CommitRecord, Progress, TensorEntry
from holdfast_cli.converter import convert
from holdfast_cli.progress import bar
from holdfast_cli.shared import EXIT_USAGE, Format, Output, Place, at_a_place, errors_end_the_program, fail, size
from holdfast_store.adopt import Foreign, adopt, refuse_a_job_that_has_begun

MIB = 1 << 20


@at_a_place(retry_seconds=60.0)
def import_(
    place: Place,
    source: Annotated[
        Path,
        typer.Option(
            "--from",
            help="A .safetensors file, a directory with shards and index, a .pt file, a DCP, DeepSpeed ZeRO or "
            "Lightning checkpoint. What it is, is found out.",
        ),
    ],
    name: Annotated[
        str, typer.Option("--model", help="What the module is registered as, where the files do not say.")
    ] = "model",
    part: Annotated[
        list[str] | None,
        typer.Option("--part", help="FOUND=NAME: a part of the files under the name that the script registers."),
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option("--leave-out", help="A part of the files that is not wanted; several times.")
    ] = None,
    anew: Annotated[
        list[str] | None,
        typer.Option(
            "--anew",
            help="A part that the script registers and the files lack: it starts as the script makes it. "
            "Without it a start is refused. Several times.",
        ),
    ] = None,
    ranks: Annotated[
        int, typer.Option("--ranks", min=1, help="Training processes in all that will resume from it.")
    ] = 1,
    boundary: Annotated[
        int | None,
        typer.Option(
            "--boundary",
            min=0,
            max=1 << 53,
            help="Number of ckpt.step() calls so far; default: what the files say, else 0.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=1 << 53, help="Of the random generators; each rank adds its number.")
    ] = 0,
    trust: Annotated[
        bool,
        typer.Option(
            "--i-trust-this-file",
            help="Files that hold pickle with more than tensors and plain containers are refused without "
            "this. With it they are read by a process without credentials; classes off a short list become inert stand-ins.",
        ),
    ] = False,
    chunk_mib: Annotated[int, typer.Option("--chunk-mib", min=1, max=1024, help="Size of a chunk in MiB.")] = 16,
    scratch: Annotated[
        Path | None,
        typer.Option("--scratch", help="Where the image is made meanwhile; default: the system's folder for such."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, max=64, help="Chunks written at a time.")] = 4,
    output: Format = Output.TABLE,
) -> None:
    """Make a checkpoint of files that another tool has saved. Exit code 1: the files cannot be read or converted."""
    renames = dict(_pair(p) for p in part or ())
    place = dataclasses.replace(place, uid=place.uid or str(uuid.uuid4()))
    with errors_end_the_program():
        store = place.store()
        refuse_a_job_that_has_begun(store)
        try:
            room = tempfile.TemporaryDirectory(prefix="holdfast-import-", dir=scratch)
        except OSError as e:
            fail(f"--scratch {e.filename}: {e.strerror}", EXIT_USAGE)
        with room as folder, bar() as shown:
            reading = shown.add_task(f"reading {source.name}", total=None)
            request = {
                "verb": "import",
                "source": str(source.resolve()),
                "name": name,
                "renames": renames,
                "leave_out": leave_out or [],
                "anew": anew or [],
                "ranks": ranks,
                "boundary": boundary,
                "seed": seed,
                "trusted": trust,
                "chunk_bytes": chunk_mib * MIB,
                "scratch": folder,
            }
            made = convert(request, lambda done, total: shown.update(reading, completed=done, total=total))
            writing = shown.add_task("writing", total=None)
            record = adopt(
                store,
                foreign_of(made),
                {"imported_from": source.name, "imported_format": made["format"]},
                threads=threads,
                progress=lambda done, total: shown.update(writing, completed=done, total=total),
            )
    _print(record, made, output)


def foreign_of(made: dict[str, Any]) -> Foreign:
    return Foreign(
        image=Path(made["image"]),
        image_bytes=made["image_bytes"],
        chunk_bytes=made["chunk_bytes"],
        tensors=tuple(codec.from_plain(TensorEntry, e) for e in made["tensors"]),
        state_offset=made["state_offset"],
        states=tuple(s.encode() for s in made["states"]),
        progress=Progress(made["boundary"], made["boundary"], made["epoch"]),
    )


def _pair(text: str) -> tuple[str, str]:
    found, equals, name = text.partition("=")
    if not (found and equals and name):
        fail(f"--part {text!r}: write FOUND=NAME, for example module=model", EXIT_USAGE)
    return found, name


def _print(record: CommitRecord, made: dict[str, Any], output: Output) -> None:
    if output is Output.JSON:
        plain = {
            "jobUid": record.job_uid,
            "checkpoint": str(record.ref),
            "format": made["format"],
            "parts": made["parts"],
            "anew": made["anew"],
            "dropped": made["dropped"],
            "boundary": record.progress.boundary,
            "ranks": len(record.ranks),
            "bytes": record.bytes_logical,
            "storedBytes": record.bytes_stored,
        }
        typer.echo(json.dumps(plain, indent=2))
        return
    typer.echo(f"checkpoint {record.ref} of job uid {record.job_uid}: {', '.join(made['parts'])} from {made['format']}, step {record.progress.boundary}, "
               f"{len(record.ranks)} ranks, {size(record.bytes_stored)} stored")  # fmt: skip
    for dropped in made["dropped"]:
        typer.echo(f"not taken over: {dropped}", err=True)
    typer.echo(f"To train on from it add to the TrainingJob's spec:\n  resumeFrom: {{uid: {record.job_uid}}}\n"
               f"or, without Kubernetes: holdfast-agent run --local DIR --resume-from {record.job_uid} -- COMMAND")  # fmt: skip
