"""J5: the memory of a slot is there before it is handed out; where it cannot be had, that is an error and no SIGBUS later."""

import errno
import os
from pathlib import Path

import pytest

from holdfast_agent import prefault

MIB = 1 << 20
SHARED = Path("/dev/shm")


@pytest.fixture
def file(tmp_path):
    folder = SHARED if os.access(SHARED, os.W_OK) else tmp_path
    path = folder / f"holdfast-test-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    yield fd
    os.close(fd)
    path.unlink()


def blocks(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def test_every_page_is_there_and_what_was_in_the_file_stays(file, monkeypatch):
    monkeypatch.setattr(prefault, "RANGE_BYTES", MIB)  # several ranges, several threads
    os.write(file, b"x" * MIB)
    prefault.allocate(file, MIB, 8 * MIB)
    assert prefault.touch(file, MIB, 8 * MIB)
    assert blocks(file) == 8 * MIB
    assert os.pread(file, 2, MIB - 1) == b"x\0"


def test_touching_alone_gets_the_pages_too(file):
    os.ftruncate(file, 4 * MIB)
    assert blocks(file) == 0
    assert prefault.touch(file, 0, 4 * MIB)
    assert blocks(file) == 4 * MIB


def test_what_cannot_be_reserved_leaves_the_file_as_it_was(file):
    os.write(file, b"x" * MIB)
    too_much = 1 << 45
    with pytest.raises(OSError):
        prefault.allocate(file, MIB, too_much)
    assert os.fstat(file).st_size == MIB
    assert blocks(file) == MIB


def test_a_file_system_that_reserves_a_part_and_then_refuses_gets_it_back(file, monkeypatch):
    def partly(fd: int, start: int, length: int) -> None:
        os.ftruncate(fd, start + length // 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    os.write(file, b"x" * MIB)
    monkeypatch.setattr(os, "posix_fallocate", partly)
    with pytest.raises(OSError, match="No space"):
        prefault.allocate(file, MIB, 9 * MIB)
    assert os.fstat(file).st_size == MIB
