"""Which chunks of its base a save may refer to instead of writing them anew (B4, B5). Pure: no clock, no I/O.

Two ends keep a bad object from hanging under every later checkpoint. What once failed verification, for whichever worker, is not referred to again; and a
copy that is old is written anew although nothing is known against it, because nobody reads a frozen layer until the day that it is needed.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import ParentRef, RankManifest
from holdfast_store.lineage import Stretch

REWRITE_AFTER_CHECKPOINTS = 50
REWRITE_AFTER = timedelta(days=7)


def referable(
    manifests: Iterable[RankManifest],
    *,
    attempt: int,
    distrusted: Collection[str],
    doubted: bool,
    old: Collection[CheckpointRef] = (),
) -> dict[str, CheckpointRef]:
    """Digest -> where it lies, of the base's chunks. What this attempt has written itself was written after everything that was found bad."""
    return {
        c.digest: c.at
        for m in manifests
        for c in m.chunks
        if c.at not in old and (c.at.attempt == attempt or not (doubted or c.digest in distrusted))
    }


def is_doubted(
    offered: Collection[ParentRef | None], restored: CheckpointRef, excluded: Iterable[CheckpointRef]
) -> bool:
    """Whether a checkpoint newer than the one that was restored has been found bad, by any worker, in this attempt or in one before.

    A worker is not told which chunk it was, and the older checkpoint may refer to the same one for ranks that have read it from another source. So
    nothing that earlier attempts have stored is referred to: one whole save after a rare event.
    """
    return len(offered) > 1 or any(ref > restored for ref in excluded)


def too_old(
    places: Iterable[CheckpointRef],
    save: CheckpointRef,
    *,
    history: Sequence[Stretch],
    made_at: Mapping[CheckpointRef, datetime],
    now: datetime,
) -> frozenset[CheckpointRef]:
    """Checkpoints under which chunks lie that `save` writes anew. Where nothing is known of one, it is not old."""
    return frozenset(
        ref
        for ref in places
        if (distance(ref, save, history) or 0) >= REWRITE_AFTER_CHECKPOINTS
        or now - (_made(ref, history, made_at) or now) >= REWRITE_AFTER
    )


def distance(ref: CheckpointRef, save: CheckpointRef, history: Sequence[Stretch]) -> int | None:
    """How many saves after `ref` on the lineage `save` is, abandoned ones included (A7); None if `ref` is not on what is known of it."""
    if ref.attempt == save.attempt:
        return save.save - ref.save
    total = save.save
    for stretch in history:
        if stretch.attempt == save.attempt or stretch.last_save is None:
            continue
        if stretch.attempt == ref.attempt:
            return total + stretch.last_save - ref.save
        total += stretch.last_save
    return None


def _made(ref: CheckpointRef, history: Sequence[Stretch], made_at: Mapping[CheckpointRef, datetime]) -> datetime | None:
    """When the checkpoint was made, or the latest moment that is known to lie before: the record of an expired one is gone."""
    known = [at for other, at in made_at.items() if other.attempt == ref.attempt and other <= ref]
    known += [s.claimed_at for s in history if s.attempt == ref.attempt]
    return max(known, default=None)
