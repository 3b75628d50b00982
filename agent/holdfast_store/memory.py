"""A bucket in memory with faults to order, for tests of everything that stands on a store. Ships, so that others can test against the same failures.

Faults are data: which operation on which keys, from which matching call on, how often, with what effect.

    MemoryBucket([Fault(Effect.UNAVAILABLE, "create", "commit.json", times=3)])   the first three tries to commit fail
    MemoryBucket([Fault(Effect.LOST_ANSWER, "create", "attempts/")])              the claim is written, its answer is lost
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from holdfast_store.bound import Bound
from holdfast_store.bucket import Buffer, Folders, Level, ObjectInfo, check_key, check_prefix
from holdfast_store.errors import Absent, AlreadyExists, Corrupt, Denied, Full, Unavailable


class Effect(StrEnum):
    """What an ordered fault does."""

    UNAVAILABLE = "unavailable"
    """Nothing happens; Unavailable."""
    LOST_ANSWER = "lost-answer"
    """It happens, and then Unavailable: the caller cannot know."""
    DENIED = "denied"
    FULL = "full"
    TORN = "torn"
    """A write stores the first half and is Unavailable; a read returns the first half."""
    FLIPPED = "flipped"
    """A read returns the content with one bit turned over."""
    STALE = "stale"
    """A read or listing does not see the last `depth` changes."""
    NOT_EXCLUSIVE = "not-exclusive"
    """A create overwrites, as on servers that ignore If-None-Match."""


@dataclass(frozen=True, slots=True)
class Fault:
    effect: Effect
    operation: str = "*"
    """create, put, get (get_into too), head, list (all kinds), delete; or all."""
    key: str = ""
    """A part of the key or prefix."""
    first: int = 1
    """The first matching call that it strikes, counted from 1."""
    times: int = 1
    """How many calls in a row; 0 is all that follow."""
    depth: int = 1


class MemoryBucket:
    """Thread-safe; each operation is atomic. `before_call(operation, key)` runs before each, outside the lock: a test may order threads there."""

    verifies_uploads = True

    def __init__(self, faults: Sequence[Fault] = (), *, before_call: Callable[[str, str], None] | None = None) -> None:
        self.faults: list[Fault] = [*faults]
        self.calls: list[tuple[str, str]] = []
        self._seen: dict[int, int] = {}
        self._objects: dict[str, bytes] = {}
        self._undo: list[tuple[str, bytes | None]] = []
        self._lock = threading.RLock()
        self.before_call = before_call

    @property
    def uri(self) -> str:
        return "memory://"

    @property
    def objects(self) -> dict[str, bytes]:
        """A copy of everything that is stored."""
        with self._lock:
            return dict(self._objects)

    @property
    def changes(self) -> int:
        """How often an object was written or removed so far."""
        return len(self._undo)

    def damage(self, key: str, data: bytes | None) -> None:
        """Replaces or removes an object behind everyone's back."""
        with self._lock:
            self._set(key, data)

    def check(self) -> None:
        with self._call("check", ""):
            pass

    def create(self, key: str, data: Buffer, *, bound: Bound | None = None) -> None:
        with self._call("create", check_key(key)) as effects:
            if key in self._objects and Effect.NOT_EXCLUSIVE not in effects:
                raise AlreadyExists(f"{key} exists")
            self._write(key, data, effects)

    def put(self, key: str, data: Buffer) -> None:
        with self._call("put", check_key(key)) as effects:
            self._write(key, data, effects)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        with self._call("get", check_key(key)) as effects:
            data = self._read(key, effects)
        if len(data) > max_bytes:
            raise Corrupt(key, f"{len(data)} bytes where at most {max_bytes} are allowed")
        return data

    def get_into(self, key: str, view: memoryview) -> None:
        with self._call("get", check_key(key)) as effects:
            data = self._read(key, effects)
        if len(data) != view.nbytes:
            raise Corrupt(key, f"{len(data)} bytes where {view.nbytes} were written")
        view[:] = data

    def doubt(self) -> None:
        """Nothing is kept."""

    def head(self, key: str) -> ObjectInfo:
        with self._call("head", check_key(key)) as effects:
            return ObjectInfo(key, len(self._read(key, effects)))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._call("list", check_prefix(prefix)) as effects:
            found = self._view(effects)
        return iter([ObjectInfo(key, len(data)) for key, data in sorted(found.items()) if key.startswith(prefix)])

    def settle(self, prefix: str) -> None:
        """An object is listed once it lasts."""

    def list_level(self, prefix: str) -> Level:
        with self._call("list", check_prefix(prefix)) as effects:
            found = self._view(effects)
        below = {key: data for key, data in sorted(found.items()) if key.startswith(prefix)}
        folders = {key[len(prefix) :].partition("/")[0] for key in below if "/" in key[len(prefix) :]}
        objects = tuple(ObjectInfo(key, len(data)) for key, data in below.items() if "/" not in key[len(prefix) :])
        return Level(tuple(sorted(folders)), objects)

    def list_folders(self, prefix: str) -> Folders:
        return [*self.list_level(prefix).folders]

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            with self._call("delete", check_key(key)):
                if key in self._objects:
                    self._set(key, None)

    def discard_unfinished(self, prefix: str) -> int:
        return 0

    def _write(self, key: str, data: Buffer, effects: "set[Effect]") -> None:
        content = bytes(data)
        if Effect.TORN in effects:
            self._set(key, content[: len(content) // 2])
            raise Unavailable(f"{key}: the connection was cut")
        self._set(key, content)

    def _read(self, key: str, effects: "set[Effect]") -> bytes:
        view = self._view(effects)
        if key not in view:
            raise Absent(f"{key} does not exist")
        data = view[key]
        if Effect.TORN in effects:
            return data[: len(data) // 2]
        if Effect.FLIPPED in effects and data:
            middle = len(data) // 2
            return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return data

    def _view(self, effects: "set[Effect]") -> dict[str, bytes]:
        view = dict(self._objects)
        if Effect.STALE in effects:
            for key, before in reversed(self._undo[-max(f.depth for f in self.faults if f.effect is Effect.STALE) :]):
                if before is None:
                    view.pop(key, None)
                else:
                    view[key] = before
        return view

    def _set(self, key: str, data: bytes | None) -> None:
        self._undo.append((key, self._objects.get(key)))
        if data is None:
            self._objects.pop(key, None)
        else:
            self._objects[key] = data

    @contextlib.contextmanager
    def _call(self, operation: str, key: str) -> Iterator["set[Effect]"]:
        """One operation under the lock, with the faults that strike it."""
        if self.before_call:
            self.before_call(operation, key)
        effects = self._strikes(operation, key)
        for effect, error in _FAILS.items():
            if effect in effects:
                raise error(f"{key}: ordered fault")
        with self._lock:
            yield effects
        if Effect.LOST_ANSWER in effects:
            raise Unavailable(f"{key}: the answer was lost")

    def _strikes(self, operation: str, key: str) -> "set[Effect]":
        effects = set()
        with self._lock:
            self.calls.append((operation, key))
            for number, fault in enumerate(self.faults):
                if fault.operation not in ("*", operation) or fault.key not in key:
                    continue
                count = self._seen[number] = self._seen.get(number, 0) + 1
                if count >= fault.first and (not fault.times or count < fault.first + fault.times):
                    effects.add(fault.effect)
        return effects


_FAILS = {Effect.UNAVAILABLE: Unavailable, Effect.DENIED: Denied, Effect.FULL: Full}
