"""Claims (A3-A5): whoever has created `attempts/<n>.json` is attempt n."""

import contextlib
from collections.abc import Callable

from holdfast_api import codec, layout
from holdfast_api.manifest import BranchRef, Claim, ParentRef
from holdfast_store import inventory
from holdfast_store.errors import AlreadyExists, NotOnRecord, Superseded
from holdfast_store.records import Records, self_proving


def newest(records: Records) -> Claim | None:
    numbers = inventory.claimed(records)
    return records.claim(numbers[-1]) if numbers else None


def all_claims(records: Records) -> dict[int, Claim]:
    return {n: records.claim(n) for n in inventory.claimed(records)}


def claim(records: Records, wanted: Claim, elsewhere: Callable[[str], Records]) -> None:
    """Claims, or raises Superseded with the claim that stands. Saying it again with the same incarnation is fine (A4).

    A parent in another job's prefix is named there before the claim and looked at again after (D6). `elsewhere(uid)` gives that prefix.
    """
    if wanted.job_uid != records.job_uid:
        raise ValueError(f"the claim is of job {wanted.job_uid}, the store of {records.job_uid}")
    standing = newest(records)
    if standing and standing.attempt >= wanted.attempt:
        return _settle(standing, wanted)
    if wanted.parent is not None:
        _secure_parent(records, wanted, wanted.parent, elsewhere)
    with contextlib.suppress(
        AlreadyExists
    ):  # perhaps by ourselves, in a try whose answer was lost: what lies there decides
        records.create(layout.claim_key(wanted.attempt), self_proving(wanted))
    # Read back in any case: on a store that ignores If-None-Match both would believe that they have won (B8).
    return _settle(records.claim(wanted.attempt), wanted)


def _settle(stored: Claim, wanted: Claim) -> None:
    """A4: the stored claim is ours only if it holds the incarnation that this process has in memory."""
    if (stored.attempt, stored.incarnation) != (wanted.attempt, wanted.incarnation):
        raise Superseded(stored)


def _secure_parent(records: Records, wanted: Claim, parent: ParentRef, elsewhere: Callable[[str], Records]) -> None:
    source = records
    if parent.job_uid != records.job_uid:
        source = elsewhere(parent.job_uid)
        write_branch(source, BranchRef(parent.job_uid, records.job_uid, parent.ref, wanted.created_at))
    elif parent.attempt >= wanted.attempt:
        raise ValueError(f"attempt {wanted.attempt} cannot continue attempt {parent.attempt}")
    if not inventory.state(source, parent.ref).exists:
        raise NotOnRecord(f"checkpoint {parent.ref} of job {parent.job_uid} does not exist any more: resolve again")


def write_branch(records: Records, branch: BranchRef) -> None:
    """Says in the source's prefix that someone builds on a checkpoint there (D6). One per branch; a later one replaces it."""
    if branch.job_uid != records.job_uid:
        raise ValueError(f"the branch is off job {branch.job_uid}, the store of {records.job_uid}")
    records.bucket.put(records.prefix + layout.branch_key(branch.branch_uid), codec.to_json(branch))
