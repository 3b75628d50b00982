"""What checks have found in a checkpoint since it was committed (`verdicts/<check>.json`), as far as it matters to a start and to a deletion.

Verdicts inform. One that cannot be read says nothing: it must not cost a checkpoint that is whole.
"""

import logging

from holdfast_api import codec, layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import INTACT, Verdict
from holdfast_store import inventory
from holdfast_store.errors import Absent, Corrupt
from holdfast_store.inventory import Lying, SaveState
from holdfast_store.records import Records

log = logging.getLogger(__name__)


def write(records: Records, verdict: Verdict) -> None:
    """In the place of what the same check has found before."""
    key = layout.verdict_key(CheckpointRef(verdict.attempt, verdict.save), verdict.check)
    records.bucket.put(records.prefix + key, codec.to_json(verdict))


def read(records: Records, ref: CheckpointRef) -> list[Verdict]:
    """By name of the check."""
    prefix = records.prefix + layout.checkpoint_prefix(ref) + "verdicts/"
    found = []
    for key in sorted(info.key.removeprefix(records.prefix) for info in records.bucket.list(prefix)):
        try:
            verdict = records.read(Verdict, key)
        except (Absent, Corrupt) as e:
            log.warning("a verdict on %s cannot be read and counts for nothing: %s", ref, e)
            continue
        if (verdict.job_uid, verdict.attempt, verdict.save) == (records.job_uid, ref.attempt, ref.save):
            found.append(verdict)
    return found


def failed(records: Records, state: SaveState) -> Verdict | None:
    """The finding that matters most: one of the content goes before damage in the store, which another tier may make good."""
    if not state.has_verdicts:
        return None
    found = (v for v in read(records, state.ref) if not v.passed)
    return min(found, key=lambda v: v.check == INTACT, default=None)


def damaged(records: Records) -> dict[CheckpointRef, str]:
    """Every checkpoint of which a scrub has found damage that nobody has mended, by one listing of everything."""
    exist = ((ref, lying) for ref, lying in inventory.scan(records).items() if lying.committed and not lying.expired)
    return {ref: words for ref, lying in exist if (words := standing_damage(records, ref, lying))}


def standing_damage(records: Records, ref: CheckpointRef, lying: Lying) -> str:
    """As `damage`, where everything below the checkpoint has been listed: nothing is read where no scrub has been."""
    if f"verdicts/{INTACT}.json" not in lying.others:
        return ""
    verdict = next((v for v in read(records, ref) if v.check == INTACT), None)
    return "" if verdict is None or verdict.passed else verdict.detail or "damaged"


def damage(records: Records, state: SaveState) -> str:
    """What the scrub has found in the store's copy and nobody has mended; "" if nothing."""
    found = failed(records, state)
    return found.detail or "damaged" if found is not None and found.check == INTACT else ""
