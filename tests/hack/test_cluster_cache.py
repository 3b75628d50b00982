"""The cache: a key for everything something is made from, and artefacts that are whole or not there."""

import threading
from pathlib import Path

import pytest

from hack.cluster.cache import Cache, digest_of
from hack.cluster.errors import Interrupted
from hack.cluster.state import locked


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "a.txt").write_text("one")
    (root / "b.txt").write_text("two")
    return root


def test_the_same_tree_has_the_same_key_wherever_it_lies(tree: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    tree_key = digest_of([tree])
    tree.rename(elsewhere / "source")
    assert digest_of([elsewhere / "source"]) == tree_key


@pytest.mark.parametrize("change", ["content", "name", "new file", "executable"])
def test_a_change_gives_another_key(tree: Path, change: str) -> None:
    before = digest_of([tree])
    if change == "content":
        (tree / "b.txt").write_text("three")
    elif change == "name":
        (tree / "b.txt").rename(tree / "c.txt")
    elif change == "new file":
        (tree / "c.txt").touch()
    else:
        (tree / "b.txt").chmod(0o755)
    assert digest_of([tree]) != before


def test_what_tools_leave_in_a_tree_does_not_change_its_key(tree: Path) -> None:
    before = digest_of([tree])
    (tree / "__pycache__").mkdir()
    (tree / "__pycache__" / "a.pyc").touch()
    (tree / "holdfast.egg-info").mkdir()
    (tree / "holdfast.egg-info" / "x").touch()
    assert digest_of([tree]) == before


def test_texts_do_not_run_into_each_other() -> None:
    assert digest_of(["ab", "c"]) != digest_of(["a", "bc"])


def test_an_artefact_is_there_when_its_block_ends_well(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.making("thing", "k" * 16) as directory:
        assert directory is not None
        (directory / "file").touch()
        assert not cache.has("thing", "k" * 16)
    assert (cache.path("thing", "k" * 16) / "file").exists()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fails() -> None:
        with cache.making("thing", "k" * 16) as directory:
            assert directory is not None
            (directory / "file").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert list((tmp_path / "artefacts").iterdir()) == []


def test_what_a_killed_build_left_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "artefacts" / ".thing.part" / "half").mkdir(parents=True)
    cache = Cache(tmp_path)
    with cache.making("thing", "k" * 16) as directory:
        assert directory is not None
        assert list(directory.iterdir()) == []


def test_the_second_of_two_builders_finds_the_work_done(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    built: list[bool] = []

    def builder() -> None:
        with cache.making("thing", "k" * 16) as directory:
            built.append(directory is not None)

    threads = [threading.Thread(target=builder) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(built) == [False, False, False, True]


def test_a_builder_that_waits_for_another_can_be_stopped(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with locked(tmp_path / "locks" / "thing"):
        with pytest.raises(Interrupted), cache.making("thing", "k" * 16, give_up=lambda: True):
            pass


def test_only_the_newest_versions_stay_and_names_with_the_same_beginning_are_let_alone(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for name, key in (("thing", "a"), ("thing-other", "a"), ("thing", "b"), ("thing", "c")):
        with cache.making(name, key * 16, keep=2):
            pass
    names = sorted(path.name.split("-")[-1][0] for path in (tmp_path / "artefacts").glob("thing-?" + "?" * 15))
    assert names == ["b", "c"]
    assert cache.has("thing-other", "a" * 16)
