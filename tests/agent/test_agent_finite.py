"""C4: beside a save it is seen whether weights are finite; an emergency never waits for it, and what nobody has looked at is unknown."""

import asyncio
import builtins
import dataclasses
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from lone import CHUNK, Lone, in_thread

from holdfast_agent import flush, saves
from holdfast_agent.clock import Deadline
from holdfast_agent.finite import Look
from holdfast_agent.threads import Stop
from holdfast_api import peers
from holdfast_api import ranks as wire
from holdfast_api.manifest import NOT_FINITE_NAMED, TensorEntry
from holdfast_api.messages import Cause
from holdfast_store.chunks import digest

NAN, INF = float("nan"), float("inf")


def tensor(name: str, at: int, count: int, dtype: str = "float32", item: int = 4) -> TensorEntry:
    return TensorEntry(name, dtype, (count,), at, count * item)


def looked(image: bytes, tensors: list[TensorEntry], must: list[str] | None, piece: int) -> Look:
    pieces = range(0, len(image), piece)
    look = Look(tensors, must, len(pieces))
    for at in pieces:
        look.piece(memoryview(image)[at : at + piece], at)
    return look


@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.floats(width=32), max_size=12)), max_size=8),
    st.sampled_from([8, 16, 40, 4096]),
)
def test_the_answer_does_not_depend_on_where_chunks_end_and_is_about_what_was_named(
    parts: list[tuple[bool, list[float]]], piece: int
) -> None:
    image, tensors = b"", []
    for number, (_, values) in enumerate(parts):
        tensors.append(tensor(f"t{number}", len(image), len(values)))
        image += struct.pack(f"<{len(values)}f", *values)
    must = [f"t{n}" for n, (named, _) in enumerate(parts) if named]
    bad = [f"t{n}" for n, (named, vs) in enumerate(parts) if named and any(v != v or abs(v) == INF for v in vs)]
    look = looked(image, tensors, must, piece)
    assert (look.finite, look.names) == (not bad, tuple(bad[:NOT_FINITE_NAMED]))


def test_what_was_not_looked_at_is_unknown_but_what_was_found_stays_found() -> None:
    image = struct.pack("<4f", 1, NAN, 1, 1)
    entries = [tensor("a", 0, 2), tensor("b", 8, 2)]
    assert looked(image, entries, None, 8).finite is None, "the rank does not say what to look at"
    assert looked(image, entries, [], 8).finite is True, "nothing is trained"
    half = Look(entries, ["a", "b"], 2)
    half.piece(memoryview(image)[8:], 8)
    assert half.finite is None, "a chunk is missing"
    half.skip()
    half.piece(memoryview(image)[:8], 0)
    assert (half.finite, half.names) == (None, ()), "there was no time"
    found = Look(entries, ["a", "b"], 2)
    found.piece(memoryview(image)[:8], 0)
    found.skip()
    assert (found.finite, found.names) == (False, ("a",))


def test_a_look_that_cannot_be_done_is_unknown_and_never_the_end_of_a_save(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name == "numpy":
            raise ModuleNotFoundError("No module named 'numpy'", name="numpy")
        return real(name, *args, **more)

    image = struct.pack("<4f", 1, NAN, 1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        look = looked(image, [tensor("a", 0, 4)], ["a"], 8)
    assert look.finite is None
    assert sum("not known" in r.getMessage() for r in caplog.records) == 1
    assert looked(image, [tensor("a", 2, 3)], ["a"], 8).finite is None, "a number across two chunks"
    assert looked(image, [tensor("a", 0, 4, "float128")], ["a"], 8).finite is None, "a format of a later torch"
    assert looked(image, [dataclasses.replace(tensor("a", 0, 4), length_bytes=99)], ["a"], 16).finite is False


def test_ties_are_named_once_and_whole_numbers_are_always_finite() -> None:
    image = struct.pack("<2fq", INF, 0, -1)
    entries = [tensor("a", 0, 2), dataclasses.replace(tensor("b", 0, 2), tied_to="a"), tensor("n", 8, 1, "int64", 8)]
    assert looked(image, entries, ["a", "b", "n"], 16).names == ("a",)


# ---- in a save


def trains(one: Lone, value: float) -> None:
    """The chunk that moves is a trained parameter of this value, the other one a frozen mask that may be infinite."""
    entries = (tensor("mask", 0, CHUNK // 4), tensor("w", CHUNK, CHUNK // 4))
    one.rank.plan = wire.Plan(1, 2 * CHUNK, entries, ("w",))
    one.value = struct.pack("<f", value) * (CHUNK // 4)


def capture(one: Lone, slot: int, boundary: int, kind: str = "periodic") -> None:
    one.capture(slot, boundary, kind)
    path = one.shared.arena.path(0, slot)
    with path.open("r+b") as file:
        file.write(struct.pack("<f", -INF) * (CHUNK // 4) + one.value)


async def test_a_save_says_whether_what_is_trained_is_finite_and_names_what_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = Lone(tmp_path)
    trains(one, 1.5)
    capture(one, 0, 10)
    assert (await one.saves.make(10, Cause.PERIODIC, deadline=Deadline.after(60))).finite is True
    trains(one, NAN)
    capture(one, 1, 20)
    info = await one.saves.make(20, Cause.PERIODIC, deadline=Deadline.after(60))
    assert (info.finite, info.not_finite) == (False, ("w",))
    assert [(r.finite, r.not_finite) for r in one.commits()] == [(True, ()), (False, ("w",))]
    assert [(c.finite, c.not_finite) for c in one.shared.record.report().checkpoints] == [(True, ()), (False, ("w",))]
    assert any("1/2 holds NaN" in r.getMessage() and "w" in r.getMessage() for r in caplog.records)
    await one.close()


@pytest.mark.parametrize("emergency", [True, False])
async def test_an_emergency_is_not_held_up_by_a_look(tmp_path: Path, emergency: bool) -> None:
    one = Lone(tmp_path)
    trains(one, NAN)
    capture(one, 0, 10, "round" if emergency else "final")
    info = await one.saves.make(
        10,
        Cause.SPOT if emergency else Cause.FINAL,
        deadline=Deadline.after(60),
        emergency=emergency,
        full_speed=not emergency,
    )
    assert info.finite is (None if emergency else False)
    await one.close()


async def test_a_save_whose_deadline_moves_while_it_runs_does_not_look_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine is about to go (F1): the flush that runs is its emergency save now."""
    reached, go = threading.Event(), threading.Event()

    def slowly(view: memoryview) -> str:
        reached.set()
        assert go.wait(60)
        return digest(view)

    monkeypatch.setattr(flush, "digest", slowly)
    one = Lone(tmp_path)
    trains(one, 1.0)
    capture(one, 0, 10)
    deadline = Deadline.after(600)
    making = asyncio.ensure_future(one.saves.make(10, Cause.PERIODIC, deadline=deadline))
    await in_thread(reached)
    deadline.at = Deadline.after(20).at
    one.saves.deadline_moved()
    await one.until(lambda: len(one.orders) > 1, "the flush has heard of it")
    go.set()
    assert (await making).finite is None
    assert [r.finite for r in one.commits()] == [None]
    await one.close()


async def test_a_save_that_an_evacuation_waits_for_does_not_look_any_more(tmp_path: Path) -> None:
    """It joins the periodic save of the boundary that it wants, whose own deadline stays."""
    one = Lone(tmp_path)
    trains(one, 1.0)
    capture(one, 0, 10)
    deadline = Deadline.after(600)
    job = one.writing._job(peers.FlushOrder(1, 1, 10, None, Cause.PERIODIC, False, deadline.at), deadline)
    assert job.looks()
    one.shared.record.evacuating = True
    assert not job.looks()
    await one.close()


async def test_a_try_that_had_the_time_to_look_and_one_that_had_not_are_the_same_checkpoint(tmp_path: Path) -> None:
    """The answer to the first commit was lost (A8, B1): what stands is what was saved, and is no other save in its place."""
    one = Lone(tmp_path)
    trains(one, 1.0)
    capture(one, 0, 10)
    await one.saves.make(10, Cause.PERIODIC, deadline=Deadline.after(60))
    (stands,) = one.commits()
    again = dataclasses.replace(
        stands, ranks=tuple(dataclasses.replace(e, finite=None) for e in stands.ranks), check=""
    )
    record, _ = saves._committing(one.shared, again, Stop())
    assert record == stands
    await one.close()
