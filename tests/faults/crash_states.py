"""Which folders may be found after the power has failed: rebuilt from a recording of what a program did, in the manner of ALICE (OSDI'14).

The model, which promises less than ext4 or xfs do:

- What was written into a file, allocated or cut is lost, kept, kept as zeros, or kept to its first half, until fsync or fdatasync of that file has returned.
- A name that was made, removed or replaced (create, link, rename, unlink, mkdir, rmdir) is lost or kept, each independently of the others, until fsync of
  *its folder* has returned; fsync of the file is not enough. A rename is atomic, both of its names or neither, so one of two folders is enough.
- What was there before the recording is durable. A folder that is lost takes what is in it along.
- A disk that says that it has flushed has flushed.
"""

import dataclasses
import hashlib
import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.faults.interception import Call, Go, Interceptor, Outcome, Verdict
from tests.faults.saving import Place

ENOUGH = 48
"""States of one moment that are looked at one by one; of more, the extremes and a sample."""


@dataclass(eq=False)
class File:
    """Content is what survives every name of it."""

    before: bytes = b""
    changes: list[tuple[int, Call]] = field(default_factory=list)
    """(moment, write, allocate or truncate)."""


@dataclass(frozen=True)
class Naming:
    """One change of a folder. `names`: path -> what it names from then on; None removes."""

    moment: int
    names: tuple[tuple[str, "File | str | None"], ...]

    @property
    def folders(self) -> frozenset[str]:
        return frozenset(os.path.dirname(path) for path, _ in self.names)


FOLDER = "folder"


@dataclass(frozen=True)
class State:
    """A tree that may be found, and what had been promised by then."""

    moment: int
    files: tuple[tuple[str, bytes], ...]
    folders: tuple[str, ...]
    marks: frozenset[str]

    @property
    def name(self) -> str:
        h = hashlib.sha256(repr((self.folders, sorted(self.marks))).encode())
        for path, content in self.files:
            h.update(path.encode() + b"\0" + len(content).to_bytes(8, "big") + content)
        return h.hexdigest()

    def build(self, at: Place) -> Place:
        """Below a folder that does not exist yet."""
        at.make()
        for folder in self.folders:
            (at.root / folder).mkdir(parents=True, exist_ok=True)
        for path, content in self.files:
            (at.root / path).write_bytes(content)
        return at


def record(
    place: Place, function: object, *args: object, decide: Callable[[Call], Verdict] = lambda call: Go()
) -> tuple[list[Call], Outcome]:
    """Every change that was made below the place's folders, in order, with its data; what failed has changed nothing."""
    calls: list[Call] = []

    def done(call: Call, error: int) -> None:
        if not error:
            calls.append(call)

    roots = (place.store_folder, place.node_folder, place.marks)
    interceptor = Interceptor(roots, decide, carry_out=True, with_data=True, done=done)
    outcome = interceptor.run(function, *args)  # type: ignore[arg-type]
    return [relative(call, place) for call in calls], outcome


def relative(call: Call, place: Place) -> Call:
    root = f"{place.root}/"
    return dataclasses.replace(call, path=call.path.removeprefix(root), to=call.to.removeprefix(root))


class Recording:
    """What was done, understood as changes of files and of folders."""

    def __init__(self, before: Place, calls: Sequence[Call]) -> None:
        self._start: dict[str, File | str] = {}
        for path in sorted(p for top in (before.store_folder, before.node_folder) for p in top.rglob("*")):
            key = str(path.relative_to(before.root))
            self._start[key] = FOLDER if path.is_dir() else File(path.read_bytes())
        self.moments = len(calls)
        self.marks: list[tuple[int, str]] = []
        self._files: list[File] = [f for f in self._start.values() if isinstance(f, File)]
        self._namings: list[Naming] = []
        self._synced: list[tuple[int, File | str]] = []
        live: dict[str, File | str] = {"store": FOLDER, "node": FOLDER, **self._start}
        inodes: dict[int, File] = {}
        for moment, call in enumerate(calls, 1):
            if call.path.startswith("marks/"):
                self.marks.append((moment, call.path.removeprefix("marks/")))
                continue
            self._take(moment, call, live, inodes)
        self.final = {path: self._content(f, len(calls), "all") for path, f in live.items() if isinstance(f, File)}

    def _take(self, moment: int, call: Call, live: dict[str, File | str], inodes: dict[int, File]) -> None:
        names: list[tuple[str, File | str | None]] = []
        match call.name:
            case "open":
                if call.path not in live:
                    made = File()
                    self._files.append(made)
                    names = [(call.path, made)]
                elif call.flags & os.O_TRUNC:
                    self._file(call, live, inodes).changes.append(
                        (moment, dataclasses.replace(call, name="truncate", length=0))
                    )
            case "write" | "allocate" | "truncate":
                self._file(call, live, inodes).changes.append((moment, call))
            case "sync":
                where = live.get(call.path)
                self._synced.append((moment, call.path if where == FOLDER else self._file(call, live, inodes)))
            case "link":
                names = [(call.to, live[call.path])]
            case "rename":
                names = [(call.path, None), (call.to, live[call.path])]
                assert live[call.path] != FOLDER, "renaming a folder is not modelled"
            case "mkdir":
                names = [(call.path, FOLDER)]
            case "unlink" | "rmdir":
                names = [(call.path, None)]
        if names:
            self._namings.append(Naming(moment, tuple(names)))
            for path, what in names:
                if what is None:
                    live.pop(path, None)
                else:
                    live[path] = what

    def _file(self, call: Call, live: dict[str, File | str], inodes: dict[int, File]) -> File:
        found = live.get(call.path)
        if not isinstance(found, File):
            found = inodes.get(call.inode, File())  # its name is gone, or it never had one
        if call.inode:
            inodes[call.inode] = found
        return found

    # ---- what may be found

    def states(self, seed: int, moments: Iterable[int] | None = None) -> Iterator[State]:
        """Each distinct tree once, of each moment in turn."""
        rng, seen = random.Random(seed), set()
        for moment in moments if moments is not None else range(self.moments + 1):
            for state in self._at(moment, rng):
                if (name := state.name) not in seen:
                    seen.add(name)
                    yield state

    def _at(self, moment: int, rng: random.Random) -> Iterator[State]:
        done = [n for n in self._namings if n.moment <= moment]
        open_names = [n for n in done if not self._durable(n, moment)]
        open_files = [f for f in self._files if self._last_change(f, moment) > self._last_sync(f, moment)]
        options: list[list[object]] = [[True, False] for _ in open_names] + [
            ["all", "none", "zeros", "half"] for _ in open_files
        ]
        for choice in _choices(options, rng):
            kept = dict(zip(open_names, choice, strict=False))
            content = dict(zip(open_files, choice[len(open_names) :], strict=True))
            yield self._build(moment, [n for n in done if kept.get(n, True)], content)

    def _durable(self, naming: Naming, moment: int) -> bool:
        """A folder that it changes has been flushed since."""
        return any(naming.moment < at <= moment and where in naming.folders for at, where in self._synced)

    @staticmethod
    def _last_change(file: File, moment: int) -> int:
        return max((at for at, _ in file.changes if at <= moment), default=0)

    def _last_sync(self, file: File, moment: int) -> int:
        return max((at for at, what in self._synced if what is file and at <= moment), default=0)

    def _build(self, moment: int, namings: list[Naming], content: dict[File, object]) -> State:
        tree: dict[str, File | str] = dict(self._start)
        for path, what in (pair for naming in namings for pair in naming.names):
            if what is None:
                tree.pop(path, None)
            else:
                tree[path] = what
        there = {"store", "node"}
        for path in sorted(tree):
            if tree[path] == FOLDER and os.path.dirname(path) in there:
                there.add(path)
        files = tuple(
            (path, self._content(f, moment, str(content.get(f, "all"))))
            for path, f in sorted(tree.items())
            if isinstance(f, File) and os.path.dirname(path) in there
        )
        marks = frozenset(word for at, word in self.marks if at <= moment)
        return State(moment, files, tuple(sorted(there)), marks)

    def _content(self, file: File, moment: int, how: str) -> bytes:
        """`how`: what has become of the changes since the last flush."""
        data = bytearray(file.before)
        synced = self._last_sync(file, moment)
        for at, call in file.changes:
            if at > moment or (at > synced and how == "none"):
                continue
            doubtful = at > synced
            if call.name == "truncate":
                data = data[: call.length].ljust(call.length, b"\0")
                continue
            end = call.offset + call.length
            if len(data) < end:
                data.extend(bytes(end - len(data)))
            if call.name == "write":
                piece = call.data
                if doubtful and how == "zeros":
                    piece = bytes(len(piece))
                elif doubtful and how == "half":
                    piece = piece[: len(piece) // 2].ljust(len(piece), b"\0")
                data[call.offset : end] = piece
        return bytes(data)


def _choices(options: list[list[object]], rng: random.Random) -> Iterator[tuple[object, ...]]:
    count = 1
    for option in options:
        count *= len(option)
    if count <= ENOUGH:
        yield from itertools.product(*options)
        return
    best, worst = tuple(o[0] for o in options), tuple(o[1] for o in options)
    yield best
    yield worst
    for index, option in enumerate(options):
        for other in option[1:]:
            yield (*best[:index], other, *best[index + 1 :])  # one thing lost
        yield (*worst[:index], option[0], *worst[index + 1 :])  # one thing kept
    for _ in range(ENOUGH // 4):
        yield tuple(rng.choice(o) for o in options)


# ---- recordings of programs that do it wrong


def without_flush_of_files(calls: Sequence[Call], below: str) -> list[Call]:
    return [c for c in calls if not (c.name == "sync" and c.path.startswith(below) and not _is_folder(c, calls))]


def without_flush_of_folders(calls: Sequence[Call], below: str) -> list[Call]:
    return [c for c in calls if not (c.name == "sync" and c.path.startswith(below) and _is_folder(c, calls))]


def _is_folder(call: Call, calls: Sequence[Call]) -> bool:
    return not any(c.inode == call.inode and c.name in ("write", "allocate", "truncate") for c in calls)


def named_before_written(calls: Sequence[Call], below: str) -> list[Call]:
    """Every file gets its name before its content, as a program does that opens the final name and writes into it."""
    found = list(calls)
    for call in calls:
        if call.name in ("link", "rename") and call.path.startswith(below):
            made = next((i for i, c in enumerate(found[: found.index(call)]) if _makes(c, call.path)), None)
            if made is not None:
                found.remove(call)
                found.insert(made + 1, call)
    if not any(c.name == "rename" for c in calls):
        return found
    moved = {c.path: c.to for c in calls if c.name == "rename" and c.path.startswith(below)}
    return [
        dataclasses.replace(c, path=moved.get(c.path, c.path)) if c.name in ("write", "allocate", "sync") else c
        for c in found
    ]


def _makes(call: Call, path: str) -> bool:
    """A new file, or one whose room was spare."""
    return (call.name == "open" and call.path == path) or (call.name == "rename" and call.to == path)
