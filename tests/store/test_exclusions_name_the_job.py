"""D6, C2: two jobs give their checkpoints the same numbers. What is known against one of them says nothing about the other's."""

from pathlib import Path

import pytest
from worlds import World, ref

from holdfast_agent.claims import Claims
from holdfast_api.messages import OfJob, RestoreOrder
from holdfast_store.bucket import Bucket
from holdfast_store.memory import MemoryBucket
from tests.agent.members import Member


def a_branch(bucket: Bucket) -> World:
    """Job uid-2 continues 1/1 of uid-1 and has a 1/1 of its own, on the same lineage."""
    World(bucket, "uid-1").claimed(1).saved(1, 1, b"aaaabbbb")
    return World(bucket, "uid-2").claimed(1, ref(1, 1), parent_uid="uid-1").saved(1, 1, b"aaaacccc")


def found(world: World, order: RestoreOrder) -> list[tuple[str, str]]:
    return [(c.record.job_uid, str(c.record.ref)) for c in world.store.resolve(order, 2).candidates]


OWN, SOURCE = ("uid-2", "1/1"), ("uid-1", "1/1")
ORDERS = {
    "nothing is excluded": (RestoreOrder(own_only=True), [OWN, SOURCE]),
    "the own one": (RestoreOrder(excluded=(ref(1, 1),), own_only=True), [SOURCE]),
    "the own one, by its full name": (RestoreOrder(excluded_of=(OfJob("uid-2", 1, 1),)), [SOURCE]),
    "the source's": (RestoreOrder(excluded_of=(OfJob("uid-1", 1, 1),)), [OWN]),
    "both": (RestoreOrder(excluded_of=(OfJob("uid-1", 1, 1), OfJob("uid-2", 1, 1))), []),
    "an older operator, which did not tell them apart": (RestoreOrder(excluded=(ref(1, 1),)), []),
}


@pytest.mark.parametrize("case", ORDERS)
def test_what_may_be_used(bucket: Bucket, case: str) -> None:
    order, expected = ORDERS[case]
    assert found(a_branch(bucket), order) == expected


def test_a_rejection_of_the_source_says_whose_it_is() -> None:
    bucket = MemoryBucket()
    world = a_branch(bucket)
    commit = next(k for k in bucket.objects if "job-uid-1/" in k and k.endswith("commit.json"))
    bucket.damage(commit, b"{}")
    rejections = world.store.resolve(RestoreOrder(excluded=(ref(1, 1),), own_only=True), 2).rejections
    assert [(r.job_uid, r.attempt, r.save) for r in rejections] == [("uid-1", 1, 1)]


def test_what_the_lead_has_found_bad_is_excluded_with_its_job(tmp_path: Path) -> None:
    member = Member(tmp_path)
    member.shared.order.restore = RestoreOrder()
    claims = Claims(member.shared)
    record, _ = member.world.store.read_commit(ref(1, 1))
    claims._note(record, "chunk 3", of_checkpoint=True)
    order = claims._order_without_bad()
    assert (order.excluded, order.excluded_of) == ((), (OfJob(member.world.uid, 1, 1),))
    assert member.record.rejections[0].job_uid == ""
