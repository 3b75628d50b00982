"""Large files: past the page cache where the file system means it (J5), into room that is there already, durable as ever (B9)."""

import errno
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast_store import direct
from holdfast_store.errors import Full, Unavailable
from holdfast_store.folders import SPARE, TEMPORARY, Folder

MIB = 1 << 20


@pytest.mark.parametrize(
    ("kind", "refusal", "straight"),
    [
        ("ext4", "", True),
        ("xfs", "", True),
        ("", "", True),
        ("overlay", "", True),
        ("ext4", "Invalid argument", False),
        ("tmpfs", "", False),
        ("nfs4", "", False),
        ("fuse.sshfs", "", False),
    ],
)
def test_a_file_system_that_accepts_the_flag_without_meaning_it_is_written_buffered(
    kind: str, refusal: str, straight: bool
) -> None:
    mode = direct.choose(kind, refusal)
    assert mode.direct is straight
    assert straight or mode.why in str(mode)


def test_the_probe_leaves_nothing_behind_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)
    mode = folder.mode()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(direct, "probe", None)
    assert folder.mode() is mode


def test_shared_memory_is_not_taken_for_a_disk() -> None:
    path = Path("/dev/shm")
    if not path.is_dir():
        pytest.skip("there is no /dev/shm here")
    assert not direct.probe(path).direct


def image(size: int) -> mmap.mmap:
    """Page-aligned, as the arena is."""
    memory = mmap.mmap(-1, size)
    memory.write(os.urandom(size))
    return memory


@pytest.mark.parametrize("size", [MIB, 3 * MIB + 4096, 3 * MIB + 100, MIB + 4095, 5000, 0])
def test_pieces_in_any_order_from_many_threads_make_the_file_whatever_its_length(tmp_path: Path, size: int) -> None:
    folder, memory = Folder(tmp_path), image(max(size, 1))
    view = memoryview(memory)[:size]
    file = folder.begin("a/x", size)
    with ThreadPoolExecutor(4) as pool:
        for at in reversed(range(0, size, MIB)):
            pool.submit(file.write, view[at : at + MIB], at).add_done_callback(lambda f: f.result())
    assert not (tmp_path / "a/x").exists()  # no name before it is whole
    file.keep()
    file.close()
    assert (tmp_path / "a/x").read_bytes() == bytes(view)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x"]


def test_what_does_not_begin_on_a_page_is_written_all_the_same(tmp_path: Path) -> None:
    data = memoryview(image(2 * MIB + 4096))[7 : 7 + 2 * MIB]
    Folder(tmp_path).write("x", data, create_only=True)
    assert (tmp_path / "x").read_bytes() == bytes(data)


def test_large_pieces_go_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)
    if not folder.mode().direct:
        pytest.skip(f"no direct writes here: {folder.mode()}")
    straight, real = [], os.open

    def opened(path: object, flags: int, *args: object, **named: object) -> int:
        straight.append(bool(flags & os.O_DIRECT))
        return real(path, flags, *args, **named)

    wrote = {True: 0, False: 0}
    write = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        is_direct = bool(os.readlink(f"/proc/self/fd/{fd}") and _flags(fd) & os.O_DIRECT)
        done = write(fd, data, offset)
        wrote[is_direct] += done
        return done

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "pwrite", pwrite)
    folder.write("x", memoryview(image(2 * MIB + 100))[: 2 * MIB + 100], create_only=False)
    assert wrote == {True: 2 * MIB, False: 100}
    straight.clear()
    folder.write("small", b"1", create_only=False)
    assert not any(straight)


def _flags(fd: int) -> int:
    return int(Path(f"/proc/self/fdinfo/{fd}").read_text().split("flags:")[1].split()[0], 8)


def test_a_file_system_that_changes_its_mind_is_written_buffered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    folder.mode()
    write = os.pwrite

    def refuses(fd: int, data: memoryview, offset: int) -> int:
        if _flags(fd) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "ordered refusal")
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", refuses)
    data = memoryview(image(2 * MIB))
    folder.write("x", data, create_only=False)
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == bytes(data)


def test_a_direct_write_that_stops_at_an_odd_place_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[: max(1, len(data) // 3)], at))
    data = memoryview(image(2 * MIB))
    Folder(tmp_path).write("x", data, create_only=False)
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == bytes(data)


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, Unavailable), (errno.ENOSPC, Full)])
@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "posix_fallocate"])
def test_an_error_is_final_for_the_file_and_nothing_of_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[Exception]
) -> None:
    folder = Folder(tmp_path)
    folder.mode()

    def broken(*_: object) -> int:
        raise OSError(number, "ordered fault")

    monkeypatch.setattr(os, call, broken)
    with pytest.raises(kind):
        folder.write("a/x", memoryview(image(2 * MIB)), create_only=False)
    assert list((tmp_path / "a").iterdir()) == []


# ---- spare room


def spare(folder: Folder, tmp_path: Path, content: bytes = b"old" * MIB) -> int:
    """The inode of a file that was set aside."""
    folder.write("old", content, create_only=False)
    inode = (tmp_path / "old").stat().st_ino
    folder.set_aside("old", f"{SPARE}0")
    assert not (tmp_path / "old").exists()
    return inode


def written(folder: Folder, tmp_path: Path, content: bytes) -> int:
    file = folder.begin("new", len(content), spare=f"{SPARE}0")
    file.write(memoryview(content), 0)
    file.keep()
    file.close()
    assert (tmp_path / "new").read_bytes() == content
    return (tmp_path / "new").stat().st_ino


@pytest.mark.parametrize("size", [3 * MIB, MIB, 5 * MIB, 10])
def test_room_that_was_set_aside_is_used_whatever_the_new_length(tmp_path: Path, size: int) -> None:
    folder = Folder(tmp_path)
    inode = spare(folder, tmp_path)
    assert written(folder, tmp_path, os.urandom(size)) == inode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new"]


def test_without_spare_room_a_new_file_is_made(tmp_path: Path) -> None:
    written(Folder(tmp_path), tmp_path, b"x" * MIB)


def test_a_file_that_somebody_still_reads_is_not_written_over(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("old", b"old" * MIB, create_only=False)
    with (tmp_path / "old").open("rb") as reader:
        folder.set_aside("old", f"{SPARE}0")
        written(folder, tmp_path, b"new" * MIB)
        assert reader.read() == b"old" * MIB


def test_a_file_that_somebody_has_mapped_is_not_written_over(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("old", b"old" * MIB, create_only=False)
    with (tmp_path / "old").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    folder.set_aside("old", f"{SPARE}0")
    written(folder, tmp_path, b"new" * MIB)
    assert mapped[:3] == b"old"


def test_a_file_with_a_second_name_is_not_written_over(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("old", b"old" * MIB, create_only=False)
    os.link(tmp_path / "old", tmp_path / "mine")
    folder.set_aside("old", f"{SPARE}0")
    written(folder, tmp_path, b"new" * MIB)
    assert (tmp_path / "mine").read_bytes() == b"old" * MIB


def test_spare_room_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """S6."""
    folder, outside = Folder(tmp_path), tmp_path / "outside"
    outside.write_bytes(b"mine" * MIB)
    (tmp_path / f"{SPARE}0").symlink_to(outside)
    written(folder, tmp_path, b"new" * MIB)
    assert outside.read_bytes() == b"mine" * MIB


def test_a_writer_that_died_over_spare_room_leaves_nothing_with_a_name(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    spare(folder, tmp_path)
    file = folder.begin("new", 2 * MIB, spare=f"{SPARE}0")
    file.write(memoryview(bytes(MIB)), 0)
    assert [p.name.startswith(TEMPORARY) for p in tmp_path.iterdir()] == [True]
    assert folder.discard_unfinished("", older_than_seconds=-1) == 1
    file.close()


def test_spare_room_is_given_back_where_it_is_not_wanted(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    spare(folder, tmp_path)
    folder.discard_spares("", keep=[f"{SPARE}0"])
    assert (tmp_path / f"{SPARE}0").exists()
    folder.discard_spares("", keep=[])
    assert list(tmp_path.iterdir()) == []
