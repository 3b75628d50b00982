"""Stops a process of ours at each call that changes files, and decides what becomes of the call: done, refused with an error, done in part, or death.

The kernel does the stopping (seccomp user notification): whichever thread makes the call, through whatever library, it waits until `decide` has answered.
So calls have one order and one number over all threads, a kill is a SIGKILL between two of them, and an injected error is what the program really gets.
Stands for `strace --inject`, whose counters are per thread, so that a program with a pool of threads cannot be stopped at its n-th call.

Calls are *numbered* and *described* whether they are carried out by the kernel (`Go`) or, in `record`, by this side (`Do`), which then knows their result.
"""

import ast
import ctypes
import dataclasses
import errno
import fcntl
import mmap
import multiprocessing
import os
import platform
import select
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

X86_64 = {
    "write": 1, "pwrite64": 18, "writev": 20, "pwritev": 296, "pwritev2": 328, "fallocate": 285, "ftruncate": 77, "truncate": 76,
    "fsync": 74, "fdatasync": 75, "sync_file_range": 277, "syncfs": 306, "sync": 162, "msync": 26,
    "open": 2, "creat": 85, "openat": 257, "openat2": 437,
    "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266, "rename": 82, "renameat": 264, "renameat2": 316,
    "unlink": 87, "unlinkat": 263, "mkdir": 83, "mkdirat": 258, "rmdir": 84,
    "sendfile": 40, "splice": 275, "copy_file_range": 326, "mmap": 9,
}  # fmt: skip
AARCH64 = {
    "write": 64, "pwrite64": 68, "writev": 66, "pwritev": 70, "pwritev2": 287, "fallocate": 47, "ftruncate": 46, "truncate": 45,
    "fsync": 82, "fdatasync": 83, "sync_file_range": 84, "syncfs": 267, "sync": 81, "msync": 227,
    "openat": 56, "openat2": 437,
    "linkat": 37, "symlinkat": 36, "renameat": 38, "renameat2": 276,
    "unlinkat": 35, "mkdirat": 34,
    "sendfile": 71, "splice": 76, "copy_file_range": 285, "mmap": 222,
}  # fmt: skip
_TABLES = {"x86_64": (X86_64, 317, 0xC000003E), "aarch64": (AARCH64, 277, 0xC00000B7)}
_AT_FDCWD = -100
_AT_REMOVEDIR = 0x200
_CHANGES = os.O_CREAT | os.O_TRUNC
_WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
_IN, _OUT = 0xC0502100, 0xC0182101
_ADDFD = 0x40182103
_CONTINUE = 1
PATIENCE_SECONDS = 120


class NotUnderstood(Exception):
    """The program changes files in a way that this harness does not know: teach it, or the tests would look past it."""


@dataclass(frozen=True)
class Call:
    """One call on a path below the roots, about to be carried out."""

    number: int
    """From 1, over all threads."""
    name: str
    """As families: write, allocate, truncate, sync, open, link, rename, unlink, mkdir, rmdir."""
    path: str
    """What it acts on; for link and rename what is there before."""
    to: str = ""
    """The new name of link and rename."""
    offset: int = 0
    data: bytes = b""
    """What is written. Only read where it is asked for (`with_data`)."""
    length: int = 0
    flags: int = 0
    inode: int = 0
    """Of the file or folder that a descriptor names; 0 where there is none."""
    real: str = ""
    """The system call itself."""
    thread: int = 0


@dataclass(frozen=True)
class Go:
    """The kernel carries the call out."""


@dataclass(frozen=True)
class Kill:
    """SIGKILL; the call is not carried out."""


@dataclass(frozen=True)
class Fail:
    """The call is not carried out and ends with this errno."""

    errno: int


@dataclass(frozen=True)
class Part:
    """A write that writes so many bytes and says so."""

    bytes: int


Verdict = Go | Kill | Fail | Part


@dataclass
class Outcome:
    """How the program ended."""

    value: Any = None
    error: str = ""
    """Name of the exception's class, or ""."""
    words: str = ""
    killed: bool = False
    calls: list[Call] = field(default_factory=list)


def why_not() -> str:
    """Why this machine cannot do it, or ""."""
    if platform.machine() not in _TABLES:
        return f"the numbers of system calls on {platform.machine()} are not known to this harness"
    outcome = Interceptor((), lambda call: Go()).run(_nothing)
    return outcome.words if outcome.error == "OSError" else ""


def _nothing() -> None:
    return None


_memoised: list[str] = []


def needed() -> None:
    """Skips with the reason; a run that promised everything (CI, `make test`) fails instead."""
    if not _memoised:
        _memoised.append(why_not())
    if _memoised[0]:
        message = f"system calls cannot be intercepted here: {_memoised[0]}"
        if os.environ.get("CI") == "true" and platform.machine() in _TABLES:
            pytest.fail(message)
        pytest.skip(message)


# ---- the side of the program


def _install() -> int:
    """A filter for this thread and all that it starts; the descriptor on which the stopped calls are heard."""
    numbers, seccomp, architecture = _TABLES[platform.machine()]
    kept = sorted(set(numbers.values()) - {numbers["mmap"]})
    notify, allow = 0x7FC00000, 0x7FFF0000

    def statement(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
        return struct.pack("HBBI", code, jt, jf, k)

    load, equal, ret, anded = 0x20, 0x15, 0x06, 0x45
    program = [statement(load, 4), statement(equal, architecture, 1, 0), statement(ret, allow), statement(load, 0)]
    for number in kept:
        program += [statement(equal, number, 0, 1), statement(ret, notify)]
    # mmap only where a shared file can be written through it: arguments 2 (PROT_WRITE) and 3 (MAP_SHARED), low halves.
    program += [statement(equal, numbers["mmap"], 0, 5), statement(load, 32), statement(anded, 2, 0, 3)]
    program += [statement(load, 40), statement(anded, 1, 0, 1), statement(ret, notify), statement(ret, allow)]
    code = b"".join(program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    if libc.prctl(38, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs is refused")
    listener = int(libc.syscall(seccomp, 1, 8, ctypes.c_void_p(ctypes.addressof(header))))
    if listener < 0:
        raise OSError(ctypes.get_errno(), f"a seccomp listener is refused: {os.strerror(ctypes.get_errno())}")
    return listener


def _begin(channel: socket.socket, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """In the new process. `channel` carries the listener first and the result last."""
    result: tuple[str, Any] = ("", None)
    try:
        listener = _install()
    except OSError as e:
        socket.send_fds(channel, [b"-"], [])
        channel.sendall(repr(("OSError", str(e))).encode())
        os._exit(0)
    socket.send_fds(channel, [b"+"], [listener])
    os.close(listener)
    channel.recv(1)  # until the other side is ready
    try:
        result = ("", function(*args))
    except BaseException as e:
        result = (type(e).__name__, f"{e}\n{traceback.format_exc()}")
    channel.sendall(repr(result).encode())
    os._exit(0)


# ---- this side


class Interceptor:
    """Runs functions in processes of their own. `decide` sees every call that changes something below `roots`; what lies elsewhere passes unseen.

    `carry_out`: calls with the verdict `Go` are done by this side, one after the other, and `done(call, errno)` hears of each result.
    """

    def __init__(
        self,
        roots: tuple[Path, ...],
        decide: Callable[[Call], Verdict],
        *,
        carry_out: bool = False,
        with_data: bool = False,
        done: Callable[[Call, int], None] = lambda call, error: None,
    ) -> None:
        self._roots = tuple(str(r) for r in roots)
        self._decide = decide
        self._carry_out = carry_out
        self._with_data = with_data
        self._done = done

    def run(self, function: Callable[..., Any], *args: Any) -> Outcome:
        """`function` must be importable by name, its result a plain value (`repr` and back)."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.faults.saving"])
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = context.Process(target=_begin, args=(theirs, function, args), daemon=True)
                process.start()
            ours.settimeout(PATIENCE_SECONDS)
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
            self._pid = int(process.pid or 0)
            outcome = Outcome()
            try:
                if descriptors:
                    self._attend(descriptors[0], process.sentinel, ours, outcome)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
                process.join(5)
                if process.exitcode is None:
                    process.kill()
                    process.join()
            said = b"".join(iter(lambda: ours.recv(1 << 16), b""))
        process.close()
        if said and not outcome.killed:
            outcome.error, value = _plain(said)
            outcome.value, outcome.words = (value, "") if not outcome.error else (None, str(value))
        elif not outcome.killed:
            outcome.error, outcome.words = "Gone", "the process ended without a word"
        return outcome

    def _attend(self, listener: int, sentinel: int, channel: socket.socket, outcome: Outcome) -> None:
        names = {number: name for name, number in _TABLES[platform.machine()][0].items()}
        libc = ctypes.CDLL(None, use_errno=True)
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(sentinel, select.POLLIN)
        notice = ctypes.create_string_buffer(80)
        memory = os.open(f"/proc/{self._pid}/mem", os.O_RDONLY)
        try:
            channel.sendall(b"!")
            while True:
                ready = dict(poll.poll(PATIENCE_SECONDS * 1000))
                assert ready, "the program makes no progress"
                if not ready.get(listener, 0) & select.POLLIN:
                    return  # everybody is gone
                ctypes.memset(notice, 0, 80)
                if libc.ioctl(listener, ctypes.c_ulong(_IN), notice):
                    continue  # it died while it was asking
                ident, thread, _, number, _, _, *args = struct.unpack("QIIiIQ6Q", notice.raw)
                answer = self._answer(libc, listener, ident, thread, names[number], args, memory, outcome)
                if answer is None:
                    os.kill(self._pid, signal.SIGKILL)
                    outcome.killed = True
                    return
                reply = ctypes.create_string_buffer(struct.pack("QqiI", ident, *answer), 24)
                libc.ioctl(listener, ctypes.c_ulong(_OUT), reply)
        finally:
            os.close(memory)

    def _answer(
        self,
        libc: Any,
        listener: int,
        ident: int,
        thread: int,
        name: str,
        args: list[int],
        memory: int,
        outcome: Outcome,
    ) -> tuple[int, int, int] | None:
        """(value, -errno, flags) for the kernel, or None for death."""
        go = (0, 0, _CONTINUE)
        process = _Process(self._pid, thread, memory)
        call = self._describe(process, name, args, len(outcome.calls) + 1)
        if call is None:
            return go
        call = dataclasses.replace(call, thread=thread)
        outcome.calls.append(call)
        match self._decide(call):
            case Kill():
                return None
            case Fail(number):
                return 0, -number, 0
            case Part(count):
                return _Doer(process, name, args).write(count), 0, 0
            case Go() if not self._carry_out:
                return go
        try:
            doer = _Doer(process, name, args)
            value = doer.do(lambda fd, cloexec: _give(libc, listener, ident, fd, cloexec))
        except OSError as e:
            self._done(call, e.errno or errno.EIO)
            return 0, -(e.errno or errno.EIO), 0
        self._done(call, 0)
        return value, 0, 0

    def _describe(self, process: "_Process", name: str, args: list[int], number: int) -> Call | None:
        """None for what does not change anything below the roots."""
        if name in _WRITES or name in ("fallocate", "ftruncate", "fsync", "fdatasync"):
            path = process.path_of(args[0])
            if not self._below(path):
                return None
            inode = process.stat(args[0]).st_ino
            if name in _WRITES:
                offset = args[3] if name.startswith("p") else process.position(args[0])
                pieces = process.pieces(name, args)
                data = process.read(pieces) if self._with_data else b""
                return Call(
                    number,
                    "write",
                    path,
                    offset=offset,
                    data=data,
                    length=sum(n for _, n in pieces),
                    inode=inode,
                    real=name,
                )
            family = {"fallocate": "allocate", "ftruncate": "truncate"}.get(name, "sync")
            offset, length = (args[2], args[3]) if name == "fallocate" else (0, args[1] if name == "ftruncate" else 0)
            return Call(number, family, path, offset=offset, length=length, inode=inode, real=name)
        if name in ("open", "creat", "openat"):
            at, where, flags = {
                "open": (_AT_FDCWD, args[0], args[1]), "creat": (_AT_FDCWD, args[0], _CHANGES), "openat": (*args[:2], args[2]),
            }[name]  # fmt: skip
            path = process.full(at, where)
            return (
                Call(number, "open", path, flags=flags, real=name) if self._below(path) and flags & _CHANGES else None
            )
        if name in ("link", "linkat", "rename", "renameat", "renameat2"):
            old, new = (
                (args[:2], args[2:4]) if name.endswith(("at", "at2")) else ([_AT_FDCWD, args[0]], [_AT_FDCWD, args[1]])
            )
            path, to = process.full(*old), process.full(*new)
            return (
                Call(number, name[:4].replace("rena", "rename"), path, to, real=name) if self._below(path, to) else None
            )
        if name in ("unlink", "unlinkat", "mkdir", "mkdirat", "rmdir"):
            at, where = args[:2] if name.endswith("at") else (_AT_FDCWD, args[0])
            path = process.full(at, where)
            family = name.removesuffix("at")
            if name == "unlinkat" and args[2] & _AT_REMOVEDIR:
                family = "rmdir"
            return Call(number, family, path, real=name) if self._below(path) else None
        return self._refuse_if_ours(process, name, args)

    def _refuse_if_ours(self, process: "_Process", name: str, args: list[int]) -> None:
        """Calls that change files and that the program is not known to make."""
        p = process
        touched: dict[str, Callable[[], str]] = {
            "mmap": lambda: p.path_of(args[4]),
            "truncate": lambda: p.full(_AT_FDCWD, args[0]),
            "symlink": lambda: p.full(_AT_FDCWD, args[1]),
            "symlinkat": lambda: p.full(args[1], args[2]),
            "openat2": lambda: p.full(args[0], args[1]),
            "sendfile": lambda: p.path_of(args[0]),
            "splice": lambda: p.path_of(args[2]),
            "copy_file_range": lambda: p.path_of(args[2]),
            "sync_file_range": lambda: p.path_of(args[0]),
            "syncfs": lambda: p.path_of(args[0]),
        }
        if name in touched and self._below(path := touched[name]()):
            raise NotUnderstood(f"{name} on {path}")

    def _below(self, *paths: str) -> bool:
        return any(path == root or path.startswith(root + "/") for path in paths for root in self._roots)


class _Process:
    """What the stopped thread's arguments mean."""

    def __init__(self, pid: int, thread: int, memory: int) -> None:
        self._pid, self._thread, self._memory = pid, thread, memory

    def path_of(self, descriptor: int) -> str:
        try:
            return os.readlink(f"/proc/{self._pid}/fd/{_signed(descriptor)}").removesuffix(" (deleted)")
        except OSError:
            return ""

    def stat(self, descriptor: int) -> os.stat_result:
        return os.stat(f"/proc/{self._pid}/fd/{descriptor}")

    def position(self, descriptor: int) -> int:
        for line in Path(f"/proc/{self._pid}/fdinfo/{descriptor}").read_text().splitlines():
            if line.startswith("pos:"):
                return int(line.split()[1])
        raise NotUnderstood("a descriptor without a position")

    def text(self, address: int) -> str:
        found = b""
        while b"\0" not in found:
            # Not past the end of a page: what follows it need not be mapped.
            piece = os.pread(self._memory, 4096 - address % 4096, address)
            found, address = found + piece, address + len(piece)
        return os.fsdecode(found.split(b"\0")[0])

    def full(self, at: int, address: int) -> str:
        name = self.text(address)
        if name.startswith("/"):
            return os.path.normpath(name)
        folder = os.readlink(f"/proc/{self._pid}/cwd") if _signed(at) == _AT_FDCWD else self.path_of(at)
        return os.path.normpath(f"{folder}/{name}")

    def pieces(self, name: str, args: list[int]) -> list[tuple[int, int]]:
        """(address, length) of what is written."""
        if name in ("write", "pwrite64"):
            return [(args[1], args[2])]
        raw = os.pread(self._memory, 16 * args[2], args[1])
        return [struct.unpack_from("QQ", raw, 16 * i) for i in range(args[2])]  # type: ignore[misc]

    def read(self, pieces: list[tuple[int, int]]) -> bytes:
        return b"".join(os.pread(self._memory, length, address) for address, length in pieces if length)

    def open_anew(self, descriptor: int) -> int:
        """A buffered descriptor of the same file, for writing at a place."""
        return os.open(f"/proc/{self._pid}/fd/{descriptor}", os.O_WRONLY | os.O_CLOEXEC)

    def take(self, descriptor: int) -> int:
        """The same open file in this process."""
        pidfd = os.pidfd_open(self._pid)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.syscall.restype = ctypes.c_long
            found = int(libc.syscall(438, pidfd, descriptor, 0))
            if found < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
            return found
        finally:
            os.close(pidfd)


class _Doer:
    """Carries a call out in the program's place."""

    def __init__(self, process: _Process, name: str, args: list[int]) -> None:
        self._process, self._name, self._args = process, name, args

    def do(self, give: Callable[[int, bool], int]) -> int:
        p, a, name = self._process, self._args, self._name
        if name in _WRITES:
            return self.write(None)
        if name in ("fallocate", "ftruncate", "fsync", "fdatasync"):
            fd = p.take(a[0])
            try:
                if name == "fallocate" and a[1]:
                    raise NotUnderstood("fallocate with a mode")
                {
                    "fallocate": lambda: os.posix_fallocate(fd, a[2], a[3]),
                    "ftruncate": lambda: os.ftruncate(fd, a[1]),
                    "fsync": lambda: os.fsync(fd),
                    "fdatasync": lambda: os.fdatasync(fd),
                }[name]()
            finally:
                os.close(fd)
            return 0
        if name in ("open", "creat", "openat"):
            at, where, flags, mode = {
                "open": (_AT_FDCWD, a[0], a[1], a[2]), "creat": (_AT_FDCWD, a[0], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, a[1]),
                "openat": (a[0], a[1], a[2], a[3]),
            }[name]  # fmt: skip
            fd = os.open(p.full(at, where), flags, mode & 0o7777)
            try:
                return give(fd, bool(flags & os.O_CLOEXEC))
            finally:
                os.close(fd)
        if name in ("link", "linkat"):
            old, new = (a[:2], a[2:4]) if name == "linkat" else ([_AT_FDCWD, a[0]], [_AT_FDCWD, a[1]])
            os.link(p.full(*old), p.full(*new), follow_symlinks=False)
        elif name in ("rename", "renameat", "renameat2"):
            if name == "renameat2" and a[4]:
                raise NotUnderstood("renameat2 with flags")
            old, new = (a[:2], a[2:4]) if name != "rename" else ([_AT_FDCWD, a[0]], [_AT_FDCWD, a[1]])
            os.rename(p.full(*old), p.full(*new))
        else:
            at, where = a[:2] if name.endswith("at") else (_AT_FDCWD, a[0])
            path = p.full(at, where)
            if name in ("mkdir", "mkdirat"):
                os.mkdir(path, a[2 if name == "mkdirat" else 1] & 0o7777)
            elif name == "rmdir" or (name == "unlinkat" and a[2] & _AT_REMOVEDIR):
                os.rmdir(path)
            else:
                os.unlink(path)
        return 0

    def write(self, most: int | None) -> int:
        """At most so many bytes of it. From memory that direct I/O accepts."""
        p, a = self._process, self._args
        data = p.read(p.pieces(self._name, a))[:most]
        if not data:
            return 0
        fd = p.take(a[0])
        if len(data) % 4096 and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            # Direct I/O cannot stop within a block: what a file system does then goes through the page cache.
            straight, fd = fd, os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
            os.close(straight)
        try:
            with mmap.mmap(-1, -(-len(data) // 4096) * 4096) as aligned:
                aligned[: len(data)] = data
                with memoryview(aligned) as view, view[: len(data)] as piece:
                    return os.pwrite(fd, piece, a[3]) if self._name.startswith("p") else os.write(fd, piece)
        finally:
            os.close(fd)


def _give(libc: Any, listener: int, ident: int, fd: int, cloexec: bool) -> int:
    request = ctypes.create_string_buffer(struct.pack("QIIII", ident, 0, fd, 0, os.O_CLOEXEC if cloexec else 0), 24)
    found = int(libc.ioctl(listener, ctypes.c_ulong(_ADDFD), request))
    if found < 0:
        raise OSError(ctypes.get_errno(), "a descriptor could not be handed over")
    return found


def _signed(value: int) -> int:
    """A descriptor in a 64-bit argument: the kernel looks at its low half."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def _plain(said: bytes) -> tuple[str, Any]:
    found: tuple[str, Any] = ast.literal_eval(said.decode())
    return found
