"""What orders to delete would do, without doing it: reads what the real deletion reads and decides by the same functions (`deletion`).

What others write between the foretelling and the deletion is not foreseen: the real one looks again. Nor is it foreseen what follows from a tombstone that is
taken back for a branch: whatever is older may then go that is said to stay.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Claim
from holdfast_store import collect, deletion, inventory
from holdfast_store.deletion import Removal
from holdfast_store.inventory import Lying
from holdfast_store.job import JobStore
from holdfast_store.lineage import Span
from holdfast_store.records import Records

ORDERED = "it is given up by this order (D2)"
_COMMIT = "commit.json"
CUT_SHORT = "its deletion was begun and cut short (D2)"


@dataclass(frozen=True, slots=True)
class Fate:
    """What would become of one save. `removal` is None where it stays; `why` says why it goes or stays."""

    ref: CheckpointRef
    why: str
    removal: Removal | None


def foretell(store: JobStore, named: Sequence[CheckpointRef], *, in_use: Collection[CheckpointRef] = ()) -> list[Fate]:
    """The fate of each of `named`, expired in this order under the newest claim, and then of what a sweep finds (D4)."""
    newest = store.newest_claim()
    if newest is None:
        return [Fate(ref, "no attempt has claimed yet, and nothing is deleted before (D1)", None) for ref in named]
    return _Foretelling(store, newest, in_use).run(named)


class _Foretelling:
    """Holds the listing as it would be after each deletion."""

    def __init__(self, store: JobStore, newest: Claim, in_use: Collection[CheckpointRef]) -> None:
        self._records = Records(store.bucket, store.prefix, store.job_uid)
        self._attempt = newest.attempt
        self._lineage: list[Span] = list(store.lineage(newest.attempt))
        self._in_use = in_use
        self._found = inventory.scan(self._records)

    def run(self, named: Sequence[CheckpointRef]) -> list[Fate]:
        fates = [self._ordered(ref, ORDERED, self._in_use) for ref in dict.fromkeys(named)]
        # What follows is a sweep: it knows of no use, and asks again about what was kept.
        committed = {ref for ref, lying in self._found.items() if lying.committed}
        begun = sorted(ref for ref in committed if self._found[ref].expired)
        again = [self._ordered(ref, CUT_SHORT, ()) for ref in begun]
        kept = {fate.ref for fate in fates if fate.removal is None}
        fates += [fate for fate in again if fate.removal or fate.ref not in kept]
        return fates + self._swept(committed)

    def _ordered(self, ref: CheckpointRef, why: str, in_use: Collection[CheckpointRef]) -> Fate:
        state = inventory.state(self._records, ref)
        facts = collect.facts_about(self._records, state, self._lineage, in_use)
        if kept := deletion.why_kept(facts):
            return Fate(ref, kept, None)
        if state.committed and (branch := collect.branch_on(self._records, ref)):
            self._found[ref].expired = False  # its tombstone is taken back
            return Fate(ref, deletion.kept_for(branch), None)
        referred = collect.referred_chunks(self._records, ref, state)
        self._found.get(ref, Lying()).others.pop(_COMMIT, None)
        return self._gone(ref, why, collect.removal(self._records, ref, referred, self._found))

    def _swept(self, committed: set[CheckpointRef]) -> list[Fate]:
        fates = []
        for ref, lying in sorted(self._found.items()):
            if lying.committed or lying.empty:
                continue
            verdict = deletion.leftover(ref, lying, self._attempt, self._lineage, committed)
            if verdict == deletion.LEFT_ALONE:
                continue
            why = deletion.WHY_SWEPT[verdict]
            gone = collect.removal(self._records, ref, set(), self._found)
            if gone.chunks or gone.others:
                fates.append(self._gone(ref, why, gone))
        return fates

    def _gone(self, ref: CheckpointRef, why: str, removal: Removal) -> Fate:
        for at, digest in removal.chunks:
            del self._found[at].chunks[digest]
        if ref in self._found:
            self._found[ref].others.clear()
            self._found[ref].expired = True
        return Fate(ref, why, removal)
