"""Checkpoints in the job's own prefix that nobody would ever ask to have deleted, for the operator to hear of. Pure.

The operator gives up what it knows. A commit that it was never told of and that no attempt can reach, or that lies at or below its horizon without being
retained (D3), is used by nobody and would stay for ever. Reporting deletes nothing: that takes an order and goes its way (D1, D2), where branches and bases are
looked at.
"""

from collections.abc import Collection, Iterable

from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import RestoreOrder
from holdfast_store.collect import SweepResult
from holdfast_store.resolve import below_horizon

MOST = 64
"""In one report; what is left over is named by the next attempt."""


def strays(swept: SweepResult, order: RestoreOrder, spared: Collection[CheckpointRef]) -> tuple[CheckpointRef, ...]:
    """Oldest first. `spared`: what is being continued, and what saves lean on (D5)."""
    off: Iterable[CheckpointRef] = swept.off_lineage
    below = (ref for ref in swept.committed if below_horizon(order, ref))
    return tuple(sorted({*off, *below} - set(spared)))[:MOST]
