"""Fault scenarios 8, 9, 10: the process that saves is killed between any two of its calls to the file system; the next start finds the old or the new
checkpoint, never a torn one (B2, B9), nothing that is left blocks the next save (B1), and it is swept (D4)."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults import interception, points, saving
from tests.faults.interception import Call, Go, Interceptor, Kill, Outcome, Verdict
from tests.faults.saving import NEW, OLD, Place

SAMPLE = 24
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(autouse=True)
def _possible() -> None:
    interception.needed()


@dataclass
class Killer:
    """Kills at the n-th call; 0 never."""

    at: int
    seen: list[Call] = field(default_factory=list)

    def __call__(self, call: Call) -> Verdict:
        self.seen.append(call)
        return Kill() if call.number == self.at else Go()


def killed(place: Place, at: int, function: Callable[..., object] = saving.second_save) -> Outcome:
    return Interceptor((place.store_folder, place.node_folder, place.marks), Killer(at)).run(function, str(place.root))


def promised(place: Place) -> set[str]:
    return {p.name for p in place.marks.iterdir()}


def expected(place: Place) -> set[int]:
    return {NEW} if f"committed-{NEW}" in promised(place) else {OLD, NEW}


def test_a_save_that_is_not_disturbed_is_found_by_the_next_start(copies: Callable[[], Place]) -> None:
    """The ground on which the other tests of this file stand."""
    place = copies()
    outcome = killed(place, 0)
    assert (outcome.error, outcome.killed) == ("", False), outcome.words
    assert {c.name for c in outcome.calls} >= {"open", "write", "sync", "link", "rename", "unlink", "mkdir"}
    assert {c.real for c in outcome.calls} >= {"pwrite64", "fdatasync"}
    assert promised(place) >= {f"committed-{NEW}", f"node-{NEW}"}
    resumed = saving.next_start(place)
    assert (resumed.boundary, resumed.attempt, set(resumed.sources)) == (NEW, 2, {"arena"})
    saving.goes_on(place, resumed)


def test_killed_at_any_call_the_next_start_finds_old_or_new_and_goes_on(copies: Callable[[], Place]) -> None:
    count = len(killed(copies(), 0).calls)
    tried = points.sample(range(1, count + 1), SAMPLE)
    found: set[int] = set()
    for at in tried:
        place = copies()
        outcome = killed(place, at)
        where = f"killed at call {at} of {count}: {outcome.calls[-1].name} {outcome.calls[-1].path}"
        assert outcome.killed or outcome.error == "", (where, outcome.words)
        allowed = expected(place)
        for forget in ("", "arena", "node"):
            # What a restart in place finds; what a new pod on the same node finds; what a new node finds.
            look = place.copy(place.root.with_name(f"{place.root.name}-{forget}"))
            for folder in {"": (), "arena": ("arena",), "node": ("arena", "node")}[forget]:
                shutil.rmtree(look.root / folder, ignore_errors=True)
            look.node_folder.mkdir(exist_ok=True)
            resumed = saving.next_start(look)
            assert resumed.boundary in allowed, (where, forget, resumed)
            assert not resumed.fresh_allowed, (where, "C1")
            if not forget:
                found.add(resumed.boundary)
                saving.goes_on(look, resumed)
            shutil.rmtree(look.root)
        on_node = {b for b in (OLD, NEW) if saving.whole_on_node(place, b)}
        assert on_node, (where, "the node has lost its older image before it had the newer one")
        assert NEW in on_node or f"node-{NEW}" not in promised(place), (where, "said to be on the node, and is not")
        shutil.rmtree(place.root)
    assert found == {OLD, NEW}
    print(f"killed at {len(tried)} of {count} calls")


def test_killed_at_any_call_of_the_very_first_save_nothing_starts_from_zero_that_had_a_commit(tmp_path: Path) -> None:
    """C1: before the first commit a fresh start is right; after it, it never is."""

    def run(name: str, at: int) -> tuple[Place, Outcome]:
        place = Place(tmp_path / name).make()
        return place, killed(place, at, saving.first_save_at)

    count = len(run("whole", 0)[1].calls)
    for at in points.sample(range(1, count + 1), SAMPLE // 2):
        place, _ = run(f"at-{at}", at)
        shutil.rmtree(place.root / "arena", ignore_errors=True)
        resumed = saving.next_start(place, claim=False)
        if f"committed-{OLD}" in promised(place):
            assert resumed.boundary == OLD, (at, resumed)
        assert resumed.boundary in (0, OLD)
        assert resumed.fresh_allowed == (resumed.boundary == 0), (at, resumed)


def left_alone(place: Place) -> bool:
    return f"left-{NEW}" in promised(place)


def test_what_is_left_on_the_node_alone_is_finished_by_who_returns_there(copies: Callable[[], Place]) -> None:
    """E6. The ground on which the next two stand."""
    place = copies()
    before = place.objects()
    outcome = killed(place, 0, saving.on_the_node_alone)
    assert (outcome.error, outcome.killed) == ("", False), outcome.words
    assert place.objects() == before, "nothing has gone to the store"
    assert saving.next_start(place.copy(place.root.with_name("nobody-returned")), claim=False).boundary == OLD
    assert [c.state for c in saving.finish_left(place)] == ["committed"]
    resumed = saving.next_start(place)
    assert resumed.boundary == NEW
    saving.goes_on(place, resumed)


def test_killed_at_any_call_of_a_save_on_the_node_alone_it_is_whole_or_nothing(copies: Callable[[], Place]) -> None:
    """E6, B9: what was promised is finished; what was not is finished whole or dropped; and where nobody returns the old one stands."""
    count = len(killed(copies(), 0, saving.on_the_node_alone).calls)
    found: set[int] = set()
    for at in sorted({*points.sample(range(1, count + 1), SAMPLE), count}):
        place = copies()
        outcome = killed(place, at, saving.on_the_node_alone)
        where = f"killed at call {at} of {count}: {outcome.calls[-1].name} {outcome.calls[-1].path}"
        assert outcome.killed or outcome.error == "", (where, outcome.words)
        for forget in ("", "arena", "node"):
            look = place.copy(place.root.with_name(f"{place.root.name}-{forget}"))
            for folder in {"": (), "arena": ("arena",), "node": ("arena", "node")}[forget]:
                shutil.rmtree(look.root / folder, ignore_errors=True)
            look.node_folder.mkdir(exist_ok=True)
            saving.finish_left(look)
            resumed = saving.next_start(look)
            allowed = {OLD} if forget == "node" else {NEW} if left_alone(place) else {OLD, NEW}
            assert resumed.boundary in allowed, (where, forget, resumed)
            assert not resumed.rejected, (where, forget, resumed)
            if not forget:
                found.add(resumed.boundary)
                saving.goes_on(look, resumed)
            shutil.rmtree(look.root)
        shutil.rmtree(place.root)
    assert found == {OLD, NEW}
    print(f"killed at {count} calls at most")


def test_killed_at_any_call_of_finishing_it_the_next_one_finishes_it(copies: Callable[[], Place]) -> None:
    """E6: nothing is visible before it is whole, and what has arrived is not lost."""
    left = copies()
    assert killed(left, 0, saving.on_the_node_alone).error == ""
    number = 0

    def once() -> Place:
        nonlocal number
        number += 1
        return left.copy(left.root.with_name(f"returned-{number}"))

    count = len(killed(once(), 0, saving.returns).calls)
    assert count > 20
    for at in points.sample(range(1, count + 1), SAMPLE):
        place = once()
        outcome = killed(place, at, saving.returns)
        where = f"killed at call {at} of {count}: {outcome.calls[-1].name} {outcome.calls[-1].path}"
        assert outcome.killed or outcome.error == "", (where, outcome.words)
        claimed = place.copy(place.root.with_name(f"{place.root.name}-claimed"))
        resumed = saving.next_start(claimed)
        assert resumed.boundary in (OLD, NEW), (where, resumed)
        assert not resumed.rejected, (where, resumed)
        saving.goes_on(claimed, resumed)
        shutil.rmtree(claimed.root)
        saving.finish_left(place)
        resumed = saving.next_start(place)
        assert resumed.boundary == NEW, (where, resumed)
        shutil.rmtree(place.root)
