"""File operations confined to one directory (S6) and durable when they return (B9). Shared by the `file://` bucket and the local tier.

Every path is walked part by part from the root's descriptor with O_NOFOLLOW: a symbolic link below the root is refused, wherever it points. A new file
is written under a temporary name in its own folder, flushed, given its name, and the folder flushed. An error of a flush is final for that file: it is
unlinked and the error raised; trying again means writing all of it again into another file. Large files go past the page cache where that is possible
(direct.py).
"""

import contextlib
import errno
import fcntl
import os
import secrets
import signal
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from holdfast_store import direct
from holdfast_store.bucket import Buffer
from holdfast_store.direct_read import DirectReader, Seen
from holdfast_store.errors import (
    Absent,
    AlreadyExists,
    Corrupt,
    Denied,
    Full,
    Misconfigured,
    StoreError,
    Unavailable,
)

TEMPORARY = ".new-"
"""Prefix of temporary names. No key can begin with a dot, so none can name such a file."""
SPARE = ".spare-"
"""Prefix of the names of files that hold nothing but room (`Folder.set_aside`)."""
UNFINISHED_AFTER_SECONDS = 86_400
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE_BYTES = 32 << 20
_RACES = 20
_REMEMBERED = 4096


class Folder:
    """A directory that keys are resolved below. Thread-safe: it holds no state but the path, which folders it knows to be durable, and how large files are
    read and written there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._durable: set[str] = set()
        self._making = threading.Lock()
        self._direct = DirectReader()
        self._mode: direct.Mode | None = None
        self._probing = threading.Lock()

    def check(self) -> None:
        os.close(self._open_root())

    def mode(self) -> direct.Mode:
        """How large files are written below: found out once, by trying (J5)."""
        with self._probing:
            if self._mode is None:
                os.close(self._open_root())
                with wrapped(""):
                    self._mode = direct.probe(self.root)
            return self._mode

    def write(self, key: str, data: Buffer, *, create_only: bool) -> None:
        """Whole and durable when it returns. AlreadyExists with `create_only` if the name is taken."""
        view = memoryview(data).cast("B")
        file = self.begin(key, view.nbytes)
        try:
            file.write(view, 0)
            file.keep(create_only=create_only)
        finally:
            file.close()

    def begin(self, key: str, size: int, *, spare: str = "") -> "NewFile":
        """A file of `size` bytes that has its room and not yet its name. `spare`: where `set_aside` has put one whose room may be used."""
        straight = size >= direct.SMALLEST_BYTES and self.mode().direct
        for _ in range(_RACES):
            # FileNotFoundError: a deleter removed the empty folder between two of our steps.
            with wrapped(key), contextlib.suppress(FileNotFoundError), self._parent(key, make=True) as (parent, name):
                temporary = f"{TEMPORARY}{secrets.token_hex(8)}"
                fd = self._take(spare, parent, temporary) if spare else None
                return NewFile(key, parent, name, temporary, size, fd=fd, straight=straight)
        raise Unavailable(f"{key}: its folder kept disappearing while it was written")

    def set_aside(self, key: str, spare: str) -> None:
        """Takes a file's name away and keeps its room for `begin`; replaces what lies there. Absent is fine. The last part of `spare` begins with SPARE: no
        key names it."""
        with contextlib.suppress(Absent), wrapped(key), self._parent(key, make=False) as (parent, name):
            with self._parent(spare, make=True) as (other, new):
                os.rename(name, new, src_dir_fd=parent, dst_dir_fd=other)
            os.fsync(parent)

    def _take(self, spare: str, parent: int, temporary: str) -> int | None:
        """A descriptor of the spare file under its new name, or None if there is none that nobody else can see.

        Its old content is gone with the first piece. So it must have no second name, and nobody may have it open, a reader of the old image for one.
        """
        try:
            with self._parent(spare, make=False) as (other, name):
                os.rename(name, temporary, src_dir_fd=other, dst_dir_fd=parent)
        except OSError:
            return None
        with contextlib.suppress(OSError):
            fd = os.open(temporary, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            if _is_ours_alone(fd):
                return fd
            os.close(fd)
        os.unlink(temporary, dir_fd=parent)
        return None

    def open(self, key: str) -> int:
        """A descriptor for reading; the caller closes it. Absent only below a root that exists (B7)."""
        with wrapped(key), self._parent(key, make=False) as (parent, name):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Misconfigured(f"{self.root / key} is not a regular file")
        return fd

    def size(self, key: str) -> int:
        fd = self.open(key)
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def read(self, key: str, *, max_bytes: int) -> bytes:
        fd = self.open(key)
        try:
            size = os.fstat(fd).st_size
            if size > max_bytes:
                raise Corrupt(key, f"{size} bytes where at most {max_bytes} are allowed")
            data = bytearray(size)
            self._fill(key, fd, memoryview(data), 0)
            return bytes(data)
        finally:
            os.close(fd)

    def read_range_into(
        self, key: str, view: memoryview, *, offset: int, whole_bytes: int, seen: Seen = lambda _piece: None
    ) -> None:
        """Fills `view` from `offset` of a file that must have `whole_bytes` bytes. `seen` is shown each piece while it is hot."""
        fd = self.open(key)
        try:
            size = os.fstat(fd).st_size
            if size != whole_bytes:
                raise Corrupt(key, f"{size} bytes where {whole_bytes} were written")
            self._fill(key, fd, view, offset, seen)
        finally:
            os.close(fd)

    def delete(self, key: str) -> None:
        """Removes a file and the folders that this leaves empty; the root stays. Absent is fine."""
        with contextlib.suppress(Absent), wrapped(key):
            with self._parent(key, make=False) as (parent, name):
                os.unlink(name, dir_fd=parent)
                os.fsync(parent)
            self.remove_if_empty(key.rpartition("/")[0])

    def remove_if_empty(self, folder: str) -> None:
        """The folder and those above it that this leaves empty; the root stays."""
        parts = folder.strip("/").split("/")
        while parts != [""] and parts and self._remove_if_empty("/".join(parts)):
            parts.pop()

    def walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, size) of every regular file below `prefix`. What vanishes meanwhile is left out; temporary files are not shown."""
        folders, files = self.level(prefix)
        yield from files
        for name in folders:
            yield from self.walk(f"{prefix}{name}/")

    def settle(self, prefix: str) -> None:
        """The names in this folder, and its own, are durable. Nothing to do where it is not there."""
        parts = prefix.rstrip("/").split("/") if prefix else []
        with contextlib.suppress(Absent), wrapped(prefix):
            for depth in range(len(parts) + 1):
                with self._directory("/".join(parts[:depth])) as fd:
                    os.fsync(fd)

    def level(self, prefix: str) -> tuple[list[str], list[tuple[str, int]]]:
        """Sorted folder names, and (key, size) of the files, directly below `prefix`. Nothing for a folder that is not there."""
        folders: list[str] = []
        files: list[tuple[str, int]] = []
        for entry in self._entries(prefix):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif entry.is_file(follow_symlinks=False):
                files.append((prefix + entry.name, entry.stat(follow_symlinks=False).st_size))
        return sorted(folders), sorted(files)

    def discard_unfinished(self, prefix: str, *, older_than_seconds: float = UNFINISHED_AFTER_SECONDS) -> int:
        """Unlinks temporary files below `prefix` whose writers have long been gone; returns how many."""
        count = 0
        for entry in self._entries(prefix):
            info = entry.stat(follow_symlinks=False)
            old = time.time() - info.st_mtime > older_than_seconds
            if stat.S_ISDIR(info.st_mode) and not entry.name.startswith("."):
                count += self.discard_unfinished(f"{prefix}{entry.name}/", older_than_seconds=older_than_seconds)
            elif stat.S_ISREG(info.st_mode) and entry.name.startswith(TEMPORARY) and old:
                with contextlib.suppress(Absent), wrapped(entry.name), self._directory(prefix.rstrip("/")) as fd:
                    os.unlink(entry.name, dir_fd=fd)
                    count += 1
        return count

    def discard_spares(self, prefix: str, *, keep: Collection[str]) -> None:
        """Unlinks what `set_aside` has put directly below `prefix`, but for `keep`."""
        for entry in self._entries(prefix):
            if entry.name.startswith(SPARE) and prefix + entry.name not in keep:
                self.delete(prefix + entry.name)

    def _entries(self, prefix: str) -> list[os.DirEntry[str]]:
        with contextlib.suppress(Absent), wrapped(prefix), self._directory(prefix.rstrip("/")) as fd:
            entries = []
            with os.scandir(fd) as found:
                for entry in found:
                    with contextlib.suppress(FileNotFoundError):
                        # Looked up now and kept by the entry: later it would be relative to a closed descriptor.
                        entry.stat(follow_symlinks=False)
                        entries.append(entry)
            return entries
        return []

    def _fill(self, key: str, fd: int, view: memoryview, offset: int, seen: Seen = lambda _piece: None) -> None:
        with wrapped(key):
            done = self._direct.fill(fd, view, offset, seen)
        if done < view.nbytes:
            raise Corrupt(key, f"ends after {offset + done} bytes")

    def _open_root(self) -> int:
        try:
            return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise Misconfigured(
                f"{self.root} is not a directory: create it, or mount the volume that it should be on. It is not created by itself, because an "
                "unmounted volume would then look like a store without checkpoints"
            ) from e
        except OSError as e:
            raise as_store_error(e, str(self.root)) from e

    @contextlib.contextmanager
    def _directory(self, path: str, *, make: bool = False) -> Iterator[int]:
        """Descriptor of a folder below the root, walked without following links."""
        fd = self._open_root()
        try:
            walked = ""
            for part in path.split("/") if path else ():
                walked = f"{walked}/{part}"
                below = self._step(fd, part, walked, make=make)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def _step(self, fd: int, part: str, walked: str, *, make: bool) -> int:
        """Descriptor of the folder `part` in `fd`. With `make` it exists, and its name is durable, before anything in it is promised (B9)."""
        if make and not (walked in self._durable and _is_there(fd, part)):
            with self._making:  # nobody enters a folder before its name is durable
                if not (walked in self._durable and _is_there(fd, part)):
                    _make(fd, part)
                if len(self._durable) >= _REMEMBERED:
                    self._durable.clear()  # they are flushed once more
                self._durable.add(walked)
        return os.open(part, _DIRECTORY, dir_fd=fd)

    @contextlib.contextmanager
    def _parent(self, key: str, *, make: bool) -> Iterator[tuple[int, str]]:
        path, _, name = key.rpartition("/")
        with self._directory(path, make=make) as fd:
            yield fd, name

    def _remove_if_empty(self, path: str) -> bool:
        try:
            with self._parent(path, make=False) as (parent, name):
                os.rmdir(name, dir_fd=parent)
            return True
        except OSError:
            return False


def _make(fd: int, part: str) -> None:
    """The folder is there and its name durable. It is flushed also where it was there already: whoever made it may have died before he could."""
    try:
        os.mkdir(part, 0o700, dir_fd=fd)
    except FileExistsError:
        os.fsync(fd)
        return
    try:
        os.fsync(fd)
    except OSError:
        # Final for the name (B9): a flush that is tried again finds nothing to do and calls it a success. So it is made anew, or not at all.
        with contextlib.suppress(OSError):
            os.rmdir(part, dir_fd=fd)
        raise


def _is_there(fd: int, part: str) -> bool:
    try:
        os.stat(part, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


class NewFile:
    """A file on its way. `write` from any threads, then `keep` or nothing, then `close`, from one. Raises StoreError."""

    def __init__(
        self, key: str, parent: int, name: str, temporary: str, size: int, *, fd: int | None, straight: bool
    ) -> None:
        """`fd`: of a file that exists under the temporary name already; owned from now on. Raises OSError."""
        self._key = key
        self._name = name
        self._temporary = temporary
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = fd if fd is not None else os.open(temporary, flags, 0o600, dir_fd=parent)
        self._direct: int | None = None
        self._parent = os.dup(parent)
        try:
            if os.fstat(self._fd).st_size > size:
                os.ftruncate(self._fd, size)
            _allocate(self._fd, size)  # shows a full disk before the time is spent
            if straight:
                self._direct = direct.opened_directly(lambda flags: os.open(temporary, flags, dir_fd=parent))
        except BaseException:
            self.close()
            raise
        self._pieces = direct.PieceWriter(self._fd, self._direct)

    def write(self, view: memoryview, offset: int) -> None:
        with wrapped(self._key):
            self._pieces.write(view, offset)

    def keep(self, *, create_only: bool = False) -> None:
        """Durable under its name when it returns. AlreadyExists with `create_only` if the name is taken. An error is final for this file (B9)."""
        with wrapped(self._key):
            os.fdatasync(self._fd)
            if create_only:
                _link(self._fd, self._temporary, self._name, self._parent)
            else:
                os.rename(self._temporary, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
                self._temporary = ""
                os.fsync(self._parent)

    def close(self) -> None:
        """What was not kept is gone. Once."""
        for fd in (self._fd, self._direct):
            if fd is not None:
                os.close(fd)
        if self._temporary:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._parent)
        os.close(self._parent)


def _is_ours_alone(fd: int) -> bool:
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        return False
    try:
        fcntl.fcntl(
            fd, fcntl.F_SETSIG, signal.SIGURG
        )  # of somebody who opens it this moment: the usual signal would end the process
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)  # granted only while nobody else has it open or mapped
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def _allocate(fd: int, size: int) -> None:
    if not size:
        return
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as e:
        if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _link(fd: int, temporary: str, name: str, parent: int) -> None:
    """link() is the one step that creates a name only if it is free, on local disks and on NFS alike.

    The folder is flushed in any case: who hears that the name is taken builds on it, and whoever made it may have died before he could flush.
    """
    try:
        os.link(temporary, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
    except FileExistsError:
        # NFS repeats a request whose answer was lost; the second link then fails although the first one was ours.
        if os.fstat(fd).st_nlink != 2:
            os.fsync(parent)
            raise
    except OSError as e:
        if e.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV):
            raise Misconfigured(
                "the file system of the storage directory has no hard links, without which a commit cannot be exclusive; "
                "use another file system (ext4, xfs, NFS) or s3://"
            ) from e
        raise
    try:
        os.fsync(parent)
    except OSError:
        with contextlib.suppress(OSError):  # as in `_make`
            os.unlink(name, dir_fd=parent)
        raise


@contextlib.contextmanager
def wrapped(key: str) -> Iterator[None]:
    """The border: OSError becomes StoreError. StoreErrors pass."""
    try:
        yield
    except OSError as e:
        raise as_store_error(e, key) from e


_CLASSES: dict[int, Callable[[str], StoreError]] = {
    errno.ENOENT: Absent,
    errno.EEXIST: AlreadyExists,
    errno.ENOSPC: Full,
    errno.EDQUOT: Full,
    errno.EACCES: Denied,
    errno.EPERM: Denied,
    errno.EROFS: Misconfigured,
    errno.ELOOP: Misconfigured,
    errno.ENOTDIR: Misconfigured,
    errno.EISDIR: Misconfigured,
    errno.ENAMETOOLONG: Misconfigured,
}


def as_store_error(error: OSError, key: str) -> StoreError:
    """Anything that is not named here (EIO, ESTALE, ETIMEDOUT, …) may pass: Unavailable."""
    make = _CLASSES.get(error.errno or 0, Unavailable)
    what = "is a symbolic link, which is not followed" if error.errno == errno.ELOOP else error.strerror or str(error)
    return make(f"{key or 'the storage directory'}: {what}")
