"""`holdfast expire --dry-run`: what a deletion would remove, and why what stays stays. Deletes nothing.

Checkpoints are deleted by the job's own lead when the operator gives them up (D1, D2): only it knows which bases are in use.
"""

import json
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from holdfast_api import layout
from holdfast_api.layout import CheckpointRef
from holdfast_cli.shared import (
    EXIT_USAGE,
    Format,
    Output,
    Place,
    at_a_place,
    errors_end_the_program,
    fail,
    parse_ref,
    size,
)
from holdfast_store.foretell import Fate, foretell
from holdfast_store.job import JobStore
from holdfast_store.overview import Standing, overview


@at_a_place()
def expire(
    place: Place,
    checkpoint: Annotated[
        list[str] | None, typer.Option("--checkpoint", "-c", help="ATTEMPT/SAVE; may be given several times.")
    ] = None,
    keep_last: Annotated[
        int | None,
        typer.Option("--keep-last", min=1, help="Every usable checkpoint but the newest so many."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Required: this program deletes nothing by itself.")
    ] = False,
    output: Format = Output.TABLE,
) -> None:
    """Say what deleting checkpoints, and then sweeping, would remove, and why the rest stays."""
    if not dry_run:
        fail(
            "add --dry-run: checkpoints are deleted by the job's lead when the operator gives them up, never from here",
            EXIT_USAGE,
        )
    if not checkpoint and keep_last is None:
        fail("say which: --checkpoint ATTEMPT/SAVE, or --keep-last N for all but the newest N", EXIT_USAGE)
    named = [parse_ref(name) for name in checkpoint or ()]
    with errors_end_the_program():
        store = place.store()
        fates = foretell(store, [*named, *_beyond(store, keep_last)])
    if output is Output.JSON:
        typer.echo(json.dumps([_plain(store, fate) for fate in fates], indent=2))
    else:
        _show(fates)


def _beyond(store: JobStore, keep_last: int | None) -> list[CheckpointRef]:
    """Oldest first, as they would be given up."""
    if keep_last is None:
        return []
    found = [view for view in overview(store) if view.standing is Standing.USABLE]
    return sorted(
        beyond(
            [Finding(v.ref, v.record.finite, bool(v.record.suspect)) if v.record else Finding(v.ref) for v in found],
            keep_last,
        )
    )


class Finding(NamedTuple):
    ref: CheckpointRef
    finite: bool | None = None
    suspect: bool = False


def beyond(newest_first: list[Finding], keep_last: int) -> list[CheckpointRef]:
    """What the operator would give up. Its own newest two it never does: there the store says so (D5)."""
    counted = [f.ref for f in newest_first if f.finite is not False]
    known = [f.ref for f in newest_first if f.finite]
    sound = [f.ref for f in newest_first if f.finite is not False and not f.suspect]
    kept = {*counted[:keep_last], *known[:1], *sound[:1]}
    return [f.ref for f in newest_first if f.ref not in kept]


def _plain(store: JobStore, fate: Fate) -> dict[str, Any]:
    gone = fate.removal
    plain: dict[str, Any] = {"checkpoint": str(fate.ref), "deleted": gone is not None, "why": fate.why}
    if gone:
        own = layout.checkpoint_prefix(fate.ref)
        plain |= {
            "freedBytes": gone.chunk_bytes + gone.other_bytes,
            "objects": [store.prefix + layout.chunk_key(at, digest) for at, digest in gone.chunks]
            + [f"{store.prefix}{own}{name}" for name in gone.others],
            "keptChunks": [
                {"object": store.prefix + layout.chunk_key(at, digest), "because": str(holder)}
                for (at, digest), holder in gone.kept.items()
            ],
        }
    return plain


def _show(fates: list[Fate]) -> None:
    table = Table(box=None, header_style="", pad_edge=False)
    for name in ("CHECKPOINT", "WOULD BE", "FREES", "CHUNKS", "STAY", "WHY"):
        table.add_column(name, no_wrap=True)
    for fate in fates:
        gone = fate.removal
        if gone is None:
            table.add_row(str(fate.ref), "kept", "-", "-", "-", fate.why)
            continue
        freed = size(gone.chunk_bytes + gone.other_bytes)
        table.add_row(str(fate.ref), "deleted", freed, str(len(gone.chunks)), _staying(fate), fate.why)
    console = Console(width=None if typer.get_text_stream("stdout").isatty() else 240)
    console.print(table, soft_wrap=True)
    total = sum(f.removal.chunk_bytes + f.removal.other_bytes for f in fates if f.removal)
    typer.echo(f"would free {size(total)}; nothing has been deleted")


def _staying(fate: Fate) -> str:
    """`3 (1/4, 1/5)`: how many chunks stay, and the commits that need them."""
    if fate.removal is None or not fate.removal.kept:
        return "0"
    holders = sorted(set(fate.removal.kept.values()))
    shown = ", ".join(map(str, holders[:3])) + (", …" if len(holders) > 3 else "")
    return f"{len(fate.removal.kept)} ({shown})"
