"""Which jobs of a namespace and name have ever saved here (A9): found by folder names, believed by what the records inside say."""

import itertools
import re

from holdfast_api import layout
from holdfast_api.errors import BadName
from holdfast_store import inventory
from holdfast_store.bucket import Bucket
from holdfast_store.errors import Absent, Corrupt
from holdfast_store.records import Records

_LOOKED_AT = 3
"""A job that has not been deleted has its newest checkpoints."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


def uids(bucket: Bucket, namespace: str, job: str) -> list[str]:
    """Uids of the jobs of this name that have anything stored, sorted. A folder `a-b-<uid>` may be job `a-b` or job `a`: the records tell."""
    found = []
    for name in bucket.list_folders(layout.segment(namespace) + "/"):
        uid = name.removeprefix(layout.segment(job) + "-")
        if uid != name and _is_of(bucket, namespace, job, uid):
            found.append(uid)
    return sorted(found)


def records_of(bucket: Bucket, namespace: str, job: str, uid: str) -> Records:
    return Records(bucket, layout.job_prefix(namespace, job, uid), uid)


def has_commits(records: Records) -> bool:
    """A checkpoint that exists, on whatever lineage. Of a job whose checkpoints were all deleted only tombstones are left, any number: they are
    listed together."""
    saves = (ref for attempt in inventory.attempts(records) for ref in inventory.saves(records, attempt))
    if any(inventory.state(records, ref).exists for ref in itertools.islice(saves, _LOOKED_AT)):
        return True
    if next(saves, None) is None:
        return False
    return any(lying.committed and not lying.expired for lying in inventory.scan(records).values())


def ever_committed(records: Records) -> bool:
    """C1: a commit record or a tombstone lies below the prefix."""
    for attempt in inventory.attempts(records):
        for ref in inventory.saves(records, attempt):
            state = inventory.state(records, ref)
            if state.committed or state.expired:
                return True
    return False


def _is_of(bucket: Bucket, namespace: str, job: str, uid: str) -> bool:
    if _UUID.match(uid):
        return True  # what Kubernetes gives; no job's name can end so that this is mistaken
    try:
        records = records_of(bucket, namespace, job, layout.checked_uid(uid))
        numbers = inventory.claimed(records)
        return bool(numbers) and records.claim(numbers[-1]).job_uid == uid
    except (Absent, Corrupt, BadName):
        return False
