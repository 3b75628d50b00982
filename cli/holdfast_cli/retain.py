"""The rules of `holdfast expire`: options of the command line as the retention rules that the operator decides by (holdfast_api.retention)."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated

import typer

from holdfast_api.manifest import CheckpointKind, CommitRecord
from holdfast_api.retention import (
    Best,
    EverySeconds,
    EverySteps,
    Last,
    Outcome,
    Pinned,
    Policy,
    Rule,
    Saved,
    WeightsOnly,
    YoungerThan,
    decide,
)
from holdfast_cli.shared import EXIT_USAGE, fail, parse_ref
from holdfast_store.job import JobStore
from holdfast_store.overview import SaveView, Standing

KeepLast = Annotated[int | None, typer.Option("--keep-last", min=1, help="Keep the newest so many.")]
KeepBest = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-best",
        metavar="METRIC[:COUNT[:highest]]",
        help="Keep those with the best values of a metric: the lowest, unless it says highest. May be given several times.",
    ),
]
KeepEverySteps = Annotated[
    int | None, typer.Option("--keep-every-steps", min=1, help="Keep the first sound one of each so many steps.")
]
KeepEverySeconds = Annotated[
    int | None, typer.Option("--keep-every-seconds", min=1, help="Keep the first sound one of each so many seconds.")
]
KeepYounger = Annotated[
    int | None, typer.Option("--keep-younger-than", min=1, metavar="SECONDS", help="Keep whatever is not so old yet.")
]
KeepWeights = Annotated[bool, typer.Option("--keep-weights-only", help="Keep what holds weights alone.")]
Pin = Annotated[
    list[str] | None, typer.Option("--pin", metavar="ATTEMPT/SAVE", help="Keep it; may be given several times.")
]
MaxBytes = Annotated[
    int | None, typer.Option("--max-bytes", min=1, help="Keep no more than so many bytes; the oldest go first.")
]


def policy(
    *,
    last: int | None,
    best: Iterable[str],
    every_steps: int | None,
    every_seconds: int | None,
    younger: int | None,
    weights_only: bool,
    pinned: Iterable[str],
    most_bytes: int | None,
) -> Policy | None:
    """None if no rule was given. Ends the program where one makes no sense."""
    rules: list[Rule] = [Last(last)] if last is not None else []
    rules += [_best(text) for text in best]
    rules += [EverySteps(every_steps)] if every_steps is not None else []
    rules += [EverySeconds(every_seconds)] if every_seconds is not None else []
    rules += [YoungerThan(younger)] if younger is not None else []
    rules += [WeightsOnly()] if weights_only else []
    refs = frozenset(parse_ref(name, "--pin") for name in pinned)
    rules += [Pinned(refs)] if refs else []
    if most_bytes is not None and not rules:
        fail("--max-bytes limits what other rules keep: add --keep-last N, or another rule", EXIT_USAGE)
    return Policy(tuple(rules), most_bytes) if rules else None


def outcome(store: JobStore, chosen: Policy, views: Iterable[SaveView]) -> tuple[tuple[Saved, ...], Outcome]:
    """As the operator would decide it now, over what can be used, from what the store alone says."""
    known: list[Saved] = []
    carried = 0
    for view in sorted(views, key=lambda v: v.ref):
        carried += view.stored_bytes
        if view.record and view.standing is Standing.USABLE:
            known.append(_saved(view.record, carried))
            carried = 0
        elif view.standing is not Standing.EXPIRED:
            carried -= view.stored_bytes  # of a deleted one, chunks lie there because younger ones need them
    newest = store.newest_claim()
    parent = newest.parent if newest is not None else None
    proven = parent.ref if parent is not None and parent.job_uid == store.job_uid else None
    return tuple(known), decide(chosen, known, datetime.now(UTC), proven=proven)


def _saved(record: CommitRecord, stored_bytes: int) -> Saved:
    return Saved(
        ref=record.ref,
        boundary=record.progress.boundary,
        at=record.created_at,
        finite=record.finite,
        suspect=record.suspect,
        metrics=record.metrics,
        weights_only=record.kind is CheckpointKind.WEIGHTS_ONLY,
        image_bytes=sum(e.image_bytes for e in record.ranks),
        held_bytes=stored_bytes,
    )


def _best(text: str) -> Best:
    metric, _, rest = text.partition(":")
    count, _, goal = rest.partition(":")
    if not metric or (count and not (count.isdecimal() and int(count))) or goal not in ("", "lowest", "highest"):
        fail(
            f"--keep-best {text!r} is not METRIC[:COUNT[:highest]], for example val_loss:3 or accuracy:1:highest",
            EXIT_USAGE,
        )
    return Best(metric, int(count or 1), highest=goal == "highest")
