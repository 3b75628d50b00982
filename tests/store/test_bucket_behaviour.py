"""What every backend does alike: create-only is exclusive, contents are whole, absence is proved (B6, B7)."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast_api.errors import BadName
from holdfast_store.bucket import Bucket, ObjectInfo
from holdfast_store.errors import Absent, AlreadyExists, Corrupt


def test_what_was_created_is_read_back(bucket: Bucket) -> None:
    bucket.create("a/b/c.json", b"hello")
    assert bucket.get("a/b/c.json", max_bytes=5) == b"hello"
    assert bucket.head("a/b/c.json") == ObjectInfo("a/b/c.json", 5)


@pytest.mark.parametrize(
    "data", [b"", bytearray(b"array"), memoryview(b"xx0123yy")[2:6]], ids=["empty", "bytearray", "slice"]
)
def test_any_buffer_can_be_written(bucket: Bucket, data: bytes | bytearray | memoryview) -> None:
    bucket.create("a/one", data)
    bucket.put("a/two", data)
    assert bucket.get("a/one", max_bytes=100) == bucket.get("a/two", max_bytes=100) == bytes(data)


def test_a_second_create_is_refused_and_the_first_stays(bucket: Bucket) -> None:
    bucket.create("a/x", b"first")
    with pytest.raises(AlreadyExists):
        bucket.create("a/x", b"second")
    assert bucket.get("a/x", max_bytes=10) == b"first"


def test_of_sixteen_concurrent_creates_exactly_one_wins_and_its_content_stays(bucket: Bucket) -> None:
    def attempt(key: str, writer: int, start: threading.Barrier) -> bool:
        start.wait(60)
        try:
            bucket.create(key, b"%02d" % writer * 1000)
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        for number in range(5):
            start = threading.Barrier(16)
            won = [*pool.map(lambda w, n=number, s=start: attempt(f"race/{n}", w, s), range(16))]
            assert won.count(True) == 1
            assert bucket.get(f"race/{number}", max_bytes=2000) == b"%02d" % won.index(True) * 1000


def test_put_overwrites(bucket: Bucket) -> None:
    bucket.put("a/x", b"first")
    bucket.put("a/x", b"2")
    assert bucket.get("a/x", max_bytes=10) == b"2"


def test_readers_of_an_object_that_is_overwritten_see_one_version_or_the_other(bucket: Bucket) -> None:
    versions = [b"a" * 100_000, b"b" * 90_000]
    bucket.put("a/x", versions[0])
    stop = threading.Event()

    def write() -> None:
        for number in range(30):
            bucket.put("a/x", versions[number % 2])
        stop.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        while not stop.is_set():
            assert bucket.get("a/x", max_bytes=200_000) in versions
        writer.result()


def test_what_is_not_there_is_absent(bucket: Bucket) -> None:
    bucket.create("a/x", b"1")
    view = memoryview(bytearray(1))
    for key in ("a/y", "b/x", "a/x-y"):
        with pytest.raises(Absent):
            bucket.get(key, max_bytes=10)
        with pytest.raises(Absent):
            bucket.get_into(key, view)
        with pytest.raises(Absent):
            bucket.head(key)


def test_an_object_longer_than_allowed_is_not_read(bucket: Bucket) -> None:
    bucket.create("a/x", b"12345")
    with pytest.raises(Corrupt, match="5 bytes where at most 4"):
        bucket.get("a/x", max_bytes=4)


@pytest.mark.parametrize("length", [0, 4, 6])
def test_an_object_of_another_length_than_the_view_is_corrupt(bucket: Bucket, length: int) -> None:
    bucket.create("a/x", b"12345")
    with pytest.raises(Corrupt) as caught:
        bucket.get_into("a/x", memoryview(bytearray(length)))
    assert caught.value.key == "a/x"


def test_a_chunk_of_many_megabytes_arrives_whole(bucket: Bucket) -> None:
    data = bytes(range(256)) * (20 << 12)  # 20 MiB: more than any client's limit for a single part
    bucket.create("a/big", data)
    into = bytearray(len(data))
    bucket.get_into("a/big", memoryview(into))
    assert into == data


def test_listings_show_keys_relative_to_the_bucket_with_sizes(bucket: Bucket) -> None:
    for key in ("a/1", "a/b/2", "a/b/c/3", "ab/4", "top"):
        bucket.create(key, key.encode())
    assert sorted(o.key for o in bucket.list("")) == ["a/1", "a/b/2", "a/b/c/3", "ab/4", "top"]
    assert sorted((o.key, o.size) for o in bucket.list("a/")) == [("a/1", 3), ("a/b/2", 5), ("a/b/c/3", 7)]
    assert list(bucket.list("none/")) == []


def test_a_level_shows_its_folders_and_its_own_objects(bucket: Bucket) -> None:
    for key in ("a/1", "a/b/2", "a/c/d/3", "ab/4", "top"):
        bucket.create(key, key.encode())
    level = bucket.list_level("a/")
    assert level.folders == ("b", "c")
    assert level.objects == (ObjectInfo("a/1", 3),)
    assert bucket.list_folders("") == ["a", "ab"]
    assert bucket.list_folders("none/") == []


def test_deleting_is_done_once_and_may_be_repeated(bucket: Bucket) -> None:
    bucket.create("a/x", b"1")
    bucket.create("a/y", b"2")
    bucket.delete(["a/x", "a/never"])
    bucket.delete(["a/x"])
    bucket.delete([])
    assert [o.key for o in bucket.list("")] == ["a/y"]
    bucket.create("a/x", b"again")


HOSTILE = [
    "",
    "/a",
    "a/",
    "a//b",
    "../a",
    "a/../b",
    "a/./b",
    ".new-x",
    "a/.hidden",
    "a\\b",
    "a\0b",
    "a b",
    "é",
    "a" * 300,
]


@pytest.mark.parametrize("key", [*HOSTILE, "a/" * 600 + "b"])
def test_keys_that_could_lead_elsewhere_are_refused(bucket: Bucket, key: str) -> None:
    for call in (
        lambda: bucket.create(key, b""),
        lambda: bucket.get(key, max_bytes=1),
        lambda: bucket.head(key),
        lambda: bucket.delete([key]),
    ):
        with pytest.raises(BadName):
            call()


def test_a_prefix_ends_in_a_slash_so_that_one_job_never_lists_another(bucket: Bucket) -> None:
    with pytest.raises(ValueError, match="must end"):
        list(bucket.list("job-1"))
    with pytest.raises(BadName):
        list(bucket.list("../"))
