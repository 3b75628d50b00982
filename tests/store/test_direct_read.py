"""A range of a file is the same bytes whichever way it is read: directly, from the page cache, or where direct reads are refused."""

import errno
import fcntl
import mmap
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast_store import direct_read
from holdfast_store.direct import ALIGN
from holdfast_store.direct_read import WORTH_BYTES, DirectReader
from holdfast_store.errors import Corrupt
from holdfast_store.folders import Folder

SIZE = 4 * WORTH_BYTES + ALIGN + 77
CONTENT = secrets.token_bytes(SIZE)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """On a disk, and out of the page cache."""
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    yield fd
    os.close(fd)


@pytest.fixture
def memory() -> Iterator[memoryview]:
    """Page-aligned, as a slot is."""
    mapped = mmap.mmap(-1, 2 * SIZE)
    view = memoryview(mapped)
    yield view
    view.release()
    mapped.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """(direct, bytes) of every read."""
    seen: list[tuple[bool, int]] = []
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        got = real(fd, buffers, offset, flags)
        seen.append((bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT), got))
        return got

    monkeypatch.setattr(os, "preadv", preadv)
    return seen


@pytest.mark.parametrize("offset", [0, ALIGN, 512, 1, WORTH_BYTES])
@pytest.mark.parametrize("length", [0, 1, 4095, WORTH_BYTES, WORTH_BYTES + 1, 3 * WORTH_BYTES])
@pytest.mark.parametrize("shift", [0, 1])
def test_every_range_is_what_the_file_holds(fd: int, memory: memoryview, offset: int, length: int, shift: int) -> None:
    view = memory[shift : shift + length]
    assert DirectReader().fill(fd, view, offset) == length
    assert view == CONTENT[offset : offset + length]
    assert bytes(memory[shift + length : shift + length + 8192]) == bytes(8192), "nothing beyond the view is touched"


def test_a_large_range_past_the_page_cache(fd: int, memory: memoryview, reads: list[tuple[bool, int]]) -> None:
    reader = DirectReader()
    assert reader.fill(fd, memory[:SIZE], 0) == SIZE
    assert memory[:SIZE] == CONTENT
    if reader.refused:
        pytest.skip("the file system of temporary files has no direct reads")
    assert sum(n for direct, n in reads if not direct) == 77, "only the unaligned end goes through the cache"
    assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT


@pytest.mark.parametrize("stage", ["flag", "read"])
def test_a_file_system_that_refuses_is_read_as_usual_and_not_asked_again(
    fd: int, memory: memoryview, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """overlayfs and some network file systems; the flag may be accepted and the read refused."""
    asked = []
    set_flags, preadv = fcntl.fcntl, os.preadv

    def refuse_flag(fd: int, what: int, value: int = 0) -> int:
        if what == fcntl.F_SETFL and value & os.O_DIRECT:
            asked.append(1)
            if stage == "flag":
                raise OSError(errno.EINVAL, "Invalid argument")
        return set_flags(fd, what, value)

    def refuse_read(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if set_flags(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(direct_read.fcntl, "fcntl", refuse_flag)
    monkeypatch.setattr(os, "preadv", refuse_read)
    reader = DirectReader()
    for _ in range(2):
        assert reader.fill(fd, memory[:SIZE], 0) == SIZE
        assert memory[:SIZE] == CONTENT
    assert asked == [1]


@pytest.mark.parametrize("shift", [0, 1])
def test_what_is_read_is_shown_piece_by_piece_while_the_rest_is_still_to_come(
    fd: int, memory: memoryview, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C3: whoever verifies is not left with everything to do when the disk has done its part. `shift`: not aligned, so read as usual."""
    monkeypatch.setattr(direct_read, "PIECE_BYTES", WORTH_BYTES)
    events: list[str] = []
    real = os.preadv

    def preadv(*arguments: Any) -> int:
        events.append("read")
        return real(*arguments)

    monkeypatch.setattr(os, "preadv", preadv)
    shown = bytearray()

    def seen(piece: memoryview) -> None:
        events.append("seen")
        shown.extend(piece)

    assert DirectReader().fill(fd, memory[shift : shift + SIZE], 0, seen) == SIZE
    assert shown == CONTENT
    assert events[:6] == ["read", "seen"] * 3


def test_a_refusal_halfway_shows_no_byte_twice(fd: int, memory: memoryview, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_read, "PIECE_BYTES", WORTH_BYTES)
    real, direct = os.preadv, []

    def refuse_second(fd: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            direct.append(offset)
            if len(direct) == 2:
                raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", refuse_second)
    shown = bytearray()
    reader = DirectReader()
    assert reader.fill(fd, memory[:SIZE], 0, shown.extend) == SIZE
    if not direct:
        pytest.skip("the file system of temporary files has no direct reads")
    assert reader.refused
    assert shown == CONTENT
    assert memory[:SIZE] == CONTENT


def test_an_input_output_error_is_no_refusal(fd: int, memory: memoryview, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    reader = DirectReader()
    with pytest.raises(OSError, match="Input/output"):
        reader.fill(fd, memory[:SIZE], 0)
    assert not reader.refused


def test_a_file_that_is_shorter_than_it_should_be_is_corrupt_and_says_where_it_ends(
    tmp_path: Path, memory: memoryview
) -> None:
    """Truncated between the look at its size and the read."""
    (tmp_path / "a").write_bytes(CONTENT)
    folder = Folder(tmp_path)
    with pytest.raises(Corrupt, match=f"ends after {SIZE}"):
        folder.read_range_into("a", memory[: SIZE + ALIGN], offset=0, whole_bytes=SIZE)
    with pytest.raises(Corrupt, match="were written"):
        folder.read_range_into("a", memory[:SIZE], offset=0, whole_bytes=SIZE + 1)
