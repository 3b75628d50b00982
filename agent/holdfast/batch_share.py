"""A rank's part of the global batch, so that an update is made of as many samples whatever the number of ranks is.

global batch G, W ranks          G must be a multiple of W; else there is no equal share, and it is refused
of one rank and one update       G / W samples
at most m of them at once        in as few equal micro-batches as hold at most m samples each: `accumulate` of `batch` samples,
                                 batch * accumulate * W = G
"""

import os
from dataclasses import dataclass

from holdfast_api import names


@dataclass(frozen=True, slots=True)
class BatchShare:
    """What one rank does for one update."""

    batch: int
    """Samples of a micro-batch: the loader's `batch_size`."""
    accumulate: int
    """Micro-batches, after which the optimizer steps. The loss of each counts one such part."""
    ranks: int
    """That share the global batch."""


_accumulates = 1


def batch_share(global_batch: int | None = None, *, at_most: int | None = None) -> BatchShare:
    """Of this rank. `global_batch`: samples of an update, of all ranks together; None: what the job says (`spec.elastic.globalBatch`). `at_most`: samples
    that fit into this machine's memory at once; None: the whole share. Raises ValueError."""
    told, ranks = os.environ.get(names.ENV_GLOBAL_BATCH, ""), int(os.environ.get("WORLD_SIZE", "1"))
    if global_batch is None and not told:
        raise ValueError(
            "batch_share() needs the global batch: set spec.elastic.globalBatch of the job, or write batch_share(SAMPLES)"
        )
    if global_batch is not None and told and global_batch != int(told):
        raise ValueError(
            f"batch_share({global_batch}), and spec.elastic.globalBatch of the job is {told}: leave one of them out, or make them equal"
        )
    samples = global_batch if global_batch is not None else int(told)
    share = share_of(samples, ranks, at_most)
    global _accumulates
    _accumulates = share.accumulate
    return share


def share_of(samples: int, ranks: int, at_most: int | None = None) -> BatchShare:
    """The rule. Raises ValueError."""
    if samples < 1 or (at_most is not None and at_most < 1):
        raise ValueError(f"a global batch of {samples} samples, at most {at_most} at once: both must be at least 1")
    if samples % ranks:
        near = [n for n in range(1, samples + 1) if samples % n == 0]
        raise ValueError(
            f"a global batch of {samples} samples has no equal shares for {ranks} ranks; numbers that have: {', '.join(map(str, near[:32]))}. Set "
            "spec.elastic.globalBatch, so that only those are used"
        )
    own = samples // ranks
    most = own if at_most is None else min(own, at_most)
    batch = next(n for n in range(most, 0, -1) if own % n == 0)
    return BatchShare(batch, own // batch, ranks)


def accumulates() -> int:
    """Micro-batches of an update, as `batch_share` has said last; 1 if nobody has asked."""
    return _accumulates
