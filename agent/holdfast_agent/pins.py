"""A pin is carried out once (A7): by the first attempt that claims under it. Pure."""

import dataclasses

from holdfast_api.manifest import Claim
from holdfast_api.messages import RestoreOrder


def without_carried_out(order: RestoreOrder, newest: Claim | None) -> RestoreOrder:
    """The order without a pin that an attempt before has claimed already.

    The operator drops a pin when it hears of the claim. If it was away then, the next attempt is sent the same pin, and following it would throw away
    everything since. `newest` is the newest claim of the job's own prefix.
    """
    if order.pinned is None or order.pinned_after < 0 or newest is None or newest.parent is None:
        return order
    if newest.attempt <= order.pinned_after:
        return order
    return dataclasses.replace(order, pinned=None) if newest.parent.ref == order.pinned else order
