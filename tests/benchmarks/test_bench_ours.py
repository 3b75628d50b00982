"""The harness's hold on Holdfast's own parts: when one of them changes its shape, this says so, before a benchmark leaves us out."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness import ours, settings, states
from benchmarks.harness.agent import Local
from benchmarks.harness.contender import Contender, Kind
from benchmarks.harness.crew import Outcome
from benchmarks.harness.report import Report
from holdfast_agent.threads import Threads
from holdfast_api.layout import CheckpointRef


@pytest.fixture
def state() -> states.State:
    return states.make(1)


def test_a_slot_is_copied_flushed_to_the_node_and_committed(state: states.State, tmp_path: Path) -> None:
    slot, threads = ours.Slot.of(state, tmp_path), Threads()
    node, store = ours.tier(tmp_path / "node"), ours.job_store(ours.Discarding())
    ours.claim(store)
    slot.copy()
    written = ours.flushed(slot, 1, store, node, threads)
    ours.commit(store, 1, written)
    assert written.node_durable_at is not None
    assert written.bytes_sent == slot.image_bytes > state.bytes
    assert store.read_commit(CheckpointRef(1, 1))[0].bytes_sent == slot.image_bytes
    threads.close()


def test_no_two_chunks_are_equal_and_a_touched_state_differs_everywhere(state: states.State) -> None:
    pieces = [bytes(t.numpy().tobytes()) for t in state.tensors.values()]
    assert len(set(pieces)) == len(pieces)
    states.touch(state.tensors)
    assert not {bytes(t.numpy().tobytes()) for t in state.tensors.values()} & set(pieces)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    agent = Local(tmp_path, "--every-steps", "4", rank={"model": "headed", "mebibytes": 1})
    yield agent
    agent.close()


def test_a_real_agent_and_a_real_rank_do_what_they_are_told(local: Local) -> None:
    local.wait_for_slots(int(local.ready["bytes"]), 1)
    assert local.tell("copy", threads=2)["seconds"] > 0
    found = local.tell("steps", count=3, change=True)
    assert (len(found["stalls"]), found["boundary"]) == (3, 4)
    local.wait_for_commits(1)


def test_results_are_not_written_when_holdfast_itself_was_left_out(tmp_path: Path) -> None:
    scale = settings.Scale(1, 1, 1, quick=False, trial=False)
    outcome = Outcome(Contender("Holdfast", Kind.OURS, lambda: iter(())), failure="ImportError: no such name")
    with pytest.raises(RuntimeError, match="Holdfast: ImportError"):
        Report("nvme_flush", tmp_path, [outcome], scale).write()
    assert list(tmp_path.iterdir()) == []
