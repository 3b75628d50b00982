"""The rank's slots: whose they are, and what is noticed about their files before anything is written."""

import os
import threading
from pathlib import Path

import pytest

from holdfast.arena import Arena, Slot
from holdfast.errors import LinkLost

SIZE = 1 << 20


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    made = [tmp_path / f"slot-{i}" for i in range(2)]
    for path in made:
        path.write_bytes(b"\xee" * SIZE)
    return [str(p) for p in made]


def test_a_slot_that_was_cut_short_is_refused_before_it_is_written(paths: list[str]) -> None:
    """A write behind the end of the file would be a SIGBUS: the end of training."""
    arena = Arena(1, paths, SIZE)
    arena.prepared()
    os.truncate(paths[0], SIZE // 2)
    with pytest.raises(ValueError, match=r"slot file slot-0 has 524288 bytes; 1048576 were promised"):
        arena.acquire()


def test_a_slot_that_was_replaced_is_refused_because_the_agent_would_read_the_other_file(paths: list[str]) -> None:
    arena = Arena(1, paths, SIZE)
    os.unlink(paths[0])
    with pytest.raises(FileNotFoundError):
        arena.acquire()
    Path(paths[0]).write_bytes(b"\0" * SIZE)
    with pytest.raises(ValueError, match="slot-0 was replaced by another file"):
        arena.acquire()


def test_a_file_that_is_too_short_from_the_start_is_refused(paths: list[str]) -> None:
    with pytest.raises(ValueError, match="2097152 were promised"):
        Arena(1, paths, 2 * SIZE)


def test_touching_maps_every_page_and_changes_none(paths: list[str]) -> None:
    slot = Slot(paths[0], SIZE)
    before = _mapped(slot)
    slot.touch()
    assert before < SIZE
    if _mapped(slot) == before:
        pytest.skip("this kernel has no MADV_POPULATE_WRITE: the first save maps the pages")
    assert _mapped(slot) == SIZE
    assert bytes(slot.memory) == b"\xee" * SIZE


def test_slots_are_prepared_beside_training(paths: list[str]) -> None:
    arena = Arena(1, paths, SIZE)
    arena.prepared()
    assert {_mapped(s) for s in arena.slots} <= {SIZE}


def test_with_one_slot_a_capture_waits_until_the_save_before_is_over(paths: list[str]) -> None:
    arena = Arena(1, paths[:1], SIZE)
    arena.hand_over(arena.acquire(), 10)
    assert not arena.has_free
    got: list[int] = []
    second = threading.Thread(target=lambda: got.append(arena.acquire()))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    arena.free(0)
    second.join(30)
    assert got == [0]


def test_an_agent_that_is_lost_frees_who_waits_for_the_only_slot(paths: list[str]) -> None:
    arena = Arena(1, paths[:1], SIZE)
    arena.hand_over(arena.acquire(), 10)
    arena.lose()
    with pytest.raises(LinkLost):
        arena.acquire()


def test_files_and_mappings_go_with_the_arena(paths: list[str]) -> None:
    def open_files() -> set[str]:
        return {os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if _is_link(n)}

    arena = Arena(1, paths, SIZE)
    arena.prepared()
    assert open_files() >= set(paths)
    del arena
    assert not open_files() & set(paths)
    assert paths[0] not in Path("/proc/self/maps").read_text()


def _is_link(number: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{number}")


def _mapped(slot: Slot) -> int:
    """Bytes of the slot that this process has mapped."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"{slot.address:x}-"))
    rss = next(line for line in lines[first + 1 :] if line.startswith("Rss:"))
    return int(rss.split()[1]) * 1024
