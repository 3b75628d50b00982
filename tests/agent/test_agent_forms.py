"""J6: two slots where memory allows it, one where it does not, refused with the number to set where not even that fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent import forms, memory, prefault
from holdfast_agent.arena import Arena
from holdfast_agent.errors import MemoryTooSmall
from holdfast_agent.forms import Form, choose
from holdfast_agent.memory import Room

MIB = 1 << 20


def room(limit=None, used=0, volume=100_000, available=None) -> Room:
    """In MiB."""
    return Room(limit and limit * MIB, used * MIB, volume * MIB, True, available and available * MIB)


@pytest.mark.parametrize(
    ("there", "images", "ranks", "form"),
    [
        (room(limit=1000, used=100), {0: 400}, 1, Form.TWO_SLOTS),
        (room(limit=1000, used=160), {0: 400}, 1, Form.ONE_SLOT),  # it would fit, and leave nothing to training
        (room(limit=1000, used=500), {0: 400}, 1, Form.ONE_SLOT),
        (room(volume=900), {0: 400}, 1, Form.TWO_SLOTS),
        (room(volume=700), {0: 400}, 1, Form.ONE_SLOT),
        (room(available=700), {0: 400}, 1, Form.ONE_SLOT),
        (room(available=830), {0: 400}, 1, Form.ONE_SLOT),
        (room(available=850), {0: 400}, 1, Form.TWO_SLOTS),
        (room(limit=4000), {0: 400}, 4, Form.TWO_SLOTS),
        (room(limit=3000), {0: 400}, 4, Form.ONE_SLOT),  # the three ranks that have not spoken are as large
        (room(limit=3000), {0: 400, 1: 2, 2: 2, 3: 2}, 4, Form.TWO_SLOTS),
    ],
)
def test_the_form_follows_from_limit_volume_machine_and_image(there, images, ranks, form):
    assert choose(there, 0, {r: size * MIB for r, size in images.items()}, {}, ranks).form is form


def test_what_exists_already_is_not_counted_twice_and_a_second_slot_can_be_given_back():
    have = {(0, 0): 400 * MIB, (0, 1): 400 * MIB}
    full = room(limit=1000, used=900)
    assert choose(full, 0, {0: 400 * MIB}, have, 1).form is Form.TWO_SLOTS
    assert choose(full, 0, {0: 800 * MIB}, have, 1).form is Form.ONE_SLOT
    with pytest.raises(MemoryTooSmall, match="not even one slot"):
        choose(full, 0, {0: 1000 * MIB}, have, 1)


def test_the_words_say_what_is_given_up_and_the_number_for_two_slots():
    choice = choose(room(limit=1000, used=500), 0, {0: 400 * MIB}, {}, 1)
    words = choice.words
    assert words.startswith("one slot of 400 MiB: the next save waits until the one before is stored")
    assert "no older one is left in memory" in words
    assert "resources.limits.memory of the trainer container to at least 1369Mi" in words
    assert choose(room(limit=9000), 0, {0: 400 * MIB}, {}, 2).words == "two slots of 400 MiB for each of 2 ranks"


@given(
    limit=st.integers(10, 5000),
    used=st.integers(0, 4000),
    image=st.integers(1, 3000),
    ranks=st.integers(1, 8),
    known=st.integers(1, 8),
)
def test_the_number_to_set_is_enough_and_what_is_chosen_fits(limit, used, image, ranks, known):
    images = dict.fromkeys(range(min(known, ranks)), image * MIB)
    there = room(limit=limit, used=min(used, limit))
    try:
        choice = choose(there, 0, images, {}, ranks)
    except MemoryTooSmall as e:
        number = int(str(e).split("at least ")[1].removesuffix("Mi"))
        assert choose(room(limit=number, used=min(used, limit)), 0, images, {}, ranks).form in Form
        return
    assert there.used + ranks * choice.form.slots * choice.slot_bytes <= there.limit
    if choice.form is Form.ONE_SLOT:
        number = int(choice.missing_for_two.split("at least ")[1].removesuffix("Mi"))
        assert choose(room(limit=number, used=min(used, limit)), 0, images, {}, ranks).form is Form.TWO_SLOTS
        assert number > limit


def test_slots_are_made_in_the_form_that_fits_and_the_second_is_given_back_when_the_state_has_grown(
    tmp_path, monkeypatch
):
    arena = Arena(tmp_path / "arena")
    monkeypatch.setattr(memory, "read", lambda folder: room(limit=1000, used=0))
    assert arena.make(0, {0: 3 * MIB}, 1).form is Form.TWO_SLOTS
    assert arena.bytes == 2 * 4 * MIB
    monkeypatch.setattr(memory, "read", lambda folder: room(limit=30, used=18))
    choice = arena.make(0, {0: 11 * MIB}, 1)
    assert choice.form is Form.ONE_SLOT
    assert (arena.path(0, 0).stat().st_size, arena.path(0, 1).exists()) == (12 * MIB, False)


@pytest.mark.parametrize("in_memory", [True, False])
def test_memory_is_touched_before_it_is_handed_out_and_a_disk_is_not(tmp_path, monkeypatch, in_memory):
    """J5: else the first save pays for every page."""
    touched = []
    monkeypatch.setattr(prefault, "touch", lambda fd, start, size: touched.append((start, size)))
    monkeypatch.setattr(memory, "read", lambda folder: Room(None, 0, 100 * MIB, in_memory))
    arena = Arena(tmp_path / "arena")
    arena.make(0, {0: 3 * MIB}, 1)
    arena.make(0, {0: 5 * MIB}, 1)
    grown = [(0, 4 * MIB), (0, 4 * MIB), (4 * MIB, 6 * MIB), (4 * MIB, 6 * MIB)]
    assert touched == (grown if in_memory else [])


def test_nothing_is_allocated_where_nothing_fits(tmp_path, monkeypatch):
    arena = Arena(tmp_path / "arena")
    monkeypatch.setattr(memory, "read", lambda folder: room(limit=100, used=60))
    with pytest.raises(MemoryTooSmall, match=r"limits\.memory .* at least 116Mi"):
        arena.make(0, {0: 50 * MIB}, 1)
    assert arena.bytes == 0


def test_sizes_are_rounded_so_that_a_plan_that_grows_a_little_keeps_its_files():
    assert forms.rounded(1) == forms.rounded(2 * MIB) == 2 * MIB


def test_a_slot_that_is_given_back_while_sizes_are_read_is_passed_over(tmp_path, monkeypatch):
    arena = Arena(tmp_path / "arena")
    monkeypatch.setattr(memory, "read", lambda folder: room(limit=1000, used=0))
    arena.make(0, {0: MIB}, 1)
    real = type(arena.folder).glob

    def glob(folder, pattern):
        yield from real(folder, pattern)
        yield folder / "rank-0-slot-7"

    monkeypatch.setattr(type(arena.folder), "glob", glob)
    assert arena.bytes == 2 * 2 * MIB


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "null", "[1]", '{"rank": 0}', '[{"rank": 0, "slot": 0, "job_uid": "u", "attempt": 0, "save": 1}]',
     '[{"rank": 1e999, "slot": 0, "job_uid": "u", "attempt": 1, "save": 1}]', "[" * 100_000, "\udcff"],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_nonsense_about_what_the_slots_hold_costs_a_fetch_and_nothing_else(tmp_path, monkeypatch, text):
    """J5: it is a hint, of an agent that was killed; every chunk is verified before it is used."""
    monkeypatch.setattr(memory, "read", lambda folder: room(limit=1000, used=0))
    Arena(tmp_path / "arena").make(0, {0: MIB}, 1)
    (tmp_path / "arena/slots.json").write_bytes(text.encode(errors="surrogateescape"))
    assert Arena(tmp_path / "arena").contents(0) == {0: None, 1: None}
