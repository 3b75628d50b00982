"""Fault scenarios 12, 13 on file systems that are really full, read-only or broken: nothing is injected here, the kernel says what it says.

Training goes on or a message names what to change; the checkpoint that was there stays whole; saves succeed again when the cause is gone.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from holdfast_store.errors import Full, Misconfigured, StoreError, Unavailable
from holdfast_store.file import FileBucket
from holdfast_store.folders import NewFile
from holdfast_store.job import JobStore
from tests.agent.conftest import Gang, eventually
from tests.faults import saving
from tests.faults.history import History
from tests.faults.real_disks import EXT4, TMPFS, Disk, mounted
from tests.faults.saving import NEW, OLD, Place
from tests.faults.test_faults_of_the_disk import start_elsewhere

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Callable[[Path, str], Disk]]:
    with ExitStack() as stack:
        yield lambda root, kind: stack.enter_context(mounted(root, kind))


@pytest.fixture
def on_disk(tmp_path: Path, disks: Callable[[Path, str], Disk]) -> Callable[[str, str], tuple[Place, Disk]]:
    """A job with one checkpoint, whose store or node directory is a disk of its own."""

    def make(folder: str, kind: str) -> tuple[Place, Disk]:
        place = Place(tmp_path / "job")
        disk = disks(place.root / folder, kind)
        saving.first_save(place.make())
        return place, disk

    return make


def at_the(monkeypatch: pytest.MonkeyPatch, of: type, method: str, number: int, do: Callable[[], object]) -> None:
    """Before the call of this number, from now on."""
    real, calls = getattr(of, method), iter(range(1, 1_000_000))

    def call(self: object, *arguments: object, **named: object) -> object:
        if next(calls) == number:
            do()
        return real(self, *arguments, **named)

    monkeypatch.setattr(of, method, call)


def refused(place: Place, *kinds: type[StoreError]) -> None:
    with pytest.raises(kinds):
        saving.second_save(str(place.root))


def old_stays_and_saves_succeed_again(place: Place, mend: Callable[[], None]) -> None:
    assert start_elsewhere(place).boundary == OLD
    mend()
    resumed = saving.next_start(place)
    assert resumed.boundary == OLD
    saving.goes_on(place, resumed)


@pytest.mark.parametrize("kind", [EXT4, TMPFS])
@pytest.mark.parametrize("leave", [0, 12 << 10, 20 << 10])
def test_a_store_whose_disk_is_full_refuses_the_save_and_keeps_the_old_checkpoint(
    on_disk: Callable[[str, str], tuple[Place, Disk]], kind: str, leave: int
) -> None:
    place, disk = on_disk("store", kind)
    disk.fill(leave=leave)
    refused(place, Full)
    old_stays_and_saves_succeed_again(place, disk.give_room)


@pytest.mark.parametrize("kind", [EXT4, TMPFS])
@pytest.mark.parametrize(("of", "method"), [(JobStore, "create_manifest"), (JobStore, "commit")])
def test_a_disk_that_fills_up_before_the_records_are_written_leaves_no_commit(
    on_disk: Callable[[str, str], tuple[Place, Disk]], monkeypatch: pytest.MonkeyPatch, kind: str, of: type, method: str
) -> None:
    place, disk = on_disk("store", kind)
    at_the(monkeypatch, of, method, 1, disk.fill)
    refused(place, Full)
    old_stays_and_saves_succeed_again(place, disk.give_room)


@pytest.mark.parametrize("number", [1, 4, 6])
def test_a_store_whose_disk_turns_read_only_in_mid_save_refuses_it_and_keeps_the_old_checkpoint(
    on_disk: Callable[[str, str], tuple[Place, Disk]], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    place, disk = on_disk("store", EXT4)
    at_the(monkeypatch, FileBucket, "create", number, disk.fail)
    refused(place, Misconfigured, Unavailable)
    old_stays_and_saves_succeed_again(place, disk.mend)


def test_a_store_whose_disk_turns_read_only_at_the_commit_has_no_commit(
    on_disk: Callable[[str, str], tuple[Place, Disk]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, disk = on_disk("store", EXT4)
    at_the(monkeypatch, JobStore, "commit", 1, disk.fail)
    refused(place, Misconfigured, Unavailable)
    old_stays_and_saves_succeed_again(place, disk.mend)


@pytest.mark.parametrize("kind", [EXT4, TMPFS])
def test_a_node_whose_disk_is_full_costs_the_nodes_copy_alone(
    on_disk: Callable[[str, str], tuple[Place, Disk]], kind: str
) -> None:
    place, disk = on_disk("node", kind)
    disk.give_room()
    for spare in place.node_folder.rglob(".spare-*"):
        spare.unlink()
    disk.fill(leave=8 << 10)
    saving.second_save(str(place.root))
    assert not (place.marks / f"node-{NEW}").exists() or saving.whole_on_node(place, NEW)
    assert start_elsewhere(place).boundary == NEW
    disk.give_room()
    saving.goes_on(place, saving.next_start(place))
    assert saving.whole_on_node(place, saving.NEXT)


def test_a_node_whose_disk_turns_read_only_in_mid_save_costs_the_nodes_copy_alone(
    on_disk: Callable[[str, str], tuple[Place, Disk]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, disk = on_disk("node", EXT4)
    at_the(monkeypatch, NewFile, "write", 3, disk.fail)
    saving.second_save(str(place.root))
    assert not (place.marks / f"node-{NEW}").exists()
    assert start_elsewhere(place).boundary == NEW
    disk.mend()
    saving.goes_on(place, saving.next_start(place))
    assert saving.whole_on_node(place, saving.NEXT)


# ---- with real agents, in training


def started(g: Gang) -> History:
    g.start().begin()
    g.wait_for_commit(10)
    return History(g)


def trains_on(g: Gang, steps: int = 60) -> int:
    """The boundary that it has reached."""
    before = g.pods[0].report().boundary
    eventually(lambda: g.pods[0].report().boundary >= before + steps, f"training goes on; {g.pods[0].words()}")
    return before + steps


@pytest.fixture
def trained(gang: Callable[..., Gang]) -> Gang:
    return gang(workers=1, trainer=("1000000", "--step-seconds", "0.02"), config={"chunk_bytes": 4096})


@pytest.mark.parametrize("kind", [EXT4, TMPFS])
def test_training_goes_on_while_the_stores_disk_is_full_and_says_what_to_do(
    trained: Gang, disks: Callable[[Path, str], Disk], kind: str
) -> None:
    disk = disks(trained.bucket, kind)
    history = started(trained)
    disk.fill(leave=6 << 10)
    pod = trained.pods[0]
    eventually(lambda: pod.report().saving is not None, "the report says that nothing is saved")
    assert "free space or raise the quota" in pod.report().saving.message
    history.look()
    stored = history.newest
    trains_on(trained)
    assert history.newest == stored
    disk.give_room()
    trained.wait_for_commit(trains_on(trained, 1))
    eventually(lambda: pod.report().saving is None, "the trouble is over")
    history.look()


def test_a_save_that_did_not_fit_gives_back_the_room_that_it_took(
    gang: Callable[..., Gang], disks: Callable[[Path, str], Disk]
) -> None:
    """Else what is left of saves that failed takes all room that somebody makes, and training is never saved again."""
    g = gang(workers=1, processes=4, trainer=("1000000", "--step-seconds", "0.02"), config={"chunk_bytes": 4096})
    disk = disks(g.bucket, EXT4)
    history = started(g)
    g.wait_for_commit(30)  # what comes after the first one leans on it, and is of one size
    newest = sorted(g.bucket.glob("ns/job-*/checkpoints/*/*/commit.json"))[-1].parent
    whole = sum(p.stat().st_blocks * 512 for p in newest.rglob("*"))
    disk.fill()
    pod = g.pods[0]
    eventually(lambda: pod.report().saving is not None, "the report says that nothing is saved")
    stored = g.commits()
    for _ in range(3):
        disk.give_room(whole // 2)
        trains_on(g)
    eventually(lambda: len(g.commits()) > len(stored), "a save that has room is committed")
    history.look()


def test_training_goes_on_while_the_stores_disk_is_read_only_and_says_what_to_check(
    trained: Gang, disks: Callable[[Path, str], Disk]
) -> None:
    disk = disks(trained.bucket, EXT4)
    history = started(trained)
    eventually(disk.read_only, "nobody has a file open for writing")
    pod = trained.pods[0]
    eventually(lambda: pod.report().saving is not None, "the report says that nothing is saved")
    message = pod.report().saving.message
    assert "spec.checkpoint.storage" in message
    assert "Read-only" in message
    trains_on(trained)
    history.look()
    disk.writable()
    trained.wait_for_commit(trains_on(trained, 1))
    eventually(lambda: pod.report().saving is None, "the trouble is over")
    history.look()


@pytest.mark.parametrize("trouble", ["LocalStorageFull", "LocalStorageReadOnly"])
def test_training_and_commits_go_on_while_the_nodes_disk_takes_nothing(
    trained: Gang, disks: Callable[[Path, str], Disk], trouble: str
) -> None:
    disk = disks(trained.root / "p0-1" / "local", EXT4)
    history = started(trained)
    pod = trained.pods[0]
    if trouble == "LocalStorageFull":
        # Also the room of older images, which is given up for the newest one.
        eventually(lambda: disk.fill() or pod.report().local is not None, f"the report says so; {pod.words()}")
    else:
        eventually(disk.read_only, "nobody has a file open for writing")
        eventually(lambda: pod.report().local is not None, f"the report says so; {pod.words()}")
    assert pod.report().local.reason == trouble
    trained.wait_for_commit(trains_on(trained, 30))
    if trouble == "LocalStorageFull":
        disk.give_room()
    else:
        disk.writable()
    eventually(lambda: pod.report().local is None, "the node takes images again")
    history.look()
