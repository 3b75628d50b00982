"""A directory as a bucket: whole and durable files (B9), shared by processes, nothing outside of it (S6)."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from holdfast_api.config import StorageConfig
from holdfast_store.errors import Absent, AlreadyExists, Corrupt, Denied, Full, Misconfigured, Unavailable
from holdfast_store.file import FileBucket
from holdfast_store.folders import TEMPORARY, Folder
from holdfast_store.opening import open_bucket


@pytest.fixture
def files(tmp_path: Path) -> FileBucket:
    return FileBucket(tmp_path)


def names_below(path: Path) -> list[str]:
    return sorted(p.name for p in path.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "uri", ["file://relative", "file:relative", "file://host/dir", "file:///x?y", "gs://b/p", "s4://b", "", "/dir"]
)
def test_a_uri_that_is_not_understood_is_refused_with_the_remedy(uri: str) -> None:
    with pytest.raises(Misconfigured, match=r"uri|write"):
        open_bucket(StorageConfig(uri), {})


def test_a_directory_that_is_not_there_is_no_empty_store(tmp_path: Path) -> None:
    missing = FileBucket(tmp_path / "not-mounted")
    for call in (
        missing.check,
        lambda: missing.get("a", max_bytes=1),
        lambda: list(missing.list("")),
        lambda: missing.create("a", b""),
    ):
        with pytest.raises(Misconfigured, match="mount the volume"):
            call()
    assert not (tmp_path / "not-mounted").exists()


def test_a_directory_that_disappears_later_makes_nothing_absent(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir()
    bucket = FileBucket(root)
    bucket.create("a/x", b"1")
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(Misconfigured):
        bucket.head("a/x")


def test_a_symbolic_link_below_the_root_is_never_followed(files: FileBucket, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "file").symlink_to(outside / "secret")
    for key in ("link/secret", "file"):
        with pytest.raises(Misconfigured, match=r"not followed|Not a directory"):
            files.get(key, max_bytes=100)
    with pytest.raises((Misconfigured, AlreadyExists)):
        files.create("link/new", b"x")
    with pytest.raises(AlreadyExists):
        files.create("file", b"x")
    files.put("file", b"mine")
    with pytest.raises(Misconfigured):
        files.delete(["link/secret"])
    assert (outside / "secret").read_bytes() == b"secret"
    assert names_below(outside) == ["secret"]
    assert [o.key for o in files.list("")] == ["file"]


def test_a_folder_or_a_pipe_in_the_place_of_an_object_is_named_and_not_read(files: FileBucket, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(Misconfigured):
        files.get("folder", max_bytes=10)


def test_files_and_folders_are_for_the_owner_alone(files: FileBucket, tmp_path: Path) -> None:
    files.create("a/b/x", b"1")
    assert (tmp_path / "a/b/x").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_an_fsync_error_is_final_for_that_file_and_nothing_becomes_visible(
    files: FileBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.create("a/other", b"1")
    failed = []

    def broken(fd: int) -> None:
        failed.append(fd)
        raise OSError(errno.EIO, "ordered fault")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(Unavailable):
        files.create("a/x", b"1")
    assert len(failed) == 1  # not tried again on the same file: the kernel may have dropped the pages
    monkeypatch.undo()
    assert names_below(tmp_path) == ["other"]
    files.create("a/x", b"1")


def test_an_fsync_error_of_the_folder_is_final_for_the_name_that_was_given_in_it(
    files: FileBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B9: a name that stayed would be met by the next try, found to be right, and called durable without any flush having succeeded."""
    files.create("a/other", b"1")
    real, named = os.fsync, []

    def broken(fd: int) -> None:
        if (tmp_path / "a/x").exists():
            named.append(fd)
            raise OSError(errno.EIO, "ordered fault")
        real(fd)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(Unavailable):
        files.create("a/x", b"1")
    assert len(named) == 1
    monkeypatch.undo()
    assert names_below(tmp_path) == ["other"]
    files.create("a/x", b"1")


def test_what_a_listing_has_shown_is_made_to_last(
    files: FileBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B9: the folder and those above it. Where there is none nothing is made."""
    files.create("a/b/x", b"1")
    flushed, real = set(), os.fsync

    def noted(fd: int) -> None:
        flushed.add(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", noted)
    files.settle("a/b/")
    assert flushed == {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a/b")}
    files.settle("a/c/d/")
    assert not (tmp_path / "a/c").exists()


def test_a_folder_that_cannot_be_flushed_is_not_called_lasting(
    files: FileBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_fd: int) -> None:
        raise OSError(errno.EIO, "ordered fault")

    files.create("a/b/x", b"1")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(Unavailable):
        files.settle("a/b/")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, Full),
        (errno.EDQUOT, Full),
        (errno.EACCES, Denied),
        (errno.EROFS, Misconfigured),
        (errno.ESTALE, Unavailable),
    ],
)
def test_system_errors_become_what_a_caller_can_act_on(
    files: FileBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def broken(*_: object) -> int:
        raise OSError(number, "ordered fault")

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(kind, match="a/x"):
        files.create("a/x", b"1")
    assert names_below(tmp_path) == []


def test_a_file_system_without_hard_links_is_refused_because_commits_could_not_be_exclusive(
    files: FileBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP):

        def broken(*_: object, n: int = number, **__: object) -> None:
            raise OSError(n, "ordered fault")

        monkeypatch.setattr(os, "link", broken)
        with pytest.raises(Misconfigured, match="hard links"):
            files.create("a/x", b"1")


def test_a_link_whose_answer_was_lost_counts_as_ours(files: FileBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats the request; the second link(2) says EEXIST although the first was ours."""
    real = os.link

    def twice(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)  # type: ignore[arg-type]
        real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", twice)
    files.create("a/x", b"ours")
    monkeypatch.undo()
    assert files.get("a/x", max_bytes=10) == b"ours"


def test_a_truncated_file_is_corrupt_and_not_short(files: FileBucket, tmp_path: Path) -> None:
    files.create("a/x", b"12345678")
    os.truncate(tmp_path / "a/x", 5)
    with pytest.raises(Corrupt):
        files.get_into("a/x", memoryview(bytearray(8)))


WRITER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from holdfast_store.errors import AlreadyExists
    from holdfast_store.file import FileBucket
    bucket, me = FileBucket(Path(sys.argv[1])), sys.argv[2]
    print("ready", flush=True)
    sys.stdin.readline()
    won = 0
    for n in range(60):
        try:
            bucket.create(f"race/{n}", me.encode() * 500)
            won += 1
        except AlreadyExists:
            pass
        if n % 10 == 0:
            bucket.create(f"short/{me}/{n}", b"x")
            bucket.delete([f"short/{me}/{n}"])
    print(won)
""")


def test_of_several_processes_exactly_one_creates_each_object(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    wins = [int(process.communicate("go\n", timeout=120)[0]) for process in processes]
    assert sum(wins) == 60
    bucket = FileBucket(tmp_path)
    for number in range(60):
        content = bucket.get(f"race/{number}", max_bytes=1000)
        assert len(content) == 500
        assert len(set(content)) == 1
    assert not [name for name in names_below(tmp_path) if name.startswith(TEMPORARY)]


KILLED = textwrap.dedent("""
    import sys
    from pathlib import Path
    from holdfast_store.file import FileBucket
    bucket = FileBucket(Path(sys.argv[1]))
    print("ready", flush=True)
    for n in range(100_000):
        bucket.create(f"a/{n:06d}", b"%06d" % n * 50_000)
""")


def test_a_writer_that_is_killed_leaves_whole_objects_and_nothing_else_that_can_be_seen(tmp_path: Path) -> None:
    bucket = FileBucket(tmp_path)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.15)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        for info in bucket.list("a/"):
            assert bucket.get(info.key, max_bytes=1 << 20) == info.key[2:].encode() * 50_000
        bucket.delete([info.key for info in bucket.list("a/")])


def test_what_dead_writers_left_is_discarded_after_a_day_and_not_before(tmp_path: Path) -> None:
    bucket, folder = FileBucket(tmp_path), Folder(tmp_path)
    bucket.create("a/b/x", b"1")
    left = tmp_path / "a/b" / f"{TEMPORARY}0123"
    left.write_bytes(b"half")
    assert [o.key for o in bucket.list("")] == ["a/b/x"]
    assert folder.discard_unfinished("") == 0
    os.utime(left, (time.time() - 90_000,) * 2)
    assert bucket.discard_unfinished("") == 1
    assert names_below(tmp_path) == ["x"]


def test_folders_that_become_empty_go_and_come_back(files: FileBucket, tmp_path: Path) -> None:
    files.create("a/b/x", b"1")
    files.create("a/y", b"1")
    files.delete(["a/b/x"])
    assert files.list_folders("a/") == []
    assert (tmp_path / "a").exists()
    files.delete(["a/y"])
    assert os.listdir(tmp_path) == []
    with pytest.raises(Absent):
        files.head("a/y")
