"""Every save of a job as a person wants to see it: what is usable, what is not, and why."""

from dataclasses import dataclass
from enum import StrEnum

from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import CommitRecord
from holdfast_store import inventory, verdicts
from holdfast_store.errors import Absent, Corrupt, Misconfigured
from holdfast_store.job import JobStore
from holdfast_store.records import Records


class Standing(StrEnum):
    USABLE = "usable"
    OFF_LINEAGE = "off-lineage"
    """Committed by an attempt after another had taken over: never loaded (A7)."""
    EXPIRED = "expired"
    DAMAGED = "damaged"
    UNFINISHED = "unfinished"
    """No commit record: being made, or abandoned."""


@dataclass(frozen=True, slots=True)
class SaveView:
    ref: CheckpointRef
    standing: Standing
    record: CommitRecord | None
    stored_bytes: int
    """Of what lies under the save itself; what it shares with its base lies there."""
    problem: str = ""
    damage: str = ""
    """What a scrub has found in the store's copy and nobody has mended."""


def overview(store: JobStore) -> list[SaveView]:
    """All saves, newest first. Looks at listings and commit records; contents are `verify`'s matter."""
    newest = store.newest_claim()
    lineage = store.lineage(newest.attempt) if newest else ()
    records = Records(store.bucket, store.prefix, store.job_uid)
    views = []
    for ref, lying in sorted(inventory.scan(records).items(), reverse=True):
        size = sum(lying.chunks.values()) + sum(lying.others.values())
        if lying.expired or not lying.committed:
            standing = Standing.EXPIRED if lying.expired else Standing.UNFINISHED
            views.append(SaveView(ref, standing, None, size))
            continue
        try:
            record, _ = records.commit(ref)
        except (Corrupt, Misconfigured, Absent) as e:
            views.append(SaveView(ref, Standing.DAMAGED, None, size, str(e)))
            continue
        on = any(span.holds(store.job_uid, ref) for span in lineage)
        damage = verdicts.standing_damage(records, ref, lying)
        views.append(SaveView(ref, Standing.USABLE if on else Standing.OFF_LINEAGE, record, size, damage=damage))
    return views
