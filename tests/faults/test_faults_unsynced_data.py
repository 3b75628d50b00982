"""Fault scenario 10: the power fails at any moment of a save, and everything that was not flushed may be lost, each thing by itself (crash_states.py says
what the model assumes). What was acknowledged is there (invariant I3); what was not is there whole or not at all (B2, B9).

The checker is checked: recordings of programs that flush too little or too late are found out.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import crash_states, interception, points, saving
from tests.faults.crash_states import Recording, State
from tests.faults.interception import Call, Go, Kill, Verdict
from tests.faults.saving import NEW, NEXT, OLD, Place

SAMPLE = 100
pytestmark = pytest.mark.timeout(1800)


@dataclass(frozen=True)
class Recorded:
    before: Place
    calls: tuple[Call, ...]


@pytest.fixture(scope="module")
def recorded(job_with_a_checkpoint: Place, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    interception.needed()
    place = job_with_a_checkpoint.copy(tmp_path_factory.mktemp("recorded") / "job")
    calls, outcome = crash_states.record(place, saving.second_save, str(place.root))
    assert outcome.error == "", outcome.words
    return Recorded(job_with_a_checkpoint, tuple(calls))


def problem(state: State, place: Place, final: dict[str, bytes], *, goes_on: bool = False) -> str:
    """What is wrong with a state, or ""."""
    for path, content in state.files:
        if not Path(path).name.startswith(".") and final.get(path, content) != content:
            return f"{path} has its name and not its content (B9)"
    on_node = {b for b in (OLD, NEW) if saving.whole_on_node(place, b)}
    if not on_node:
        return "the node has neither the older nor the newer image"
    if f"node-{NEW}" in state.marks and NEW not in on_node:
        return "the newer image was said to be durable on the node, and is not"
    try:
        resumed = saving.next_start(place, claim=goes_on)
        allowed = {NEW} if f"committed-{NEW}" in state.marks else {OLD, NEW}
        if resumed.boundary not in allowed or resumed.fresh_allowed:
            return f"{sorted(allowed)} may be found, not {resumed}"
        if goes_on:
            saving.goes_on(place, resumed)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return ""


def first_problem(
    recorded: Recorded, calls: Sequence[Call], tmp_path: Path, most: int, *, goes_on: bool = False
) -> str:
    """Of a sample of the states that a recording allows."""
    recording = Recording(recorded.before, calls)
    states = points.sample(list(recording.states(points.seed())), most)
    for number, state in enumerate(states):
        place = state.build(Place(tmp_path / f"state-{number}"))
        try:
            if found := problem(state, place, recording.final, goes_on=goes_on):
                return f"after call {state.moment} of {recording.moments}: {found}"
        finally:
            shutil.rmtree(place.root)
    print(f"{len(states)} states")
    return ""


def test_power_lost_at_any_moment_leaves_old_or_new_and_what_was_acknowledged(
    recorded: Recorded, tmp_path: Path
) -> None:
    assert first_problem(recorded, recorded.calls, tmp_path, SAMPLE) == ""


def test_after_any_loss_of_power_the_next_save_is_not_blocked_and_what_is_left_is_swept(
    recorded: Recorded, tmp_path: Path
) -> None:
    assert first_problem(recorded, recorded.calls, tmp_path, SAMPLE // 4, goes_on=True) == ""


@pytest.mark.parametrize("below", ["store/", "node/"])
@pytest.mark.parametrize(
    "wrong",
    [crash_states.without_flush_of_files, crash_states.without_flush_of_folders, crash_states.named_before_written],
)
def test_a_save_that_flushes_too_little_or_too_late_is_found_out(
    recorded: Recorded, tmp_path: Path, wrong: Callable[[Sequence[Call], str], list[Call]], below: str
) -> None:
    calls = wrong(recorded.calls, below)
    assert calls != list(recorded.calls)
    recording = Recording(recorded.before, calls)
    moments = range(recording.moments + 1)
    # What was never flushed shows when all of it should be durable, what was named too early in the middle.
    late = wrong is not crash_states.named_before_written
    states = recording.states(0, reversed(moments) if late else moments)
    for number, state in enumerate(itertools.islice(states, 0, None, 1 if late else 7)):
        place = state.build(Place(tmp_path / f"state-{number}"))
        found = problem(state, place, recording.final)
        shutil.rmtree(place.root)
        if found:
            print(f"after call {state.moment} of {recording.moments}: {found}")
            return
    raise AssertionError("every state that such a save may leave was called whole")


# ---- what one process has made and not flushed, and another one finds


def killed_at(at: int) -> Callable[[Call], Verdict]:
    return lambda call: Kill() if call.number == at else Go()


def killed_after_naming(name: str) -> Callable[[Call], Verdict]:
    """At the next call after the first object of that name in the store has it."""
    named = False

    def decide(call: Call) -> Verdict:
        nonlocal named
        if named:
            return Kill()
        named = call.name == "link" and "/store/" in call.to and name in call.to
        return Go()

    return decide


def test_a_folder_whose_maker_was_killed_is_flushed_by_who_builds_in_it(tmp_path: Path) -> None:
    """B9: killed between mkdir and fsync, the next life finds the folder, saves below it, is told that all is durable; then the power fails."""
    interception.needed()
    whole, _ = crash_states.record(Place(tmp_path / "whole").make(), saving.first_save_at, str(tmp_path / "whole"))
    makers = [i for i, c in enumerate(whole, 1) if c.name == "mkdir" and c.path.startswith("store/")]
    assert len(makers) > 3
    for at in points.sample(makers, 4):
        place = Place(tmp_path / f"at-{at}").make()
        before = place.copy(tmp_path / f"before-{at}")
        first, _ = crash_states.record(place, saving.first_save_at, str(place.root), decide=killed_at(at + 1))
        second, outcome = crash_states.record(place, saving.next_life, str(place.root))
        assert outcome.error == "", outcome.words
        recording = Recording(before, [*first, *second])
        for number, state in enumerate(recording.states(points.seed(), [recording.moments])):
            resumed = saving.next_start(state.build(Place(tmp_path / f"state-{at}-{number}")), claim=False)
            assert resumed.boundary == NEXT, (whole[at - 1], resumed)


def test_who_hears_that_a_name_is_taken_may_build_on_it(tmp_path: Path) -> None:
    """B9, E5: another coordinator's record is there, and he died before he could flush; ours is the same, so the save is said to be committed."""
    interception.needed()
    place = Place(tmp_path / "job").make()
    before = place.copy(tmp_path / "before")
    named = False

    def decide(call: Call) -> Verdict:
        nonlocal named
        if named:
            return Kill()
        named = call.name == "link"
        return Go()

    first, outcome = crash_states.record(place, saving.create_object, str(place.root), decide=decide)
    assert outcome.killed
    second, outcome = crash_states.record(place, saving.create_object, str(place.root))
    assert outcome.value == "exists"
    recording = Recording(before, [*first, *second])
    for state in recording.states(points.seed(), [recording.moments]):
        assert dict(state.files).get("store/ns/a/b") == b"whole" * 1000


def test_what_is_gone_on_from_lasts_whoever_made_it(job_with_a_checkpoint: Place, tmp_path: Path) -> None:
    """B9: killed between the name of the commit record and its flush; the next life goes on from that checkpoint, and saves; then the power fails."""
    interception.needed()
    place = job_with_a_checkpoint.copy(tmp_path / "job")
    first, outcome = crash_states.record(
        place, saving.second_save, str(place.root), decide=killed_after_naming("commit.json")
    )
    assert outcome.killed
    second, outcome = crash_states.record(place, saving.continues, str(place.root))
    assert outcome.error == "", outcome.words
    recording = Recording(job_with_a_checkpoint, [*first, *second])
    lost = 0
    for number, state in enumerate(recording.states(points.seed(), [recording.moments])):
        place = state.build(Place(tmp_path / f"state-{number}"))
        place.store().sweep(attempt=3)
        resumed = saving.next_start(place, claim=False)
        assert (resumed.boundary, resumed.rejected) == (NEXT, ())
        lost += not list(place.store_folder.rglob("0000000001/0000000002/commit.json"))
    assert lost, "the record that was not flushed may be gone: what leans on it does not need it"


@pytest.mark.parametrize("looks", [saving.sees_as_a_fellow, saving.sees_as_a_finder])
def test_who_sees_a_chunk_in_a_listing_may_build_on_it(
    job_with_a_checkpoint: Place, tmp_path: Path, looks: Callable[[str], list[str]]
) -> None:
    """B9, E6, J4: the same for what is not sent because it is there; whoever sent it was killed before he could flush its name."""
    interception.needed()
    place = job_with_a_checkpoint.copy(tmp_path / "job")
    first, outcome = crash_states.record(
        place, saving.second_save, str(place.root), decide=killed_after_naming("/chunks/")
    )
    assert outcome.killed
    second, outcome = crash_states.record(place, looks, str(place.root))
    assert outcome.error == "", outcome.words
    assert outcome.value, "it is seen"
    recording = Recording(job_with_a_checkpoint, [*first, *second])
    for state in recording.states(points.seed(), [recording.moments]):
        there = {Path(path).name for path, _ in state.files if path.startswith("store/")}
        assert there.issuperset(outcome.value)


def test_the_attempt_number_of_a_laptop_is_not_given_again_after_the_power_failed(tmp_path: Path) -> None:
    """A1, A10: once it has been given out it is on the disk, and the job's uid with it."""
    interception.needed()
    place = Place(tmp_path / "job").make()
    before = place.copy(tmp_path / "before")
    directory = "store/runs/first"
    calls, outcome = crash_states.record(place, saving.laptop_begins, str(place.root / directory))
    assert outcome.error == "", outcome.words
    recording = Recording(before, calls)
    file = f"{directory}/.holdfast/job.json"
    for state in recording.states(points.seed()):
        assert json.loads(dict(state.files).get(file, b'{"attempt":0}'))["attempt"] in (0, 1)
    for state in recording.states(points.seed(), [recording.moments]):
        assert json.loads(dict(state.files)[file])["attempt"] == 1
