"""Shows from a job's checkpoints that each sample was trained on exactly once per epoch (K1). Torch-free: reads the ledgers that ranks leave in their
images (docs/format.md), nothing of the data.

Two questions: does each epoch hold what its sampler promised, over all ranks together; and does every checkpoint continue the one before it, so that
nothing was forgotten between them. `judge` is pure.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import CommitRecord, RankManifest
from holdfast_store.errors import Corrupt
from holdfast_store.job import JobStore

STATE_NAME = "holdfast.state.json"
_MASK = (1 << 64) - 1
Ledger = Mapping[str, Any]


class Standing(StrEnum):
    ONCE = "exactly-once"
    RUNNING = "running"
    """So far nothing twice."""
    LEFT = "left"
    """The loop was left before the epoch's end; nothing twice."""
    SAMPLED = "as-sampled"
    """A sampler of the user's own decides what comes; what was handed out is continuous."""
    COUNTED = "counted"
    """No indices are known (iterable data, a loader that keeps its own place), or too few: numbers fit."""
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class EpochSamples:
    """One epoch of one loader, all ranks together."""

    loader: str
    epoch: int
    size: int | None
    """Of the data set; None where it is not known."""
    count: int
    """Samples handed out, over all ranks."""
    standing: Standing
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """The ledgers of one checkpoint: rank -> loader -> ledger."""

    ref: CheckpointRef
    ranks: Mapping[int, Mapping[str, Ledger]]


@dataclass(frozen=True, slots=True)
class _Page:
    """What is known of one epoch of one rank."""

    count: int
    again: int
    sum: int
    seen: int | None
    """A bit for each sample."""
    over: bool
    left: bool
    kind: str
    size: int | None
    share: tuple[int, int]
    """Which of how many shares of the data set."""
    once: bool
    """The sampler promises each sample once, but for those: """
    drops: int
    cuts: int
    pads: int


def read(store: JobStore, record: CommitRecord) -> Account:
    """Reads only the chunks that hold the ranks' small state. Raises Absent, Corrupt."""
    source = store.for_job(record.job_uid)
    return Account(record.ref, {e.rank: _of_rank(source, record, e.rank) for e in record.ranks})


def judge(history: Iterable[Account]) -> list[EpochSamples]:
    """By loader and epoch. `history`: the checkpoints of one lineage, oldest first."""
    accounts = list(history)
    found = []
    for loader in sorted({n for a in accounts for ledgers in a.ranks.values() for n in ledgers}):
        mine = [a for a in accounts if any(loader in ledgers for ledgers in a.ranks.values())]
        broken = _breaks(mine, loader)
        for epoch in sorted({e for a in mine for ledgers in a.ranks.values() for e in _epochs(ledgers.get(loader))}):
            verdict = _of_epoch(mine, loader, epoch)
            if epoch in broken:
                verdict = EpochSamples(
                    loader, epoch, verdict.size, verdict.count, Standing.WRONG, "; ".join(broken[epoch])
                )
            found.append(verdict)
    return found


def expected_sum(size: int) -> int:
    """What the hashes of 0..size-1 add up to. About a second for 1.5 million."""
    total = 0
    for n in range(size):
        z = (n + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        total += z ^ (z >> 31)
    return total & _MASK


def ledgers_in(document: Any) -> dict[str, Ledger]:
    """Loader -> ledger, from the state of a rank's image. Raises Corrupt."""
    try:
        found = {name: position.get("ledger") for name, position in document["positions"].items()}
        ledgers = {name: _plain(ledger) for name, ledger in found.items() if ledger is not None}
        for ledger in ledgers.values():
            for epoch in _epochs(ledger):
                _page(ledger, epoch), _joined(ledger, epoch)
            int(ledger["older"])
        return ledgers
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise Corrupt(STATE_NAME, f"the ledger of samples cannot be read: {type(e).__name__}: {e}") from e


def _of_rank(store: JobStore, record: CommitRecord, rank: int) -> dict[str, Ledger]:
    try:
        return ledgers_in(_state(store, store.read_manifest(record, rank)))
    except Corrupt as e:
        raise Corrupt(f"checkpoint {record.ref}, rank {rank}", str(e)) from e


def _state(store: JobStore, manifest: RankManifest) -> Any:
    entry = next((t for t in manifest.tensors if t.name == STATE_NAME), None)
    if entry is None:
        raise Corrupt(STATE_NAME, "the manifest does not name it")
    first, end = entry.offset_bytes // manifest.chunk_bytes, entry.offset_bytes + entry.length_bytes
    parts, at = [], first * manifest.chunk_bytes
    for chunk in manifest.chunks[first:]:
        if at >= end:
            break
        buffer = bytearray(chunk.length)
        store.get_chunk_into(chunk, memoryview(buffer))
        parts.append(buffer)
        at += chunk.length
    start = entry.offset_bytes - first * manifest.chunk_bytes
    text = b"".join(parts)[start : start + entry.length_bytes]
    try:
        return json.loads(text)
    except ValueError as e:
        raise Corrupt(STATE_NAME, f"no JSON: {e}") from e


def _plain(value: Any) -> Any:
    """Bytes out of their JSON form."""
    if isinstance(value, dict):
        if "$bytes" in value:
            return base64.b64decode(value["$bytes"], validate=True)
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _epochs(ledger: Ledger | None) -> set[int]:
    if ledger is None:
        return set()
    running = {ledger["now"]["epoch"]} if ledger["now"]["count"] else set()
    return running | {page["epoch"] for page in (*ledger["closed"], *ledger.get("joined", ()))}


def _joined(ledger: Ledger | None, epoch: int) -> _Page | None:
    """What all ranks together had been given of the epoch before their number changed; every rank of a checkpoint says the same."""
    pages = (ledger or {}).get("joined", ())
    return next((_read_page(p, over=bool(p["over"])) for p in pages if p["epoch"] == epoch), None)


def _page(ledger: Ledger | None, epoch: int) -> _Page | None:
    """The fullest that the ledger has of the epoch, of this rank's own."""
    if ledger is None:
        return None
    now, before = ledger["now"], ledger["before"]
    if now["epoch"] == epoch and now["count"]:
        return _read_page(now, over=False)
    for page in (before, *ledger["closed"]):
        if page is not None and page["epoch"] == epoch:
            return _read_page(page, over=True)
    return None


def _read_page(page: Mapping[str, Any], *, over: bool) -> _Page:
    seen = page.get("seen") if page["kind"] == "exact" else None
    share, shares = page["share"]
    return _Page(
        count=int(page["count"]),
        again=int(page["again"]),
        sum=int(page["sum"], 16),
        seen=int.from_bytes(seen, "little") if seen else None,
        over=over,
        left=bool(page["left"]),
        kind=page["kind"],
        size=page["size"],
        share=(share, shares),
        once=bool(page["once"]),
        drops=int(page["drops"]),
        cuts=int(page["cuts"]),
        pads=int(page["pads"]),
    )


def _breaks(accounts: list[Account], loader: str) -> dict[int, list[str]]:
    """Epoch -> what a later checkpoint has forgotten of an earlier one."""
    found: dict[int, list[str]] = {}
    for earlier, later in pairwise(accounts):
        if earlier.ranks.keys() != later.ranks.keys():
            for epoch, problem in _breaks_where_ranks_changed(earlier, later, loader):
                found.setdefault(epoch, []).append(problem)
            continue
        for rank in earlier.ranks:
            old, new = earlier.ranks[rank].get(loader), later.ranks[rank].get(loader)
            for epoch in sorted(_epochs(old)):
                a, b = _page(old, epoch), _page(new, epoch)
                problem = _forgotten(a, b, dropped=new is not None and new["older"] > 0)
                if problem:
                    found.setdefault(epoch, []).append(f"rank {rank}, from {earlier.ref} to {later.ref}: {problem}")
    return found


def _breaks_where_ranks_changed(earlier: Account, later: Account, loader: str) -> Iterator[tuple[int, str]]:
    """Of all ranks together; where each read the data set in a pass of its own, rank r goes on with the place of rank r mod N."""
    where = f"from {earlier.ref} ({len(earlier.ranks)} ranks) to {later.ref} ({len(later.ranks)} ranks)"
    ledgers = [ledgers.get(loader) for ledgers in later.ranks.values()]
    dropped = any(le is not None and le["older"] > 0 for le in ledgers)
    for epoch in sorted({e for ledgers in earlier.ranks.values() for e in _epochs(ledgers.get(loader))}):
        if any(_joined(le, epoch) is not None for le in ledgers):
            old, new = _all_of(earlier, loader, epoch), _all_of(later, loader, epoch)
            if problem := _forgotten(old, new, dropped=dropped):
                yield epoch, f"{where}: {problem}"
            continue
        for rank in later.ranks:
            home = rank % len(earlier.ranks)
            a, b = (_page(x.ranks[r].get(loader), epoch) for x, r in ((earlier, home), (later, rank)))
            if problem := _forgotten(a, b, dropped=dropped):
                yield epoch, f"rank {rank}, {where}: {problem}"


def _all_of(account: Account, loader: str, epoch: int) -> _Page | None:
    """One page of all ranks together, ranks that read the same share counted once."""
    ledgers = [ledgers.get(loader) for ledgers in account.ranks.values()]
    shares = {page.share[0]: page for le in ledgers if (page := _page(le, epoch)) is not None}
    joined = next((j for le in ledgers if (j := _joined(le, epoch)) is not None), None)
    parts = [*shares.values()] + ([joined] if joined is not None else [])
    if not parts:
        return None
    seen: int | None = 0
    for part in parts:
        seen = None if seen is None or part.seen is None else seen | part.seen
    return replace(
        parts[0],
        count=sum(p.count for p in parts),
        sum=sum(p.sum for p in parts) & _MASK,
        seen=seen,
        over=all(p.over for p in shares.values()) if shares else parts[0].over,
    )


def _forgotten(old: _Page | None, new: _Page | None, *, dropped: bool) -> str:
    if old is None or (new is None and dropped and old.over):
        return ""
    if new is None:
        return "the epoch is unknown there"
    if new.count < old.count:
        return f"{old.count} samples had been handed out, then {new.count}"
    if old.seen is not None and new.seen is not None and old.seen & ~new.seen:
        return f"{(old.seen & ~new.seen).bit_count()} samples that had been handed out are not known any more"
    if old.over and (old.count, old.sum) != (new.count, new.sum):
        return "the epoch was over, and has other samples now"
    return ""


def _of_epoch(accounts: list[Account], loader: str, epoch: int) -> EpochSamples:
    best: tuple[int, Account] | None = None
    for account in accounts:  # the newest of those that know most
        pages = [_page(ledgers.get(loader), epoch) for ledgers in account.ranks.values()]
        joined = _joined_of(account, loader, epoch)
        if joined is not None:
            pages = [p for p in pages if p is not None] or [joined]
        if all(p is not None for p in pages):
            knows = min(2 * p.over + (p.seen is not None) for p in pages if p is not None)
            if best is None or knows >= best[0]:
                best = (knows, account)
    if best is None:
        return EpochSamples(loader, epoch, None, 0, Standing.WRONG, "no checkpoint has it of all ranks")
    pages_of = {r: page for r, of in best[1].ranks.items() if (page := _page(of.get(loader), epoch)) is not None}
    joined = _joined_of(best[1], loader, epoch)
    standing, detail = _weigh(pages_of, joined)
    known = [*pages_of.values()] + ([joined] if joined is not None else [])
    return EpochSamples(loader, epoch, known[0].size, sum(p.count for p in known), standing, detail)


def _joined_of(account: Account, loader: str, epoch: int) -> _Page | None:
    return next((j for of in account.ranks.values() if (j := _joined(of.get(loader), epoch)) is not None), None)


def _weigh(pages: Mapping[int, _Page], joined: _Page | None = None) -> tuple[Standing, str]:
    """All ranks' pages of an epoch. `joined`: what other ranks, of another number, had been given of it before."""
    everything = [*pages.values()] + ([joined] if joined is not None else [])
    if any(p.kind == "counted" for p in everything):
        return Standing.COUNTED, "no indices are known"
    if not all(p.once for p in everything):
        again = sum(p.again for p in everything)
        return Standing.SAMPLED, f"{again} handed out more than once" if again else ""
    if not pages:
        return _weigh_together(everything)
    of = next(iter(pages.values())).share[1]
    if of == 1 and joined is None:
        alone = [_weigh_together([pages[rank]]) for rank in sorted(pages)]
        return max(alone, key=lambda a: a[0] is Standing.WRONG)
    shares: dict[int, int] = {}
    for rank in sorted(pages):
        twin = shares.setdefault(pages[rank].share[0], rank)
        if (pages[twin].count, pages[twin].sum) != (pages[rank].count, pages[rank].sum):
            return Standing.WRONG, f"ranks {twin} and {rank} read the same share and not the same samples"
    over = all(p.over for p in pages.values())
    if len(shares) < of and (joined is None or over):
        return Standing.WRONG, f"{len(shares)} of {of} shares are read"
    before = [replace(joined, over=over)] if joined is not None else []
    return _weigh_together([pages[rank] for rank in shares.values()] + before)


def _weigh_together(pages: list[_Page]) -> tuple[Standing, str]:
    """Of the ranks that share one data set."""
    size, pads = pages[0].size or 0, max(p.pads for p in pages)
    absent = sum(p.drops for p in pages) + max(p.cuts for p in pages)
    over, left = all(p.over for p in pages), any(p.left for p in pages)
    count = sum(p.count for p in pages)
    seen = 0
    for page in pages:
        if page.seen is None:
            return _by_sums(size, count, sum(p.sum for p in pages) & _MASK, absent, pads, over=over, left=left)
        seen |= page.seen
    distinct = seen.bit_count()
    if count - distinct > pads:
        return Standing.WRONG, f"{count - distinct} samples twice, {pads} are padding of the sampler's"
    if left or not over:
        return (Standing.LEFT if left else Standing.RUNNING), ""
    if size - distinct > absent:
        return Standing.WRONG, f"{size - distinct} of {size} samples missing, {absent} are left out by the sampler"
    left_out = f"{size - distinct} left out by the sampler" if size != distinct else ""
    return Standing.ONCE, left_out or (f"{count - distinct} padded by the sampler" if count != distinct else "")


def _by_sums(
    size: int, count: int, total: int, absent: int, pads: int, *, over: bool, left: bool
) -> tuple[Standing, str]:
    if count > size + pads:
        return Standing.WRONG, f"{count} samples handed out of {size}"
    if left or not over:
        return (Standing.LEFT if left else Standing.RUNNING), "by count"
    if count < size - absent:
        return Standing.WRONG, f"{count} samples handed out of {size}, {absent} are left out by the sampler"
    if absent or pads:
        return Standing.COUNTED, "no checkpoint was made in the epoch after it; the sampler pads or leaves out some"
    if total != expected_sum(size):
        return Standing.WRONG, f"{count} samples handed out, not each of {size} once"
    return Standing.ONCE, "by the sum of hashes"
