"""What a store really does (B8), tried once before it is trusted: some ignore If-None-Match, some keep it only while nobody hurries, some list late.

A store that fails is still usable: the operator's attempt number is the lock (A1) and looking for newer claims the care (A5); status says so.
"""

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from holdfast_store.bucket import Bucket
from holdfast_store.errors import AlreadyExists, Unavailable

WRITERS = 16
ROUNDS = 3
"""A handful finds the stores that have no atomicity at all; those that fail once in ten rounds need more (`rounds`)."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """`note` says in words what does not hold; empty if all does."""

    conditional_writes: bool
    lists_after_write: bool
    checksums: bool
    note: str


def probe(bucket: Bucket, *, prefix: str, rounds: int = ROUNDS, writers: int = WRITERS) -> ProbeResult:
    """Tries the store below `<prefix>probe/<random>/` and removes what it wrote. `prefix` is empty or ends in "/".

    Takes about `rounds` times a request's latency. Raises Unavailable, Denied and Misconfigured: then nothing is known.
    """
    bucket.check()
    folder = f"{prefix}probe/{secrets.token_hex(8)}/"
    problems: list[str] = []
    try:
        exclusive = _sequential(bucket, folder, problems) and _concurrent(bucket, folder, problems, rounds, writers)
        fresh = _stale_refused(bucket, folder, problems)
        lists = _lists(bucket, folder, problems)
        checksums = _checksums(bucket, folder, problems)
        problems += _caveats(bucket)
    finally:
        bucket.delete([info.key for info in bucket.list(folder)])
    return ProbeResult(exclusive and fresh, lists, checksums, "; ".join(problems))


def _sequential(bucket: Bucket, folder: str, problems: list[str]) -> bool:
    key = f"{folder}sequential"
    bucket.create(key, b"first")
    try:
        bucket.create(key, b"second")
    except AlreadyExists:
        return True
    problems.append("a second create-only write of the same key is accepted (If-None-Match is ignored)")
    return False


def _concurrent(bucket: Bucket, folder: str, problems: list[str], rounds: int, writers: int) -> bool:
    """In each round exactly one of many writers wins, and what lies there is the winner's."""
    with ThreadPoolExecutor(max_workers=writers, thread_name_prefix="probe") as pool:
        for number in range(rounds):
            key, start = f"{folder}round-{number}", threading.Barrier(writers)
            won = [*pool.map(lambda writer, k=key, s=start: _try_create(bucket, k, s, writer), range(writers))]
            winners = [writer for writer, result in enumerate(won) if result]
            content = bucket.get(key, max_bytes=64)
            if None in won and not winners:
                continue  # some writers got no answer: this round shows nothing
            if len(winners) != 1 or (None not in won and content != _mark(winners[0])):
                problems.append(f"{len(winners)} of {writers} concurrent create-only writes of one key were accepted")
                return False
    return True


def _try_create(bucket: Bucket, key: str, start: threading.Barrier, writer: int) -> bool | None:
    """True won, False lost, None unknown."""
    start.wait(timeout=60)
    try:
        bucket.create(key, _mark(writer))
    except AlreadyExists:
        return False
    except Unavailable:
        return None
    return True


def _mark(writer: int) -> bytes:
    return b"writer %d" % writer


def _stale_refused(bucket: Bucket, folder: str, problems: list[str]) -> bool:
    """Where the backend knows versions: an overwrite of a version that is no longer there is refused."""
    replace = getattr(_raw(bucket), "replace_missing_version", None)
    if replace is None:
        return True
    key = f"{folder}stale"
    bucket.put(key, b"now")
    try:
        replace(key, b"later")
    except AlreadyExists:
        return True
    problems.append("an overwrite of a stale version is accepted (If-Match is ignored)")
    return False


def _lists(bucket: Bucket, folder: str, problems: list[str]) -> bool:
    key = f"{folder}listed"
    bucket.create(key, b"there")
    seen = key in {info.key for info in bucket.list(folder)}
    bucket.delete([key])
    gone = key not in {info.key for info in bucket.list(folder)}
    if not seen or not gone:
        problems.append("a listing does not show what was just written or deleted")
    return seen and gone


def _checksums(bucket: Bucket, folder: str, problems: list[str]) -> bool:
    """Where uploads cross a network: one whose checksum does not fit is refused."""
    if not bucket.verifies_uploads:
        problems.append(getattr(_raw(bucket), "unverified_note", "uploads are not verified by the store"))
        return False
    refuses = getattr(_raw(bucket), "refuses_wrong_checksum", None)
    if refuses is None or refuses(f"{folder}checksum"):
        return True
    problems.append("an upload with a wrong checksum is accepted: damage on the way is found only when it is read")
    return False


def _caveats(bucket: Bucket) -> list[str]:
    """What no test of one client can show, but the backend knows."""
    said = getattr(_raw(bucket), "caveat", str)()
    return [said] if said else []


def _raw(bucket: Bucket) -> Any:
    return getattr(bucket, "inner", bucket)
