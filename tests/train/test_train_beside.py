"""I3, I5, I7: saves that a GPU copies beside training, and copies in the middle of a step of a loop on a GPU. A fake GPU is told when to come how far; the
same over CUDA is in test_train_gpu.py."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent, Image
from fake_gpu import FakeStreams, gpu, looks_far
from test_train_midstep import (
    LOOPS,
    Loop,
    captured_in_round,
    caught_in_the_middle,
    content,
    left_for_the_boundary,
    one_round,
    reference,
    same_content,
    until,
)
from torch import nn

from holdfast import audit, capture_mode, device, download
from holdfast.load import open_image
from holdfast_api import names, ranks

__all__ = ["gpu"]


@pytest.fixture
def loop(agent: FakeAgent, gpu: FakeStreams) -> Iterator[Loop]:
    """Audited; saves at every tenth boundary, and the next is one."""
    made = Loop().audited(agent)
    assert made.kind == "mid-step", made.ckpt._run
    made.ckpt._every = 10
    made.iterate(9 - made.ckpt.boundary % 10)
    gpu.calls.clear()
    yield made
    gpu.let_go()


def state_of(loop: Loop) -> dict[str, torch.Tensor]:
    found = {f"model.{k}": v.clone() for k, v in loop.model.state_dict().items()}
    for i, state in enumerate(loop.optimizer.state.values()):
        found |= {f"optimizer.state.{i}.{k}": v.clone() for k, v in state.items()}
    return found


def tensors_of(image: Image) -> dict[str, torch.Tensor]:
    return open_image(str(image.path), image.path.stat().st_size, image.entries)


def holds(image: Image, state: dict[str, torch.Tensor]) -> bool:
    tensors = tensors_of(image)
    return all(torch.equal(tensors[n], t) for n, t in state.items())


def saved(agent: FakeAgent, boundary: int) -> Image:
    agent.wait(lambda: boundary in agent.images[0], f"boundary {boundary}")
    return agent.images[0][boundary]


def test_a_save_returns_before_it_is_copied_and_holds_the_boundary_all_the_same(
    agent: FakeAgent, gpu: FakeStreams, loop: Loop
) -> None:
    """I3: the forward changes BatchNorm's statistics and draws random numbers, the update changes everything, while the copy has not begun."""
    gpu.hold()
    loop.iterate()
    at, state = loop.ckpt.boundary, state_of(loop)
    assert gpu.pending == 1
    document = loop.ckpt._registry.capture(loop.ckpt._progress, window_open=False).document
    assert at not in agent.images[0], "not told before it is there"
    loop.iterate()
    assert not holds_now(loop, state)
    image = saved(agent, at)
    assert image.kind == "periodic"
    assert holds(image, state)
    assert image.message.stall_seconds is not None
    text = tensors_of(image)["holdfast.state.json"].numpy().tobytes().rstrip()
    assert len(text) > 100
    assert document["progress"]["boundary"] == at


def holds_now(loop: Loop, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(state_of(loop)[n], t) for n, t in state.items())


def test_the_update_is_held_back_on_the_device_and_not_on_the_host(
    agent: FakeAgent, gpu: FakeStreams, loop: Loop
) -> None:
    """I3: the gate. Without it the copy would be executed after the update."""
    gpu.hold()
    loop.iterate()
    at, state = loop.ckpt.boundary, state_of(loop)
    loop.model(torch.randn(4, 8)).square().mean().backward()
    assert gpu.pending == 1, "nothing has waited so far"
    assert not any(c.startswith("hold back") for c in gpu.calls)
    loop.optimizer.step()
    assert any(c.startswith("hold back") for c in gpu.calls)
    gpu.let_go()
    assert holds(saved(agent, at), state)


def test_every_optimizer_is_held_back_not_only_the_first_of_an_iteration(
    agent: FakeAgent, gpu: FakeStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two optimizers may be stepped on two streams."""
    other = nn.Linear(8, 8)
    second = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.5)
    loop = Loop(other=other, second=second)

    def update() -> None:
        Loop.update(loop)
        other(torch.ones(1, 8)).sum().backward()
        gpu.calls.append("second")
        second.step()
        second.zero_grad()

    loop.update = update  # type: ignore[method-assign]
    loop.audited(agent)
    assert loop.kind == "mid-step"
    loop.ckpt._every = 1
    beside, go_on = loop.ckpt._saver.beside, threading.Event()  # type: ignore[union-attr]
    finish = beside._finish

    def late(copy: Any) -> None:
        """Nobody has noticed yet that the copy is done."""
        go_on.wait(60)
        finish(copy)

    monkeypatch.setattr(beside, "_finish", late)
    loop.iterate()
    loop.middle = gpu.calls.clear
    thread = threading.Thread(target=loop.iterate, daemon=True)
    thread.start()  # the next save waits for this one
    until(lambda: sum(c.startswith("hold back") for c in gpu.calls) >= 3)
    order = [c for c in gpu.calls if c == "second" or c.startswith("hold back")]
    assert order[0].startswith("hold back")
    assert order[order.index("second") + 1].startswith("hold back")
    go_on.set()
    thread.join(60)


class Foreign(torch.optim.SGD):
    """An optimizer of another library: it may have streams of its own."""


def test_an_optimizer_that_is_not_of_torch_waits_on_the_host(agent: FakeAgent, gpu: FakeStreams) -> None:
    loop = Loop(lambda p: Foreign(p, lr=0.1, momentum=0.9)).audited(agent)
    assert loop.kind == "mid-step"
    loop.ckpt._every = 10
    loop.iterate(9 - loop.ckpt.boundary % 10)
    gpu.hold()
    loop.iterate()
    at, state = loop.ckpt.boundary, state_of(loop)
    thread = threading.Thread(target=loop.iterate, daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive(), "it waits until the copy is done"
    assert holds_now(loop, {n: t for n, t in state.items() if "weight" in n})
    gpu.let_go()
    thread.join(60)
    assert holds(saved(agent, at), state)


WRITES: dict[str, Callable[[Loop], object]] = {
    "weights exchanged for an evaluation": lambda loop: [p.data.mul_(0.5) for p in loop.model.parameters()],
    "the state of the optimizer": lambda loop: [s["exp_avg"].mul_(2) for s in loop.optimizer.state.values()],
}


@pytest.mark.parametrize("what", WRITES)
def test_what_was_written_to_past_the_gate_is_not_handed_over_and_the_next_boundary_is_saved(
    agent: FakeAgent, gpu: FakeStreams, loop: Loop, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """I5: each copy is looked at while it is made."""
    gpu.hold()
    loop.iterate()
    at = loop.ckpt.boundary
    WRITES[what](loop)
    gpu.let_go()
    loop.ckpt._saver.beside.settle()  # type: ignore[union-attr]
    loop.iterate()
    image = saved(agent, loop.ckpt.boundary)
    assert at not in agent.images[0]
    assert image.message.stall_seconds is None, "copied by the main thread"
    assert f"the save of boundary {at} is made at the next one" in caplog.text


def test_a_large_buffer_that_torch_counts_a_write_to_is_not_handed_over(
    agent: FakeAgent, gpu: FakeStreams, caplog: pytest.LogCaptureFixture
) -> None:
    """I5: a few rows of a table, where no fingerprint looks."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.register_buffer("table", torch.zeros(40_000, 8))
            self.writes = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.writes:
                self.table[7].add_(1)  # type: ignore[index]
            out: torch.Tensor = self.layer(x)
            return out

    model = Table()
    loop = Loop(model=model).audited(agent)
    assert loop.kind == "mid-step", loop.ckpt._run
    loop.ckpt._every = 10
    loop.iterate(9 - loop.ckpt.boundary % 10)
    gpu.hold()
    loop.iterate()
    at = loop.ckpt.boundary
    model.writes = True
    loop.middle = gpu.let_go
    loop.iterate()
    loop.ckpt._saver.beside.settle()  # type: ignore[union-attr]
    assert at not in agent.images[0]
    assert "model.table was written to" in caplog.text


def test_a_copy_that_fails_ends_in_a_message_and_its_slot_is_free_again(
    agent: FakeAgent, gpu: FakeStreams, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.failure = "CUDA error: an illegal memory access was encountered"
    gpu.hold()
    loop.iterate()
    at = loop.ckpt.boundary
    gpu.let_go()
    loop.ckpt._saver.beside.settle()  # type: ignore[union-attr]
    assert at not in agent.images[0]
    assert "illegal memory access" in caplog.text
    assert loop.ckpt._saver.arena.idle  # type: ignore[union-attr]


def test_a_round_that_comes_while_a_save_is_copied_takes_that_one(
    agent: FakeAgent, gpu: FakeStreams, loop: Loop
) -> None:
    agent.keep_slots = True
    gpu.hold()
    loop.iterate()
    at, state = loop.ckpt.boundary, state_of(loop)

    def middle() -> None:
        agent.wait(lambda: (0, 1) in agent.votes, "the vote")
        gpu.let_go()
        agent.wait(captured_in_round(agent), "the round's copy")

    loop.middle = middle
    with one_round(agent, 1) as result:
        loop.iterate()
    assert result == [at, at]
    slots = {c.slot for _, c in agent.captured if c.boundary == at}
    assert len(slots) == 1, "it was copied once"
    assert holds(agent.images[0][at], state)


def test_a_slot_that_is_being_filled_is_not_taken_for_another_capture(
    agent: FakeAgent, gpu: FakeStreams, loop: Loop
) -> None:
    gpu.hold()
    loop.iterate()
    arena = loop.ckpt._saver.arena  # type: ignore[union-attr]
    assert arena is not None
    other = arena.acquire()
    assert arena.acquire_within(0.01) is None
    arena.free(other)
    gpu.let_go()


def test_a_changed_layout_waits_for_the_copy(agent: FakeAgent, gpu: FakeStreams, loop: Loop) -> None:
    """I9: the slots of the old plan go away."""
    gpu.hold()
    loop.iterate()
    at, state = loop.ckpt.boundary, state_of(loop)
    loop.model.register_buffer("late", torch.ones(3))
    thread = threading.Thread(target=lambda: loop.ckpt._saver.capture("periodic"), daemon=True)  # type: ignore[union-attr]
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    gpu.let_go()
    thread.join(60)
    assert not thread.is_alive()
    agent.wait(
        lambda: sum(c.boundary == at for _, c in agent.captured) == 2,
        "the copy, and the same boundary in the new layout",
    )
    assert holds(agent.images[0][at], state)


def test_finish_hands_over_what_is_under_way(agent: FakeAgent, gpu: FakeStreams, loop: Loop) -> None:
    gpu.hold()
    loop.iterate()
    at, state = loop.ckpt.boundary, state_of(loop)
    thread = threading.Thread(target=loop.ckpt.finish, daemon=True)
    thread.start()
    thread.join(0.3)
    gpu.let_go()
    thread.join(60)
    assert not thread.is_alive()
    assert [(c.boundary, c.kind) for _, c in agent.captured if c.boundary == at] == [(at, "periodic")]
    assert holds(agent.images[0][at], state)


def test_metrics_of_a_device_are_read_when_the_copy_is_done(agent: FakeAgent, gpu: FakeStreams, loop: Loop) -> None:
    gpu.hold()
    loop.iterate(0)
    loop.model(torch.randn(4, 8)).square().mean().backward()
    loop.update()
    loss = torch.tensor([0.25])
    loop.ckpt.step(loss=loss)
    loss.fill_(9.0)  # accumulated further
    at = loop.ckpt.boundary
    gpu.let_go()
    assert saved(agent, at).message.metrics["loss"] == 0.25


def test_after_three_failures_in_a_row_saves_are_copied_by_the_main_thread(
    agent: FakeAgent, gpu: FakeStreams, loop: Loop
) -> None:
    loop.ckpt._every = 1
    beside = loop.ckpt._saver.beside  # type: ignore[union-attr]
    failed = 0
    while beside.possible and failed < 10:
        gpu.hold()
        loop.iterate()
        at = loop.ckpt.boundary
        for p in loop.model.parameters():
            p.data.mul_(0.5)
        gpu.let_go()
        beside.settle()
        failed += at not in agent.images[0]
        beside.owed = False  # the next one goes beside training again
    assert failed == 3
    assert not beside.possible
    loop.iterate()
    assert saved(agent, loop.ckpt.boundary).message.stall_seconds is None


# In the middle of a step


@pytest.mark.parametrize("name", LOOPS)
def test_a_copy_in_the_middle_of_a_step_is_bit_by_bit_the_boundary(
    agent: FakeAgent, gpu: FakeStreams, name: str
) -> None:
    """I2, I6, as on the CPU."""
    loop = LOOPS[name]().audited(agent)
    assert loop.kind == "mid-step", loop.ckpt._run
    want = reference(agent, loop)
    image = caught_in_the_middle(agent, loop)
    different = [n for n, v in content(want).items() if content(image)[n] != v]
    assert not different
    assert image.path.read_bytes() == want.path.read_bytes()


def test_threads_that_use_the_device_leave_captures_alone(
    agent: FakeAgent, gpu: FakeStreams, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I7: each has switched to the relaxed mode before its first call, or a notice would spoil the capture of a user's graph."""
    relaxed: list[str] = []
    monkeypatch.setattr(capture_mode, "relax", lambda: relaxed.append(threading.current_thread().name) or True)
    calls = gpu.calls
    seen: list[tuple[str, bool]] = []
    give = gpu.give

    def noted(work: Callable[[], None]) -> None:
        name = threading.current_thread().name
        seen.append((name, name in relaxed or name == "MainThread"))
        give(work)

    monkeypatch.setattr(gpu, "give", noted)
    caught_in_the_middle(agent, loop)
    while loop.ckpt.boundary % 10:
        loop.iterate()
    saved(agent, loop.ckpt.boundary)
    assert calls
    assert {name for name, _ in seen} == {"holdfast-midstep", "MainThread"}
    assert all(good for _, good in seen)
    assert {"holdfast-midstep", "holdfast-beside"} <= set(relaxed)


def test_the_vote_waits_for_no_device(agent: FakeAgent, gpu: FakeStreams, loop: Loop) -> None:
    """E2: a peer may be needed before the device comes to the boundary."""
    loop.iterate()  # over the periodic save
    loop.ckpt._saver.beside.settle()  # type: ignore[union-attr]
    gpu.calls.clear()
    gpu.hold()
    agent.connections[0].send(ranks.CloseGate(round=1, lease_seconds=60))
    agent.wait(lambda: (0, 1) in agent.votes, "the vote")
    assert agent.votes[(0, 1)].boundary == loop.ckpt.boundary
    assert not gpu.calls
    gpu.let_go()
    agent.open_gates(1)


def test_weights_written_in_the_middle_of_a_step_are_found_on_the_device(
    agent: FakeAgent, gpu: FakeStreams, loop: Loop
) -> None:
    """I5: the fingerprint; `.data` writes move no version counter."""
    loop.iterate()
    at = loop.ckpt.boundary
    for p in loop.model.parameters():
        p.data.add_(1)
    agent.connections[0].send(ranks.CloseGate(round=1, lease_seconds=60))
    agent.wait(lambda: (0, 1) in agent.votes, "the vote")
    agent.connections[0].send(ranks.ReleaseGate(round=1, target=at))
    agent.wait(lambda: agent.votes[(0, 1)].boundary == at + 1, "the vote taken back")
    assert not captured_in_round(agent)()
    agent.open_gates(1)


def test_in_eval_a_loop_on_a_gpu_is_left_for_the_boundary(agent: FakeAgent, gpu: FakeStreams, loop: Loop) -> None:
    """I5: nobody audits an evaluation there yet."""
    loop.iterate()
    loop.model.eval()
    assert not loop.ckpt._mid.ready()  # type: ignore[union-attr]
    loop.model.train()
    assert loop.ckpt._mid.ready()  # type: ignore[union-attr]


def test_updates_past_the_gate_are_found_a_boundary_later_without_waiting(
    agent: FakeAgent, gpu: FakeStreams, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    """I4: replays of a graph."""

    def update() -> None:
        for parameter in loop.model.parameters():
            parameter.data.sub_(parameter.grad * 0.1)
        loop.optimizer.zero_grad()

    loop.update = update  # type: ignore[method-assign]
    loop.iterate(3)
    assert (loop.kind, loop.ckpt._run["loop_kind"]) == ("boundary-only", "updates past the gate")
    left_for_the_boundary(agent, loop)


def test_a_step_that_is_captured_makes_the_loop_boundary_only(
    agent: FakeAgent, gpu: FakeStreams, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I4: known at the capture, before a replay has bypassed the gate."""
    update = loop.update

    def captured() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(device, "capturing", lambda: True)
            update()

    loop.update = captured  # type: ignore[method-assign]
    loop.iterate()
    assert (loop.kind, loop.ckpt._run["loop_kind"]) == ("boundary-only", "graph of the update")


def test_a_step_inside_a_capture_saves_nothing_and_says_so(
    agent: FakeAgent, gpu: FakeStreams, loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device, "capturing", lambda: True)
    at = loop.ckpt.boundary
    loop.ckpt.step()
    assert at + 1 not in agent.images[0]
    assert "NOTHING IS SAVED THERE" in caplog.text


def test_state_that_another_stream_still_writes_at_the_boundary_is_boundary_only(
    agent: FakeAgent, gpu: FakeStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I3: an average that is updated on a stream of its own, which the current one does not wait for."""
    loop = Loop()
    weight = loop.model.body[0].weight

    def synchronize(tensors: Any) -> None:
        with torch.no_grad():
            weight.add_(0.125)  # what was still on its way

    monkeypatch.setattr(device, "synchronize", synchronize)
    loop.audited(agent)
    assert loop.kind == "boundary-only"
    assert "is written on a CUDA stream" in loop.ckpt._run["loop_why"]


def test_the_side_stream_can_be_switched_off(
    agent: FakeAgent, gpu: FakeStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(names.ENV_SIDE_STREAM, "off")
    loop = Loop().audited(agent)
    assert (loop.kind, names.ENV_SIDE_STREAM in loop.ckpt._run["loop_why"]) == ("boundary-only", True)
    loop.ckpt._every = 1
    loop.iterate()
    assert holds(saved(agent, loop.ckpt.boundary), state_of(loop))
    assert not gpu.calls


# The copy itself


def test_memory_that_a_script_exchanged_before_the_boundary_is_saved_as_it_is_now(
    agent: FakeAgent, gpu: FakeStreams, loop: Loop
) -> None:
    """I9: the list says where the state lay when it was made."""
    weight = loop.model.body[0].weight
    loop.model(torch.randn(4, 8)).square().mean().backward()
    loop.update()
    weight.data = weight.data + 1.0
    loop.ckpt.step()
    assert holds(saved(agent, loop.ckpt.boundary), state_of(loop))


def test_a_step_that_is_captured_waits_on_the_host(
    agent: FakeAgent, gpu: FakeStreams, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I7: an event from outside would spoil the capture."""
    gpu.hold()
    loop.iterate()
    at, state = loop.ckpt.boundary, state_of(loop)
    loop.model(torch.randn(4, 8)).square().mean().backward()
    monkeypatch.setattr(device, "capturing", lambda: True)
    thread = threading.Thread(target=loop.optimizer.step, daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    assert not any(c.startswith("hold back") for c in gpu.calls)
    gpu.let_go()
    thread.join(60)
    assert holds(saved(agent, at), state)


def test_no_audit_is_judged_inside_a_capture(
    agent: FakeAgent, gpu: FakeStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I7: that would wait for the device."""
    loop = Loop()
    mid = loop.ckpt._mid
    assert mid is not None
    while mid._audit is None:
        loop.iterate()
        time.sleep(0.01)
    monkeypatch.setattr(audit.Audit, "changed", lambda self: pytest.fail("looked at inside a capture"))
    with monkeypatch.context() as patch:
        patch.setattr(device, "capturing", lambda: True)
        loop.optimizer.step()
    assert mid._audit is None


def test_what_an_update_writes_to_buffers_after_the_gate_is_no_write_into_the_copy(
    agent: FakeAgent, gpu: FakeStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I8: an average of the weights in buffers, updated after the optimizer. Torch counts that write, and it comes after the copy."""
    model = nn.Linear(8, 8)
    model.register_buffer("average", torch.zeros(40_000))
    loop = Loop(model=model)

    def update() -> None:
        Loop.update(loop)
        model.average.add_(1)  # type: ignore[operator]
        after()

    after: Callable[[], object] = lambda: None  # noqa: E731
    loop.update = update  # type: ignore[method-assign]
    loop.audited(agent)
    assert (loop.kind, loop.ckpt._run["loop_why"]) == ("mid-step", "")
    loop.ckpt._every = 10
    loop.iterate(9 - loop.ckpt.boundary % 10)
    beside, go_on = loop.ckpt._saver.beside, threading.Event()  # type: ignore[union-attr]
    finish = beside._finish
    monkeypatch.setattr(beside, "_finish", lambda copy: (go_on.wait(60), finish(copy)))
    gpu.hold()
    loop.iterate()
    at, state = loop.ckpt.boundary, state_of(loop)
    after = lambda: (go_on.set(), saved(agent, at))  # noqa: E731
    loop.iterate()
    assert holds(saved(agent, at), state)


def test_a_boundary_that_a_round_has_taken_is_not_saved_again(agent: FakeAgent, gpu: FakeStreams, loop: Loop) -> None:
    saver, mid = loop.ckpt._saver, loop.ckpt._mid
    assert saver is not None
    assert mid is not None
    assert mid._live is not None
    assert mid._noting is not None
    saver.newest = loop.ckpt.boundary
    gpu.calls.clear()
    assert saver.capture_beside(mid._live, mid._noting, {})
    assert "give" not in gpu.calls
    assert saver.arena is not None
    assert saver.arena.idle


def test_small_tensors_go_as_one_and_large_ones_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """I7: a constant number of calls, however many there are."""
    monkeypatch.setattr(download, "SEGMENT_BYTES", 1 << 20)
    sources: dict[str, torch.Tensor] = {f"s{i}": torch.randn(i % 7 + 1) for i in range(1000)}
    sources |= {"huge": torch.randn(900_000), "half": torch.randn(300_000).bfloat16(), "flags": torch.rand(5) > 0.5}
    sources |= {"strided": torch.randn(30, 40).t(), "conj": torch.randn(5, dtype=torch.complex64).conj()}
    sources |= {"between large ones": torch.randn(500, 600).t(), "large again": torch.randn(400_000)}
    sources |= {"neg": torch.randn(5, dtype=torch.complex64).conj().imag, "zero-dim": torch.tensor(3.0)}
    sources |= {"f8": torch.randn(9).to(torch.float8_e4m3fn), "big strided": torch.randn(600, 500).t()}
    offsets, at = {}, 64
    for name, tensor in sources.items():
        offsets[name] = at
        at += tensor.nbytes + -tensor.nbytes % 64
    slot = torch.zeros(at, dtype=torch.uint8)
    calls: list[str] = []
    copy, each = torch.Tensor.copy_, torch._foreach_copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda *a, **k: (calls.append("copy"), copy(*a, **k))[1])
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *a, **k: (calls.append("each"), each(*a, **k))[1])
    made = download.Download(sources, offsets)
    made.stage()
    made.copy(slot)
    assert made.finish(slot) == ""
    assert len(calls) < 20
    monkeypatch.undo()
    for name, tensor in sources.items():
        place = slot[offsets[name] : offsets[name] + tensor.nbytes]
        assert torch.equal(place.view(tensor.dtype).view(tensor.shape), tensor), name


def test_a_write_between_the_note_and_the_end_of_a_segment_is_seen() -> None:
    source = torch.zeros(200_000)
    made = download.Download({"a": source}, {"a": 0})
    slot = torch.zeros(source.nbytes, dtype=torch.uint8)
    made.stage()
    source[100_000] = 1
    made.copy(slot)
    assert "written to while they were copied" in made.finish(slot)
    assert made.written() == "a"


def test_looks_far_is_what_the_tests_mean() -> None:
    assert looks_far(torch.zeros(3))
    assert not looks_far(torch.tensor(1.0))
    assert not looks_far(torch.zeros(3, dtype=torch.int64))


def test_the_log_is_quiet_in_a_plain_loop(
    agent: FakeAgent, gpu: FakeStreams, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    loop = Loop().audited(agent)
    loop.ckpt._every = 2
    loop.iterate(20)
    loop.ckpt.finish()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert same_content(agent.newest(), agent.newest())
