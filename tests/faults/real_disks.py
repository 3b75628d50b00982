"""Small file systems of their own that are really full, really read-only, or really broken: tmpfs, and ext4 on a loop device. They need root and mount(2)."""

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TMPFS, EXT4 = "tmpfs", "ext4"


@dataclass
class Disk:
    """Mounted at `root`."""

    kind: str
    root: Path
    image: Path
    """Of the loop device's file; tmpfs has none."""

    def fill(self, *, leave: int = 0) -> None:
        """Takes all room but `leave` bytes, by writing until the kernel says that there is no more."""
        os.sync()  # room that was given back counts from here on
        with open(self._ballast, "ab", buffering=0) as file:
            for count in (1 << 16, 4096, 512):
                try:
                    while True:
                        file.write(bytes(count))
                        os.fsync(file.fileno())
                except OSError as e:
                    if e.errno != errno.ENOSPC:
                        raise
            file.truncate(max(0, os.fstat(file.fileno()).st_size - leave))
            os.fsync(file.fileno())

    def give_room(self, count: int | None = None) -> None:
        """So many bytes of it, or all."""
        if count is None:
            self._ballast.unlink(missing_ok=True)
        else:
            os.truncate(self._ballast, self._ballast.stat().st_size - count)
        os.sync()

    @property
    def free(self) -> int:
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def read_only(self) -> bool:
        """mount -o remount,ro: refused while somebody has a file open for writing. Whether it was done."""
        return _run("mount", "-o", "remount,ro", self.root) == ""

    def writable(self) -> None:
        assert _run("mount", "-o", "remount,rw", self.root) == ""

    def fail(self) -> None:
        """An error inside of ext4, whereupon it makes itself read-only at once, also for files that are open for writing (errors=remount-ro)."""
        device = subprocess.run(
            ["findmnt", "-no", "SOURCE", self.root], capture_output=True, text=True, check=True
        ).stdout.strip()
        Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("1\n")

    def mend(self) -> None:
        """After `fail`: checked and mounted anew. Nobody may have a file open there."""
        assert _run("umount", self.root) == ""
        subprocess.run(["e2fsck", "-fy", self.image], capture_output=True, check=False)
        assert self._mount() == ""

    @property
    def _ballast(self) -> Path:
        return self.root / "ballast"

    def _mount(self) -> str:
        return _run("mount", "-o", "loop,errors=remount-ro", self.image, self.root)


@contextlib.contextmanager
def mounted(root: Path, kind: str, mebibytes: int = 8) -> Iterator[Disk]:
    """A new file system at `root`. Skips, with the reason, where none can be mounted."""
    root.mkdir(parents=True, exist_ok=True)
    disk = Disk(kind, root, root.with_name(f"{root.name}.img"))
    if kind == TMPFS:
        problem = _run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", root)
    else:
        with disk.image.open("wb") as file:
            file.truncate(mebibytes << 20)
        problem = _run("mkfs.ext4", "-q", "-m", "0", disk.image) or disk._mount()
    if problem:
        pytest.skip(f"no file system can be mounted here: {problem}")
    try:
        yield disk
    finally:
        assert _run("umount", root) == "" or _run("umount", "--lazy", root) == ""


def _run(*command: str | Path) -> str:
    """What it had to say if it failed."""
    program = shutil.which(str(command[0])) or shutil.which(str(command[0]), path="/usr/sbin:/sbin")
    if program is None:
        return f"{command[0]} is not installed"
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"{command[0]}: {done.stderr.strip()[:200] or done.returncode}"
