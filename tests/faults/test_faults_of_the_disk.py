"""Fault scenarios 11, 12, 13: calls to the file system fail or do less than was asked, once or for good, on the node's directory and on a file:// store.

On the node an error costs the node's copy and nothing else. On the store a save fails loudly, or is repeated under another name and is whole; an error of
fsync is final for the file or folder that it struck (B9): nothing that rests on it is taken for durable.
"""

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.faults import interception, points, saving
from tests.faults.interception import Call, Fail, Go, Interceptor, Outcome, Part, Verdict
from tests.faults.saving import NEW, OLD, Place

SAMPLE = 2
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(autouse=True)
def _possible() -> None:
    interception.needed()


@dataclass
class Disk:
    """Strikes the n-th call of a family below a folder, or every one from the first on (`at` 0)."""

    folder: str
    family: str
    verdict: Fail | Part
    at: int = 0
    matching: int = 0
    struck: list[Call] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def __call__(self, call: Call) -> Verdict:
        self.calls.append(call)
        if call.name != self.family or f"/{self.folder}/ns/" not in call.path:
            return Go()
        self.matching += 1
        if self.at and self.matching != self.at:
            return Go()
        self.struck.append(call)
        return self.verdict


def disturbed(place: Place, disk: Disk, function: Callable[..., object] = saving.second_save) -> Outcome:
    return Interceptor((place.store_folder, place.node_folder, place.marks), disk).run(function, str(place.root))


def each_call(
    copies: Callable[[], Place], folder: str, family: str, verdict: Fail | Part
) -> list[tuple[Place, Disk, Outcome]]:
    """The save once for each call of the family that is struck (a sample of them)."""
    counting = Disk(folder, family, verdict, at=1_000_000)
    disturbed(copies(), counting)
    assert counting.matching, f"the save makes no {family} on the {folder}"
    runs = []
    for at in points.sample(range(1, counting.matching + 1), SAMPLE):
        place, disk = copies(), Disk(folder, family, verdict, at=at)
        runs.append((place, disk, disturbed(place, disk)))
    return runs


def start_elsewhere(place: Place) -> saving.Resumed:
    """A next start that has neither the slots nor the node's directory."""
    look = place.copy(place.root.with_name(place.root.name + "-elsewhere"))
    shutil.rmtree(look.root / "arena")
    resumed = saving.next_start(look, claim=False, with_node=False)
    shutil.rmtree(look.root)
    return resumed


PASSES = [
    ("sync", errno.EIO),
    ("write", errno.EIO),
    ("open", errno.EIO),
    ("link", errno.EIO),
    ("mkdir", errno.ESTALE),
    ("write", errno.EINTR),
    ("sync", errno.EINTR),
]


@pytest.mark.parametrize(
    ("family", "number"), PASSES, ids=lambda v: errno.errorcode.get(v, v) if isinstance(v, int) else v
)
def test_one_error_of_the_store_that_may_pass_costs_another_try_and_nothing_else(
    copies: Callable[[], Place], family: str, number: int
) -> None:
    for place, disk, outcome in each_call(copies, "store", family, Fail(number)):
        assert outcome.error == "", (disk.struck, outcome.words)
        assert start_elsewhere(place).boundary == NEW
        saving.goes_on(place, saving.next_start(place))


def test_an_error_of_fsync_is_final_for_the_file_that_it_struck(
    copies: Callable[[], Place], job_with_a_checkpoint: Place
) -> None:
    """Scenario 11: after EIO the kernel has dropped the pages and calls the next fsync a success."""
    for place, disk, outcome in each_call(copies, "store", "sync", Fail(errno.EIO)):
        assert outcome.error == "", outcome.words
        [struck] = disk.struck
        after = disk.calls[struck.number :]
        same = (struck.path, struck.inode)
        if any((c.path, c.inode) == same and c.name == "write" for c in disk.calls):
            assert not [c for c in after if c.name == "sync" and (c.path, c.inode) == same], (
                "the same file was flushed again"
            )
            assert not [c for c in after if c.name in ("link", "rename") and c.path == struck.path], (
                "it was given its name"
            )
        else:
            # What was named in a folder is not made durable by a later flush that finds nothing to do. It is named anew.
            assert _made_good(disk.calls, struck, place, job_with_a_checkpoint), (
                f"what should have been made durable by {struck} was taken for durable"
            )
        assert start_elsewhere(place).boundary == NEW


def _made_good(calls: list[Call], struck: Call, place: Place, before: Place) -> bool:
    """The folder is flushed later, and the names that the failed flush was for are made again before that."""
    same = [c for c in calls if c.thread == struck.thread and c.number < struck.number]
    since = max((c.number for c in same if c.name == "sync" and c.path == struck.path), default=0)
    made = {p for n, p in _namings(same, struck.path) if n > since and not _was_there(p, place, before)}
    later = calls[struck.number :]
    again = {p: n for n, p in _namings(later, struck.path)}
    flushed = max((c.number for c in later if c.name == "sync" and c.path == struck.path), default=0)
    return flushed > 0 and all(again.get(p, flushed) < flushed for p in made)


def _namings(calls: list[Call], folder: str) -> list[tuple[int, str]]:
    """(number of the call, name that it gives) in a folder."""
    found = ((c.number, c.to or c.path) for c in calls if c.name in ("link", "rename", "mkdir"))
    return [(n, p) for n, p in found if p.rpartition("/")[0] == folder]


def _was_there(path: str, place: Place, before: Place) -> bool:
    return (before.root / path.removeprefix(f"{place.root}/")).exists()


REFUSED = [
    ("allocate", errno.ENOSPC, "Full"),
    ("write", errno.ENOSPC, "Full"),
    ("open", errno.EDQUOT, "Full"),
    ("mkdir", errno.ENOSPC, "Full"),
    ("open", errno.EROFS, "Misconfigured"),
    ("link", errno.EROFS, "Misconfigured"),
    ("open", errno.EACCES, "Denied"),
]


@pytest.mark.parametrize(
    ("family", "number", "kind"), REFUSED, ids=lambda v: errno.errorcode.get(v, v) if isinstance(v, int) else v
)
def test_a_store_that_is_full_or_read_only_refuses_the_save_in_words_and_keeps_the_old_checkpoint(
    copies: Callable[[], Place], family: str, number: int, kind: str
) -> None:
    for place, disk, outcome in each_call(copies, "store", family, Fail(number)):
        assert outcome.error == kind, (disk.struck, outcome.error, outcome.words)
        assert start_elsewhere(place).boundary == OLD
        resumed = saving.next_start(place)
        assert resumed.boundary == OLD
        saving.goes_on(place, resumed)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=lambda v: errno.errorcode[v])
def test_a_store_that_fails_for_good_ends_the_save_in_time(copies: Callable[[], Place], number: int) -> None:
    place = copies()
    outcome = disturbed(place, Disk("store", "write", Fail(number)), saving.second_save_in_a_second)
    assert outcome.error in ("Unavailable", "Full", "Misconfigured"), outcome.words
    assert saving.next_start(place).boundary == OLD


ON_NODE = [
    ("allocate", errno.ENOSPC),
    ("write", errno.ENOSPC),
    ("write", errno.EIO),
    ("sync", errno.EIO),
    ("open", errno.EROFS),
    ("mkdir", errno.EROFS),
    ("rename", errno.EIO),
    ("unlink", errno.EIO),
    ("rmdir", errno.EBUSY),
]


@pytest.mark.parametrize(
    ("family", "number"), ON_NODE, ids=lambda v: errno.errorcode.get(v, v) if isinstance(v, int) else v
)
@pytest.mark.parametrize("always", [False, True], ids=["once", "for-good"])
def test_a_disk_of_the_node_that_fails_costs_the_nodes_copy_alone(
    copies: Callable[[], Place], family: str, number: int, always: bool
) -> None:
    """Scenarios 12, 13. What was said to be durable on the node is; the store has the checkpoint in any case."""
    if always:
        place, disk = copies(), Disk("node", family, Fail(number))
        runs = [(place, disk, disturbed(place, disk))]
    else:
        runs = each_call(copies, "node", family, Fail(number))
    for place, disk, outcome in runs:
        assert disk.struck
        assert outcome.error == "", (disk.struck, outcome.words)
        if (place.marks / f"node-{NEW}").exists():
            assert saving.whole_on_node(place, NEW), "said to be on the node, and is not"
        assert start_elsewhere(place).boundary == NEW
        shutil.rmtree(place.root / "arena")
        assert saving.next_start(place, claim=False).boundary == NEW


@pytest.mark.parametrize("folder", ["store", "node"])
@pytest.mark.parametrize("count", [1, 511, 4096])
def test_writes_that_do_less_than_asked_are_continued(copies: Callable[[], Place], folder: str, count: int) -> None:
    place = copies()
    disk = Disk(folder, "write", Part(count), at=0 if count > 1 else 1)
    outcome = disturbed(place, disk)
    assert disk.struck
    assert outcome.error == "", outcome.words
    assert saving.whole_on_node(place, NEW)
    assert start_elsewhere(place).boundary == NEW
