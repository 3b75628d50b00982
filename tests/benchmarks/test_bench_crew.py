"""Contenders in processes of their own: interleaved, measured, and never lost without a reason."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness import crew
from benchmarks.harness.contender import Contender, Kind, Rounds, Sample
from benchmarks.harness.usage import anonymous_bytes, cpu_seconds, descendants, metered


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "SETTLE_SECONDS", 0.0)


def writing(name: str, log: Path) -> Contender:
    """Notes each round and each tidying."""

    def rounds() -> Rounds:
        with log.open("a") as file:
            number = 0
            yield None
            while True:
                file.write(f"{name}{number} ")
                file.flush()
                yield Sample(1.0, 1, 0.0, {"pid": os.getpid()})
                file.write(f"tidy-{name} ")
                file.flush()
                number += 1
                yield None

    return Contender(name, Kind.PEER, rounds)


def failing(when: str) -> Contender:
    def rounds() -> Iterator[Sample | None]:
        if when == "set-up":
            raise OSError(22, "Invalid argument")
        yield None
        yield Sample(1.0, 1, 0.0)
        yield None
        if when == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("broken in its second round")

    return Contender(f"fails: {when}", Kind.PEER, rounds)


def test_rounds_are_interleaved_in_rotated_order_and_each_tidies_before_the_next_begins(tmp_path: Path) -> None:
    log = tmp_path / "log"
    outcomes = crew.compete([writing("a", log), writing("b", log)], 2, tmp_path, say=lambda _: None)
    assert log.read_text().split() == [
        "a0",
        "tidy-a",
        "b0",
        "tidy-b",
        "b1",
        "tidy-b",
        "a1",
        "tidy-a",
        "a2",
        "tidy-a",
        "b2",
        "tidy-b",
    ]
    assert [len(o.samples) for o in outcomes] == [2, 2]
    assert [len(o.early) for o in outcomes] == [1, 1]
    assert len({s.extra["pid"] for o in outcomes for s in o.samples} | {os.getpid()}) == 3


@pytest.mark.parametrize(
    ("when", "words"),
    [("set-up", "Invalid argument"), ("round", "broken in its second round"), ("killed", "ended")],
)
def test_one_that_fails_is_left_out_with_its_reason_and_the_others_go_on(tmp_path: Path, when: str, words: str) -> None:
    outcomes = crew.compete([failing(when), writing("b", tmp_path / "log")], 3, tmp_path, say=lambda _: None)
    assert words in outcomes[0].failure
    assert outcomes[1].failure == ""
    assert len(outcomes[1].samples) == 3


def test_one_that_hangs_is_ended_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "ROUND_SECONDS", 0.3)
    monkeypatch.setattr(crew, "END_SECONDS", 0.3)

    def rounds() -> Iterator[Sample | None]:
        yield None
        while True:
            time.sleep(0.1)

    outcomes = crew.compete([Contender("hangs", Kind.PEER, rounds)], 1, tmp_path, say=lambda _: None)
    assert "did not answer" in outcomes[0].failure


def test_nothing_of_a_contender_is_left_when_it_is_over(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def rounds() -> Iterator[Sample | None]:
        if not (child := os.fork()):
            time.sleep(600)
        pids.write_text(f"{os.getpid()} {child}")
        while True:
            yield None
            yield Sample(1.0, 1, 0.0)

    crew.compete([Contender("forks", Kind.PEER, rounds)], 1, tmp_path, say=lambda _: None)
    for pid in map(int, pids.read_text().split()):
        gone = (
            not Path(f"/proc/{pid}").exists()
            or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        )
        for _ in range(200):
            if gone:
                break
            time.sleep(0.02)
            gone = not Path(f"/proc/{pid}").exists()
        assert gone


def test_processor_time_of_children_counts_while_they_live_and_after_they_ended() -> None:
    def spin(seconds: float) -> None:
        until = time.process_time() + seconds
        while time.process_time() < until:
            pass

    ready, told = os.pipe()
    with metered(1) as work:
        if not (child := os.fork()):
            spin(0.2)
            os.write(told, b"x")
            time.sleep(600)
        os.read(ready, 1)
        assert descendants(os.getpid()).count(child) == 1
    os.kill(child, signal.SIGKILL)
    before = cpu_seconds()
    os.waitpid(child, 0)
    assert work.cpu_seconds >= 0.15
    assert cpu_seconds() >= before - 0.05, "what an ended child has used is still counted"


def test_anonymous_memory_is_read_from_the_kernel_and_is_zero_of_the_dead() -> None:
    before = anonymous_bytes(os.getpid())
    held = bytearray(64 << 20)
    assert anonymous_bytes(os.getpid()) - before > 50 << 20
    del held
    assert anonymous_bytes(1 << 22) == 0
