"""What a save that did not fit has stored is removed (decision 0018), as far as the store lets that be done, and at no cost that grows."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lone import Lone

from holdfast_agent.clock import Deadline
from holdfast_agent.errors import SaveGivenUp
from holdfast_api.messages import Cause
from holdfast_store.memory import Effect, Fault

FULL = Fault(Effect.FULL, "create", "/rank-", times=0)
MAY_NOT_DELETE = Fault(Effect.DENIED, "delete", times=0)


async def fails(one: Lone, saves: int) -> None:
    for save in range(1, saves + 1):
        one.capture(save % 2, 10 * save)
        with pytest.raises(SaveGivenUp, match="Full"):
            await one.saves.make(10 * save, Cause.PERIODIC, deadline=Deadline.after(60))


async def test_what_it_has_stored_is_gone(tmp_path: Path) -> None:
    one = Lone(tmp_path, faults=(FULL,))
    await fails(one, 3)
    assert not [key for key in one.bucket.objects if "/checkpoints/" in key]
    await one.close()


async def test_a_store_that_lets_nothing_be_deleted_is_asked_once_for_each_save(tmp_path: Path) -> None:
    """Else the hundredth save that fails would ask about a hundred, while everything else waits."""
    one = Lone(tmp_path, faults=(FULL, MAY_NOT_DELETE))
    await fails(one, 6)
    assert sum(operation == "delete" for operation, _ in one.bucket.calls) == 6
    one.bucket.faults.remove(MAY_NOT_DELETE)
    one.capture(1, 70)
    with pytest.raises(SaveGivenUp, match="Full"):
        await one.saves.make(70, Cause.PERIODIC, deadline=Deadline.after(60))
    assert not [key for key in one.bucket.objects if "/checkpoints/" in key], "once it may, all of it goes"
    await one.close()
