"""A save that was left on nodes alone, or whose flush was cut short, is made a checkpoint by those who return there (E6).

Everybody who holds a part of it brings that part into the store: chunks, then its manifests. Whoever then finds the manifests of all ranks there writes the
commit record; create-only decides between two (E5). It is a commit like any other, with every look that a rule asks for: no claim after that of its own
attempt (A4, A5), no tombstone (D2), no newer commit of its attempt (A8), its base still there (B4).

What binds the parts together is the save's name: within one life of an attempt a save is of one boundary (B1), and every manifest says of which.
"""

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime

from holdfast_api import layout
from holdfast_api.manifest import CheckpointKind, CommitRecord, Pending, RankEntry, RankManifest
from holdfast_store import commits, inventory
from holdfast_store.errors import AlreadyExists, Corrupt, NotOnRecord
from holdfast_store.records import Records, manifest_problem


def look(records: Records, pending: Pending) -> inventory.SaveState:
    """What lies in the store of it. Superseded, or NotOnRecord with the reason, if it can be finished no more; looked at before anything is sent, because
    a commit looks once more. A commit of the very save is no reason: it is finished."""
    commits.look_for_claims(records, pending.attempt, pending.incarnation)
    state = inventory.state(records, pending.ref)
    if state.expired:
        raise NotOnRecord(f"checkpoint {pending.ref} is expired: its tombstone stays (D2)")
    if not state.committed:
        commits.look_for_newer(records, pending.ref)
    return state


def missing(records: Records, manifests: Sequence[RankManifest]) -> list[tuple[int, int]]:
    """(which of `manifests`, which of its chunks) of everything that this save itself has to hold and that is not proved to lie there, each content once."""
    ref = layout.CheckpointRef(manifests[0].attempt, manifests[0].save)
    prefix = records.prefix + layout.checkpoint_prefix(ref) + "chunks/"
    # Where the store verifies what it takes in (B6), what lies there is what its name says.
    there = {
        info.key.removeprefix(prefix): info.size
        for info in (records.bucket.list(prefix) if records.bucket.verifies_uploads else ())
    }
    records.bucket.settle(prefix)
    found: dict[str, tuple[int, int]] = {}
    for number, manifest in enumerate(manifests):
        for index, chunk in enumerate(manifest.chunks):
            if chunk.at == ref and there.get(chunk.digest) != chunk.length:
                found.setdefault(chunk.digest, (number, index))
    return list(found.values())


def finish(records: Records, pending: Pending, namespace: str, job: str) -> CommitRecord | None:
    """The record that makes it a checkpoint, ours or another finder's; None while the manifest of some rank is not there. Raises what `commit` does, and
    Corrupt if the manifests are not those of one save."""
    state = look(records, pending)
    if state.committed:
        return records.commit(pending.ref)[0]
    if not all_there(state, pending.world_size):
        return None
    found = [records.manifest_alone(pending.ref, rank) for rank in state.ranks]
    record = _record(records, pending, found, namespace, job)
    with contextlib.suppress(AlreadyExists):
        commits.commit(records, record, incarnation=pending.incarnation)
    return records.commit(pending.ref)[0]


def all_there(state: inventory.SaveState, world_size: int) -> bool:
    """Every rank's manifest: each was written after its chunks, so the save is whole (B2)."""
    return set(state.ranks) == set(range(world_size))


def _record(
    records: Records, pending: Pending, found: Sequence[tuple[RankManifest, str]], namespace: str, job: str
) -> CommitRecord:
    own = {e.rank: e for e in pending.ranks}
    entries = []
    for rank, (manifest, name) in enumerate(found):
        _check(records, pending, rank, manifest)
        if rank in own and own[rank].manifest_digest != name:
            raise Corrupt(layout.manifest_key(pending.ref, rank), "it is not the manifest that this part was made with")
        entries.append(own.get(rank) or RankEntry(rank, name, manifest.image_bytes))
    manifests = [m for m, _ in found]
    chunks = {(c.at, c.digest): c.length for m in manifests for c in m.chunks}
    stored = sum(length for (at, _), length in chunks.items() if at == pending.ref)
    return CommitRecord(
        job_uid=records.job_uid,
        namespace=namespace,
        job=job,
        attempt=pending.attempt,
        save=pending.save,
        kind=CheckpointKind.FULL,
        cause=pending.cause,
        created_at=datetime.now(UTC),
        progress=pending.progress,
        ranks=tuple(entries),
        base=pending.base,
        refers_to=tuple(sorted({at for at, _ in chunks} - {pending.ref})),
        bytes_logical=sum(m.image_bytes for m in manifests),
        bytes_sent=stored,
        bytes_stored=stored,
        metrics=dict(pending.metrics),
        run=dict(pending.run),
        config=dict(pending.config),
        history=pending.history,
        timings={"finished": max(0.0, (datetime.now(UTC) - pending.created_at).total_seconds())},
    )


def _check(records: Records, pending: Pending, rank: int, manifest: RankManifest) -> None:
    said = (manifest.job_uid, manifest.attempt, manifest.save, manifest.rank, manifest.world_size, manifest.boundary)
    expected = (
        records.job_uid,
        pending.attempt,
        pending.save,
        rank,
        pending.world_size,
        pending.progress.boundary,
    )
    key = layout.manifest_key(pending.ref, rank)
    if said != expected:
        raise Corrupt(key, f"speaks of {said}, the part that is finished of {expected}")
    if problem := manifest_problem(manifest):
        raise Corrupt(key, problem)
    if any(c.at > pending.ref for c in manifest.chunks):
        raise Corrupt(key, "refers to a later save (B4)")
