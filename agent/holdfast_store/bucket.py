"""The seam to storage: what every backend must do, and the choice of a backend by URI.

A bucket is a flat map from keys to immutable-by-convention objects. The interface is narrow so that a fake of it is small and ships (`memory`). Keys
are relative to the storage URI; each backend checks them before use (S6).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from holdfast_api.errors import BadName
from holdfast_store.bound import Bound
from holdfast_store.errors import Corrupt

Buffer: TypeAlias = bytes | bytearray | memoryview
Folders: TypeAlias = list[str]  # spelled so because `list` is a method below
Room: TypeAlias = Callable[[int], memoryview]
"""Given the announced size of an object, the memory that takes it; raises what is to be raised before a byte arrives."""

MAX_KEY = 1024
_KEY_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}\Z")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Level:
    """One level below a prefix: folder names (without the slash) and the objects that lie directly there. Sorted."""

    folders: tuple[str, ...]
    objects: tuple[ObjectInfo, ...]


class Bucket(Protocol):
    """Thread-safe and blocking. Every method raises StoreError and nothing else for what the store does, and ValueError for a wrong argument."""

    @property
    def uri(self) -> str: ...

    @property
    def verifies_uploads(self) -> bool:
        """Whether every upload carries a checksum that the server compares (B6). Where not, what is found in the place of a chunk is compared with it."""

    def check(self) -> None:
        """Proves that the bucket or directory exists and lets us in: else Misconfigured, Denied or Unavailable. Absence is believed only after it."""

    def create(self, key: str, data: Buffer, *, bound: Bound | None = None) -> None:
        """Create-only, durable and whole when it returns, verified by the server on its way (B6). AlreadyExists if something lies there.

        Unavailable at the end of `bound`, where the backend can cut a request; it may have been carried out all the same.
        """

    def put(self, key: str, data: Buffer) -> None:
        """Create or overwrite; readers see the old or the new content, never a mixture."""

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """The whole object. Absent, or Corrupt when it is longer than `max_bytes` (nothing is read then)."""

    def get_into(self, key: str, view: memoryview) -> None:
        """Fills `view` with the object, which must have exactly this length, else Corrupt. After an error `view` may hold anything."""

    def doubt(self) -> None:
        """What this thread has just read was not what it asked for: it reads nothing more from a connection that it keeps. Never raises."""

    def head(self, key: str) -> ObjectInfo:
        """Size of an object, or Absent."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below `prefix` (empty, or ending in "/"), in no promised order. What is created or deleted meanwhile may or may not be seen."""

    def settle(self, prefix: str) -> None:
        """What a listing of this folder has shown lasts when it returns, though whoever made it may have died before it did (B9)."""

    def list_level(self, prefix: str) -> Level:
        """What lies directly below `prefix` (empty, or ending in "/")."""

    def list_folders(self, prefix: str) -> Folders:
        """`list_level(prefix).folders` as a list."""

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes; what is absent is fine."""

    def discard_unfinished(self, prefix: str) -> int:
        """Removes what writers that died left invisible below `prefix` (temporary files older than a day); returns how many. 0 where there is no such thing."""


def check_key(key: str) -> str:
    """Refuses whatever could leave the bucket's folder or mean two things (S6): BadName for dots, empty parts, other characters, too much length."""
    if len(key) > MAX_KEY or not all(_KEY_SEGMENT.match(part) for part in key.split("/")):
        raise BadName(f"{key[:200]!r} is not a key of a store")
    return key


def check_prefix(prefix: str) -> str:
    """As `check_key`, for a prefix: empty, or a key followed by "/"."""
    if prefix:
        if not prefix.endswith("/"):
            raise ValueError(f"the prefix {prefix!r} must end in '/'")
        check_key(prefix[:-1])
    return prefix


def got(key: str, max_bytes: int, download: Callable[[str, Room], None]) -> bytes:
    """`Bucket.get` by a backend's `download`: nothing is allocated for an object that is announced as longer than `max_bytes` (B10)."""
    data = bytearray()

    def room(size: int) -> memoryview:
        if size > max_bytes:
            raise Corrupt(key, f"{size} bytes where at most {max_bytes} are allowed")
        data.extend(bytes(size))
        return memoryview(data)

    download(check_key(key), room)
    return bytes(data)


def got_into(key: str, view: memoryview, download: Callable[[str, Room], None]) -> None:
    """`Bucket.get_into` by a backend's `download`: an object of another length is refused before a byte arrives."""

    def room(size: int) -> memoryview:
        if size != view.nbytes:
            raise Corrupt(key, f"{size} bytes where {view.nbytes} were written")
        return view

    download(check_key(key), room)
