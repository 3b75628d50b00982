"""A7: a rollback is carried out once, also if the operator never heard that it was."""

import uuid
from datetime import UTC, datetime

from holdfast_agent.pins import without_carried_out
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Claim, ParentRef
from holdfast_api.messages import RestoreOrder

UID = str(uuid.UUID(int=7))
PIN = RestoreOrder(pinned=CheckpointRef(2, 3), pinned_after=4)


def claim(attempt: int, parent: str | None) -> Claim:
    number, save = (int(x) for x in parent.split("/")) if parent else (0, 0)
    return Claim(UID, attempt, "i", (), ParentRef(UID, number, save) if parent else None, datetime.now(UTC))


def test_a_pin_that_an_attempt_under_it_has_claimed_is_not_followed_again() -> None:
    assert without_carried_out(PIN, claim(5, "2/3")).pinned is None


def test_a_pin_that_nobody_has_claimed_is_followed() -> None:
    assert without_carried_out(PIN, None) == PIN
    assert without_carried_out(PIN, claim(4, "2/5")) == PIN
    assert without_carried_out(PIN, claim(5, "4/1")) == PIN, "that attempt was told before the pin came"
    assert without_carried_out(PIN, claim(5, None)) == PIN


def test_going_back_to_the_same_checkpoint_a_second_time_is_possible() -> None:
    """Attempt 4 had claimed 2/3 before this order was given."""
    assert without_carried_out(PIN, claim(4, "2/3")) == PIN


def test_a_pin_of_an_operator_that_does_not_say_since_when_is_followed() -> None:
    assert without_carried_out(RestoreOrder(pinned=CheckpointRef(2, 3)), claim(5, "2/3")).pinned == CheckpointRef(2, 3)


def test_an_order_without_a_pin_stays_as_it_is() -> None:
    assert without_carried_out(RestoreOrder(), claim(5, "2/3")) == RestoreOrder()
