"""`holdfast expire --dry-run`: what a deletion would remove, and why what stays stays. Deletes nothing.

Checkpoints are deleted by the job's own lead when the operator gives them up (D1, D2): only it knows which bases are in use.
"""

import json
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from holdfast_api import layout, retention
from holdfast_cli import retain
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
from holdfast_store.overview import overview


@at_a_place()
def expire(
    place: Place,
    checkpoint: Annotated[
        list[str] | None, typer.Option("--checkpoint", "-c", help="ATTEMPT/SAVE; may be given several times.")
    ] = None,
    keep_last: retain.KeepLast = None,
    keep_best: retain.KeepBest = None,
    keep_every_steps: retain.KeepEverySteps = None,
    keep_every_seconds: retain.KeepEverySeconds = None,
    keep_younger_than: retain.KeepYounger = None,
    keep_weights_only: retain.KeepWeights = False,
    pin: retain.Pin = None,
    max_bytes: retain.MaxBytes = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Required: this program deletes nothing by itself.")
    ] = False,
    output: Format = Output.TABLE,
) -> None:
    """Say what deleting checkpoints, and then sweeping, would remove, and why the rest stays: of those named, or by the rules of spec.checkpoint.keep."""
    if not dry_run:
        fail(
            "add --dry-run: checkpoints are deleted by the job's lead when the operator gives them up, never from here",
            EXIT_USAGE,
        )
    policy = retain.policy(
        last=keep_last,
        best=keep_best or (),
        every_steps=keep_every_steps,
        every_seconds=keep_every_seconds,
        younger=keep_younger_than,
        weights_only=keep_weights_only,
        pinned=pin or (),
        most_bytes=max_bytes,
    )
    if not checkpoint and policy is None:
        fail("say which: --checkpoint ATTEMPT/SAVE, or rules that say what is kept, as --keep-last N", EXIT_USAGE)
    named = [parse_ref(name) for name in checkpoint or ()]
    with errors_end_the_program():
        store = place.store()
        kept, words, why = [], "", {}
        if policy is not None:
            saved, outcome = retain.outcome(store, policy, overview(store))
            named += (ref for ref in outcome.given_up if ref not in named)
            why = {f.ref: "; ".join(f.why) for f in outcome.fates}
            kept = [Fate(f.ref, why[f.ref], None) for f in outcome.fates if f.kept and f.ref not in named]
            words = retention.trouble(policy, saved, outcome, field_of_limit="--max-bytes", field_of_best="--keep-best")
        told = foretell(store, named)
        fates = [*kept, *(replace(f, why=why[f.ref]) if f.removal and f.ref in why else f for f in told)]
    if words:
        typer.echo(f"holdfast: {words}", err=True)
    if output is Output.JSON:
        typer.echo(json.dumps([_plain(store, fate) for fate in fates], indent=2))
    else:
        _show(fates)


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
