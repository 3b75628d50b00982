"""C3, E4: into which slot a checkpoint is fetched, and what is known of the bytes that lie there."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent import prefault
from holdfast_agent.arena import Mapped
from holdfast_agent.contents import Contents
from holdfast_agent.targets import Content, choose
from holdfast_api.layout import CheckpointRef

UID = "uid"


def of(save: int, attempt: int = 1, uid: str = UID) -> Content:
    return Content(uid, CheckpointRef(attempt, save))


WANTED = of(5)
CASES = {
    "the slot that is believed to hold it": ({0: of(4), 1: of(5)}, None, 1, 1),
    "nothing is there: slot 0 is made": ({}, None, 0, 0),
    "an unknown content is worth least": ({0: of(4), 1: None}, None, 1, 1),
    "of two older ones the oldest": ({0: of(4), 1: of(3)}, None, 1, 1),
    "the newest state of the pod is spared, the other slot is taken": ({0: of(6), 1: of(4)}, None, 1, 1),
    "before the claim a new slot is made rather than a newer content overwritten": ({0: of(6)}, None, 0, 1),
    "both hold something newer": ({0: of(6), 1: of(7)}, None, 0, None),
    "an earlier attempt's is older, whatever its save": (
        {0: of(99, attempt=0 + 1), 1: of(1, attempt=2)},
        None,
        0,
        None,
    ),
    "another job's content is nobody's to throw away before the claim": ({0: of(1, uid="other")}, None, 0, 1),
    "where parts of it lie already": ({0: None, 1: of(1)}, 1, 1, 1),
    "a slot that holds it wins over one with parts": ({0: of(5), 1: of(1)}, 1, 0, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_the_slot(case: str) -> None:
    slots, begun, after_claim, ahead = CASES[case]
    assert choose(slots, WANTED, begun=begun) == after_claim
    assert choose(slots, WANTED, begun=begun, spare_newer=True) == ahead


contents = st.none() | st.builds(of, st.integers(1, 9), st.integers(1, 3), st.sampled_from([UID, "other"]))


@given(st.dictionaries(st.integers(0, 1), contents), contents.filter(bool))
def test_a_restore_always_has_a_slot_and_a_prefetch_never_takes_one_that_may_be_worth_more(
    slots: dict[int, Content | None], wanted: Content
) -> None:
    assert choose(slots, wanted) in (set(slots) or {0})
    ahead = choose(slots, wanted, spare_newer=True)
    held = slots.get(ahead) if ahead is not None else None
    assert held is None or held == wanted or (held.job_uid == wanted.job_uid and held.ref < wanted.ref)


def test_what_was_verified_is_known_by_place_digest_and_length() -> None:
    known = Contents()
    known.verified(0, 1, 16, "d", 8)
    assert known.holds(0, 1, 16, "d", 8)
    for other in ((1, 1, 16, "d", 8), (0, 0, 16, "d", 8), (0, 1, 8, "d", 8), (0, 1, 16, "e", 8), (0, 1, 16, "d", 4)):
        assert not known.holds(*other)
    assert known.slot_of(0) == 1
    assert known.slot_of(1) is None


@pytest.mark.parametrize(
    ("offset", "length", "gone"), [(16, 8, True), (20, 1, True), (0, 17, True), (0, 16, False), (24, 8, False)]
)
def test_who_writes_into_verified_bytes_makes_them_unknown(offset: int, length: int, gone: bool) -> None:
    known = Contents()
    known.verified(0, 0, 16, "d", 8)
    known.about_to_write(0, 0, offset, length)
    assert known.holds(0, 0, 16, "d", 8) is not gone


def test_memory_that_was_cut_off_is_an_error_and_not_the_end_of_the_agent(tmp_path: Path) -> None:
    """Somebody truncates a slot file under us: a write into the mapping would be SIGBUS."""
    path = tmp_path / "slot"
    path.write_bytes(bytes(3 * 4096))
    mapped = Mapped(path, 3 * 4096, write=True)
    prefault.populate(mapped.view[100:5000])
    prefault.populate(mapped.view[:0])
    os.truncate(path, 4096)
    with pytest.raises(OSError, match="has gone"):
        prefault.populate(mapped.view[4096:])
    mapped.close()
