"""I1-I9 on the CPU with real torch: copies between two update windows are whole, and what cannot be copied so is left for the next boundary.

Each loop here stands in the middle of an iteration when a round comes, and goes on only when the round has its copy, or shows that it waits.
"""

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent, Image
from torch import nn

import holdfast
from holdfast import audit, midstep
from holdfast.load import open_image
from holdfast_api import names, ranks

AUDITED = 12
"""Iterations after which a loop that can be copied between windows is."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(x)
        return out


class Loop:
    """Written as a user would; `middle` runs between backward and the first update of every iteration."""

    def __init__(self, make: Callable[[Any], Any] = lambda p: torch.optim.AdamW(p, lr=1e-2), **parts: Any) -> None:
        torch.manual_seed(3)
        model = parts.pop("model", None)
        self.model = Net() if model is None else model
        self.optimizer = make(self.model.parameters())
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.ckpt = holdfast.Checkpointer(model=self.model, optimizer=self.optimizer, scheduler=self.scheduler, **parts)
        self.middle: Callable[[], object] = lambda: None
        self.start: Callable[[], object] = lambda: None
        self.ckpt.restore()

    def iterate(self, times: int = 1) -> None:
        for _ in range(times):
            self.start()
            self.model(torch.randn(4, 8)).square().mean().backward()
            self.middle()
            self.update()
            self.ckpt.step()

    def update(self) -> None:
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def audited(self, agent: FakeAgent) -> "Loop":
        """Trains until its class is settled; then every boundary's state is one that a copy must equal."""
        agent.wait(lambda: bool(agent.connections), "hello")
        mid = self.ckpt._mid
        assert mid is not None
        for n in range(10 * AUDITED):
            if n >= AUDITED and (self.kind == "mid-step" or mid.judgement.final):
                break
            self.iterate()
            time.sleep(0.01)  # the agent makes the slots meanwhile
        return self

    @property
    def kind(self) -> str:
        return str(self.ckpt._run["loop"])


def content(image: Image) -> dict[str, Any]:
    """Bytes of every tensor by name, the document of the small state among them."""
    tensors = open_image(str(image.path), image.path.stat().st_size, image.entries)
    return {n: t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for n, t in tensors.items()}


def same_content(image: Image, other: Image) -> bool:
    return content(image) == content(other)


@contextmanager
def one_round(agent: FakeAgent, number: int, world: int = 1) -> Iterator[list[int]]:
    """A round that runs beside the `with` block; its target, and what was captured, are in the list after it."""
    result: list[int] = []

    def run() -> None:
        result.append(agent.start_round(number, world=world))
        result.extend(agent.await_round(number, world=world).values())
        agent.open_gates(number)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield result
    thread.join(60)
    assert len(result) == 1 + world, "the round did not end"


def captured_in_round(agent: FakeAgent, number: int = 1) -> Callable[[], bool]:
    return lambda: any(c.round == number for _, c in agent.captured)


def caught_in_the_middle(agent: FakeAgent, loop: Loop, number: int = 1) -> Image:
    """The round comes between backward and update, and is over before the update begins."""
    at = loop.ckpt.boundary
    loop.middle = lambda: agent.wait(captured_in_round(agent, number), "a copy in the middle of the step")
    with one_round(agent, number) as result:
        agent.wait(lambda: (0, number) in agent.votes, "the vote")
        loop.iterate()
    loop.middle = lambda: None
    assert result == [at, at]
    return agent.images[0][at]


def left_for_the_boundary(agent: FakeAgent, loop: Loop, number: int = 1) -> Image:
    """The same, where the loop may only be copied at its next boundary."""
    at = loop.ckpt.boundary

    def middle() -> None:
        agent.wait(lambda: (0, number) in agent.votes, "the vote")
        assert not captured_in_round(agent, number)()

    loop.middle = middle
    with one_round(agent, number) as result:
        loop.iterate()
    loop.middle = lambda: None
    assert result == [at + 1, at + 1]
    return agent.images[0][at + 1]


def reference(agent: FakeAgent, loop: Loop) -> Image:
    """The state at this boundary, copied by the main thread as at every periodic save."""
    assert loop.ckpt._saver is not None
    boundary = loop.ckpt.boundary
    loop.ckpt._registry.updated = loop.ckpt._window_closed  # as it was inside step()
    loop.ckpt._saver.capture("periodic")
    loop.ckpt._registry.updated = False
    agent.wait(lambda: boundary in agent.images[0], "the reference")
    image = agent.images[0].pop(boundary)
    kept = image.path.with_suffix(".reference")
    image.path.rename(kept)
    # The slot holds this boundary now; forgotten, so that a copy in the middle really copies.
    assert loop.ckpt._saver.arena is not None
    for slot in loop.ckpt._saver.arena.slots:
        slot.holds = None
    return Image(kept, boundary, "reference", image.entries, image.message)


LOOPS: dict[str, Callable[[], Loop]] = {
    "a plain loop with dropout and batch norm, whose statistics a forward changes": Loop,
    "fused AdamW": lambda: Loop(lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True)),
    "foreach AdamW": lambda: Loop(lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True)),
    "a learning rate that is a tensor": lambda: Loop(lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2))),
    "SGD with momentum": lambda: Loop(lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9)),
    "a generator, a value and a noise generator of NumPy": lambda: Loop(
        noise=torch.Generator().manual_seed(1), best=holdfast.Value([1.0, {"a": [2]}])
    ),
    "channels-last weights": lambda: Loop(model=Convolution()),
    "parameters of no elements, of no dimension, complex and of bfloat16": lambda: Loop(model=Odd()),
}  # fmt: skip


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        self.register_buffer("table", torch.arange(40_000.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(x.view(4, 2, 2, 2)) + self.table[0]  # type: ignore[index]
        return out


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.empty(0, 8))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.turn = nn.Parameter(torch.randn(8, dtype=torch.complex64))
        self.brief = nn.Parameter(torch.randn(8, dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("seen", torch.empty(0, dtype=torch.bool))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        out: torch.Tensor = x * self.scale * self.turn.abs() + self.brief.float() + self.none.sum()
        return out


@pytest.mark.parametrize("name", LOOPS)
def test_a_copy_in_the_middle_of_a_step_is_bit_by_bit_the_boundary(agent: FakeAgent, name: str) -> None:
    """I2, I6: the image of a copy made between backward and update is the one that the boundary path makes at that boundary."""
    loop = LOOPS[name]().audited(agent)
    assert loop.kind == "mid-step", loop.ckpt._run
    want = reference(agent, loop)
    image = caught_in_the_middle(agent, loop)
    assert content(image).keys() == content(want).keys()
    different = [n for n, v in content(want).items() if content(image)[n] != v]
    assert not different
    assert image.path.read_bytes() == want.path.read_bytes()


def test_the_agent_knows_of_the_boundary_before_it_hears_the_vote_for_it(agent: FakeAgent) -> None:
    """E3: what it plans with must not be a whole step where none has to end."""
    loop = Loop().audited(agent)
    for number in range(1, 6):
        loop.iterate()
        agent.connections[0].send(ranks.CloseGate(round=number, lease_seconds=60))
        agent.wait(lambda n=number: (0, n) in agent.votes, "the vote")  # type: ignore[misc]
        heard = [m for m in agent.connections[0].messages if isinstance(m, ranks.Passed | ranks.Vote)]
        assert heard[-1] == ranks.Vote(round=number, boundary=loop.ckpt.boundary)
        assert [m.boundary for m in heard if isinstance(m, ranks.Passed)][-1] == loop.ckpt.boundary
        agent.open_gates(number)


def test_both_slots_are_used_and_many_rounds_give_whole_states(agent: FakeAgent) -> None:
    loop = Loop().audited(agent)
    for number in range(1, 9):
        want = reference(agent, loop)
        assert same_content(caught_in_the_middle(agent, loop, number), want)
        loop.iterate(number % 3)
        if number % 2:  # the next two captures take the slots the other way round
            reference(agent, loop)
    slots = {c.slot for _, c in agent.captured if c.kind == "round"}
    assert slots == {0, 1}


def test_a_skipped_step_of_the_scaler_moves_the_boundary_and_not_the_weights(agent: FakeAgent) -> None:
    """I1: the boundary after a skip is another state (scale, generators, schedule), and can be copied although no window was entered."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    loop = Loop(scaler=scaler)
    bad = [False]

    def iterate(times: int = 1) -> None:
        for _ in range(times):
            loss = loop.model(torch.randn(4, 8)).square().mean() * (float("inf") if bad[0] else 1.0)
            scaler.scale(loss).backward()
            loop.middle()
            scaler.step(loop.optimizer)
            scaler.update()
            loop.scheduler.step()
            loop.optimizer.zero_grad()
            loop.ckpt.step()

    loop.iterate = iterate  # type: ignore[method-assign]
    loop.audited(agent)
    assert loop.kind == "mid-step", loop.ckpt._run
    before = scaler.get_scale()
    updates = loop.ckpt._progress.updates
    bad[0] = True
    loop.iterate()
    bad[0] = False
    assert (scaler.get_scale(), loop.ckpt._progress.updates) == (before / 2, updates)
    want = reference(agent, loop)
    assert same_content(caught_in_the_middle(agent, loop), want)


def test_open_gradients_are_kept_by_stopping_at_the_micro_boundary(agent: FakeAgent) -> None:
    """I2: never by a copy during backward."""
    loop = Loop()
    count = [0]

    def update() -> None:
        count[0] += 1
        if count[0] % 3 == 0:
            Loop.update(loop)

    loop.update = update  # type: ignore[method-assign]
    loop.audited(agent)
    assert loop.kind == "mid-step", loop.ckpt._run
    while count[0] % 3 != 1:
        loop.iterate()
    image = left_for_the_boundary(agent, loop)
    assert any(e.name.startswith("gradient.") for e in image.entries)
    loop.iterate(30)  # the layout without gradients comes back when it is needed; training goes on meanwhile


def test_after_a_micro_boundary_the_round_may_still_have_the_update_boundary_it_was_promised(agent: FakeAgent) -> None:
    """I2: the vote came before the micro-batch ended; its boundary must wait while the one before is copied."""
    loop = Loop()
    skip = [False]
    loop.update = lambda: None if skip[0] else Loop.update(loop)  # type: ignore[method-assign]
    loop.audited(agent)
    at = loop.ckpt.boundary
    want = reference(agent, loop)
    agent.connections[0].send(ranks.CloseGate(round=1, lease_seconds=60))
    agent.wait(lambda: (0, 1) in agent.votes, "the vote")
    assert agent.votes[(0, 1)].boundary == at
    skip[0] = True
    thread = threading.Thread(target=loop.iterate, daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive(), "it stands at the micro boundary"
    agent.connections[0].send(ranks.ReleaseGate(round=1, target=at))
    agent.wait(captured_in_round(agent), "the copy")
    assert thread.is_alive()
    agent.open_gates(1)
    thread.join(60)
    assert same_content(agent.images[0][at], want)


def test_several_optimizers_open_one_window_at_the_first(agent: FakeAgent) -> None:
    """E2, I1: a round that comes between the two steps gets the boundary that ends the window."""
    other = nn.Linear(8, 8)
    second = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.5)
    loop = Loop(other=other, second=second)
    between: list[Callable[[], None]] = []

    def update() -> None:
        Loop.update(loop)
        for action in between:
            action()
        other(torch.ones(1, 8)).sum().backward()
        second.step()
        second.zero_grad()

    loop.update = update  # type: ignore[method-assign]
    loop.audited(agent)
    assert (loop.kind, loop.ckpt._run["loop_kind"]) == ("mid-step", "several optimizers")
    want = reference(agent, loop)
    assert same_content(caught_in_the_middle(agent, loop), want)
    at = loop.ckpt.boundary
    between.append(lambda: agent.wait(lambda: (0, 2) in agent.votes, "the vote inside the window"))
    started = threading.Thread(
        target=lambda: (agent.start_round(2, world=1), agent.await_round(2, world=1), agent.open_gates(2))
    )
    loop.middle = started.start
    # The vote may come before the window too; then the loop is held at its entrance until the round is over.
    loop.iterate()
    started.join(60)
    assert agent.votes[(0, 2)].boundary in (at, at + 1)


def test_a_closure_makes_a_loop_boundary_only(agent: FakeAgent) -> None:
    """I4: forward and backward run inside step."""
    loop = Loop()

    def update() -> None:
        def closure() -> torch.Tensor:
            loop.optimizer.zero_grad()
            loss: torch.Tensor = loop.model(torch.ones(4, 8)).square().mean()
            loss.backward()
            return loss

        loop.optimizer.step(closure)

    loop.update = update  # type: ignore[method-assign]
    loop.audited(agent)
    assert (loop.kind, loop.ckpt._run["loop_kind"]) == ("boundary-only", "closure")
    left_for_the_boundary(agent, loop)


def test_lbfgs_is_boundary_only_from_the_start(agent: FakeAgent) -> None:
    loop = Loop(lambda p: torch.optim.LBFGS(p))
    assert (loop.kind, loop.ckpt._run["loop_kind"]) == ("boundary-only", "LBFGS")


def test_an_optimizer_in_backward_begins_its_window_there(agent: FakeAgent) -> None:
    """I4."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    optimizers = {f"o{i}": torch.optim.Adam([p], lr=1e-2) for i, p in enumerate(model.parameters())}
    for parameter, optimizer in zip(model.parameters(), optimizers.values(), strict=True):

        def hook(p: torch.Tensor, o: torch.optim.Optimizer = optimizer) -> None:
            o.step()
            o.zero_grad()

        parameter.register_post_accumulate_grad_hook(hook)
    ckpt = holdfast.Checkpointer(model=model, **optimizers)
    ckpt.restore()
    for _ in range(AUDITED):
        model(torch.ones(2, 8)).sum().backward()
        ckpt.step()
        time.sleep(0.01)
    assert (ckpt._run["loop"], ckpt._run["loop_kind"]) == ("mid-step", "optimizer in backward")
    at = ckpt.boundary
    with one_round(agent, 1) as result:
        loss = model(torch.ones(2, 8)).sum()
        agent.wait(captured_in_round(agent), "a copy between forward and backward")
        loss.backward()
        ckpt.step()
    assert result == [at, at]


def test_evaluation_with_exchanged_weights_is_never_saved_as_training(agent: FakeAgent) -> None:
    """I5: with the root in eval() nothing is copied before an evaluation was audited; one that exchanges weights is found out."""
    loop = Loop().audited(agent)
    assert loop.kind == "mid-step"
    average = {k: v.clone() * 0.5 for k, v in loop.model.state_dict().items()}

    def evaluate(during: Callable[[], object]) -> None:
        mine = {k: v.clone() for k, v in loop.model.state_dict().items()}
        loop.model.eval()
        for p, q in zip(loop.model.state_dict().values(), average.values(), strict=True):
            p.data.copy_(q)
        during()
        for p, q in zip(loop.model.state_dict().values(), mine.values(), strict=True):
            p.data.copy_(q)
        loop.model.train()

    for number in (1, 2):  # before and after the audit of an evaluation
        at = loop.ckpt.boundary
        with ExitStack() as stack:
            results: list[list[int]] = []

            def during(n: int = number, stack: ExitStack = stack, results: list[list[int]] = results) -> None:
                results.append(stack.enter_context(one_round(agent, n)))
                agent.wait(lambda: (0, n) in agent.votes, "the vote")

            evaluate(during)
            loop.iterate()
        assert results == [[at + 1, at + 1]]
        evaluate(lambda: until(lambda: loop.ckpt._mid._evaluates == "dirty"))  # type: ignore[union-attr]
        loop.iterate()
    want = reference(agent, loop)
    assert same_content(caught_in_the_middle(agent, loop, 3), want), "in training it is copied as before"


def test_an_evaluation_that_leaves_the_weights_alone_is_copied_once_it_was_audited(agent: FakeAgent) -> None:
    """I5."""
    loop = Loop().audited(agent)
    mid = loop.ckpt._mid
    assert mid is not None
    loop.model.eval()
    assert not mid.ready(), "no evaluation has been audited yet"
    until(lambda: mid._evaluation is not None)
    loop.model.train()
    loop.iterate()
    assert mid._evaluates == "clean"
    want = reference(agent, loop)
    loop.model.eval()
    with one_round(agent, 1):
        agent.wait(captured_in_round(agent), "a copy during the evaluation")
        with torch.no_grad():
            loop.model(torch.ones(4, 8))
    loop.model.train()
    loop.iterate()
    assert same_content(agent.images[0][want.boundary], want)


def test_weights_written_past_the_gate_are_found_by_the_audit_and_copied_at_each_boundary(
    agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    """I5: `.data` writes move no version counter, and no optimizer is involved."""
    loop = Loop()
    weight = loop.model.body[0].weight
    loop.start = lambda: weight.data.mul_(0.99)
    loop.audited(agent)
    assert loop.kind == "mid-step"
    assert loop.ckpt._run["loop_why"] == "copied at each boundary: model.body.0.weight"
    assert "copied at each boundary from now on: model.body.0.weight" in caplog.text
    want = reference(agent, loop)
    assert same_content(caught_in_the_middle(agent, loop), want)


def test_what_begins_to_change_later_is_found_at_the_next_periodic_save(
    agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    """I5: the slot that was copied at the boundary is the measure."""
    agent.every_steps = 20
    loop = Loop().audited(agent)
    assert loop.kind == "mid-step"
    bias = loop.model.body[4].bias
    loop.start = lambda: bias.data.add_(0.01)
    loop.iterate(40 - loop.ckpt.boundary + AUDITED)
    assert "model.body.4.bias" in loop.ckpt._run["loop_why"]


def test_a_state_that_changes_while_it_is_copied_is_not_given_away(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I5: the check after the copy; the rank says at once that it can be caught at the next boundary only."""
    loop = Loop().audited(agent)
    at = loop.ckpt.boundary
    write = midstep.Live.write

    def torn(self: Any, *arguments: Any) -> None:
        write(self, *arguments)
        for parameter in loop.model.parameters():
            parameter.data.add_(1.0)

    monkeypatch.setattr(midstep.Live, "write", torn)
    agent.connections[0].send(ranks.CloseGate(round=1, lease_seconds=60))
    agent.wait(lambda: (0, 1) in agent.votes, "the vote")
    agent.connections[0].send(ranks.ReleaseGate(round=1, target=at))
    agent.wait(lambda: agent.votes[(0, 1)].boundary == at + 1, "the vote taken back")
    assert not captured_in_round(agent)()
    monkeypatch.undo()
    agent.connections[0].send(ranks.OpenGate(round=1))
    loop.iterate()
    with one_round(agent, 2) as result:
        agent.wait(captured_in_round(agent, 2), "the next round")
    assert result == [at + 1, at + 1]


REPLACED: dict[str, Callable[[Loop], object]] = {
    "a parameter's memory": lambda loop: setattr(loop.model.body[0].weight, "data", loop.model.body[0].weight.data.clone()),
    "a parameter": lambda loop: setattr(loop.model.body[0], "bias", nn.Parameter(torch.zeros(32))),
    "a module": lambda loop: loop.model.body.__setitem__(2, nn.Tanh()),
    "the state of the optimizer": lambda loop: loop.optimizer.load_state_dict(loop.optimizer.state_dict()),
    "a tensor of its state": lambda loop: next(iter(loop.optimizer.state.values())).__setitem__("exp_avg", torch.zeros(32, 8)),
    "one tensor more": lambda loop: loop.model.register_buffer("late", torch.ones(3)),
    "weights written from outside": lambda loop: [p.data.add_(1) for p in loop.model.parameters()],
}  # fmt: skip


@pytest.mark.parametrize("what", REPLACED)
def test_what_was_exchanged_since_the_boundary_is_not_copied(agent: FakeAgent, what: str) -> None:
    """I9, I5: pointers, holders and a fingerprint are compared when the gate closes."""
    loop = Loop().audited(agent)
    mid = loop.ckpt._mid
    assert mid is not None
    assert mid.ready()
    REPLACED[what](loop)
    assert not mid.ready()
    left_for_the_boundary(agent, loop)


def test_updates_past_the_gate_are_an_error_and_end_copies_between_windows(
    agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    """I4: as with a graph of the whole step, whose hooks do not fire."""
    loop = Loop().audited(agent)
    assert loop.kind == "mid-step"

    def update() -> None:  # what a replayed graph, or a fused kernel of another library, does
        for parameter in loop.model.parameters():
            parameter.data.sub_(parameter.grad * 0.1)
        loop.optimizer.zero_grad()

    loop.update = update  # type: ignore[method-assign]
    loop.iterate()
    assert (loop.kind, loop.ckpt._run["loop_kind"]) == ("boundary-only", "updates past the gate")
    assert [r.levelno for r in caplog.records if "no optimizer.step() was seen at the gate" in r.message] == [
        logging.ERROR
    ]


def test_a_large_buffer_that_a_forward_writes_is_no_update_past_the_gate(agent: FakeAgent) -> None:
    """I5: also where a boundary follows each micro-batch."""

    class Queue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.register_buffer("queue", torch.zeros(20_000))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.queue.add_(1.0)  # type: ignore[operator]
            out: torch.Tensor = self.layer(x)
            return out

    loop = Loop(model=Queue())
    count = [0]

    def update() -> None:
        count[0] += 1
        if count[0] % 2 == 0:
            Loop.update(loop)

    loop.update = update  # type: ignore[method-assign]
    loop.audited(agent)
    assert (loop.kind, loop.ckpt._run["loop_why"]) == ("mid-step", "copied at each boundary: model.queue")
    while count[0] % 2:
        loop.iterate()
    want = reference(agent, loop)
    assert same_content(caught_in_the_middle(agent, loop), want)


def test_a_compiled_step_of_the_optimizer_is_boundary_only(agent: FakeAgent) -> None:
    """I4: its updates pass the gate unseen, and are found out by what they change."""
    gc.collect()  # hooks of earlier tests' Checkpointers go with them; in the middle of the compilation that would be an error of torch
    model = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-2))
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    ckpt.restore()
    compiled = torch.compile(optimizer.step, backend="eager")
    for n in range(2 * AUDITED):
        model(torch.ones(2, 8)).square().sum().backward()
        optimizer.step() if n < AUDITED else compiled()
        ckpt.step()
        time.sleep(0.01)
        assert n != AUDITED - 1 or ckpt._run["loop"] == "mid-step"
    assert (ckpt._run["loop"], ckpt._run["loop_kind"]) == ("boundary-only", "updates past the gate")


def test_a_compiled_model_is_copied_like_any_other(agent: FakeAgent) -> None:
    net = Net()
    loop = Loop(model=torch.compile(net, backend="eager"))
    loop.audited(agent)
    assert loop.kind == "mid-step", loop.ckpt._run
    want = reference(agent, loop)
    assert same_content(caught_in_the_middle(agent, loop), want)


def test_a_window_that_never_ends_is_an_error_in_words(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """I4: `continue` after step()."""
    monkeypatch.setattr("holdfast.windows.ENDLESS_STEPS", 5)
    loop = Loop()
    for _ in range(12):
        loop.optimizer.step()
    assert [r.levelno for r in caplog.records if "5 optimizer steps since the last ckpt.step()" in r.message] == [
        logging.ERROR
    ]


def test_an_optimizer_that_was_not_registered_is_named(agent: FakeAgent, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(2, 2)
    forgotten = torch.optim.SGD(model.parameters(), lr=0.1)
    ckpt = holdfast.Checkpointer(model=model)
    ckpt.restore()
    forgotten.step()
    ckpt.step()
    assert "a SGD updates registered parameters but is not registered itself" in caplog.text


def test_a_main_thread_that_is_busy_in_python_is_copied_all_the_same(agent: FakeAgent) -> None:
    """I7."""
    loop = Loop(model=nn.Sequential(*[nn.Linear(8, 8) for _ in range(60)])).audited(agent)
    want = reference(agent, loop)
    limit = time.monotonic() + 60

    def busy() -> None:
        n = 0
        while not captured_in_round(agent)() and time.monotonic() < limit:
            for i in range(1000):
                n += i * i

    loop.middle = busy
    with one_round(agent, 1) as result:
        loop.iterate()
    assert result == [want.boundary, want.boundary]
    assert same_content(agent.images[0][want.boundary], want)


class Waiting(torch.utils.data.Dataset[torch.Tensor]):
    """Gives a sample once `wait` has returned."""

    def __init__(self) -> None:
        self.wait: Callable[[], object] = lambda: None

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        self.wait()
        return torch.full((8,), float(index))


def test_a_main_thread_that_waits_for_data_is_copied_there(agent: FakeAgent) -> None:
    """I1, I5: the boundary is copied while the loader is still asked for the next batch, and its position is that of the boundary."""
    data = Waiting()
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    loop = Loop(loader=loader)
    batches = loop.ckpt.batches(loader, epochs=100)
    loop.start = lambda: next(batches)
    loop.audited(agent)
    assert loop.kind == "mid-step", loop.ckpt._run
    want = reference(agent, loop)
    data.wait = lambda: agent.wait(captured_in_round(agent), "a copy while the loader waits")
    with one_round(agent, 1) as result:
        loop.iterate()
    assert result == [want.boundary, want.boundary]
    assert same_content(agent.images[0][want.boundary], want)


def test_a_copy_calls_torch_a_constant_number_of_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I7: a call for each tensor would wait for the interpreter lock each time."""
    counts = []
    real = torch._foreach_copy_
    for layers in (5, 50):
        calls = []

        def counted(*arguments: Any, calls: list[int] = calls) -> Any:
            calls.append(len(arguments[0]))
            return real(*arguments)

        monkeypatch.setattr(torch, "_foreach_copy_", counted)
        with FakeAgent(tmp_path / str(layers)) as agent, agent.as_environment():
            loop = Loop(model=nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)])).audited(agent)
            calls.clear()
            at = loop.ckpt.boundary
            agent.connections[0].send(ranks.CloseGate(round=1, lease_seconds=60))
            agent.connections[0].send(ranks.ReleaseGate(round=1, target=at))
            agent.wait(captured_in_round(agent), "the copy")
            agent.open_gates(1)
            counts.append(len(calls))
            assert sum(calls) > 5 * layers
    assert counts[0] == counts[1] > 0


def test_a_loop_can_be_kept_at_boundaries(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(names.ENV_MID_STEP, "off")
    loop = Loop().audited(agent)
    assert loop.ckpt._run["loop_why"] == "switched off by HOLDFAST_MID_STEP"
    left_for_the_boundary(agent, loop)


def test_a_layout_that_grows_is_planned_anew_and_audited_again(agent: FakeAgent) -> None:
    """I9: a layer that was frozen begins to learn."""
    model = Net()
    model.body[0].requires_grad_(False)
    loop = Loop(model=model).audited(agent)
    assert loop.kind == "mid-step"
    model.body[0].requires_grad_(True)
    loop.iterate()
    left_for_the_boundary(agent, loop)
    loop.audited(agent)
    assert loop.kind == "mid-step"
    want = reference(agent, loop)
    assert any("optimizer.state.0.exp_avg" in n for n in content(want))
    assert same_content(caught_in_the_middle(agent, loop, 2), want)


def test_the_small_state_that_would_cost_too_much_is_copied_at_boundaries_only(agent: FakeAgent) -> None:
    class Slow:
        def state_dict(self) -> dict[str, Any]:
            time.sleep(0.01)
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    loop = Loop(slow=Slow()).audited(agent)
    assert loop.kind == "boundary-only"
    assert "capturing the small state at a boundary takes" in loop.ckpt._run["loop_why"]


def test_an_audit_of_a_large_state_looks_at_a_part_of_every_tensor_in_turn() -> None:
    tensors = {f"t{i}": torch.zeros(100_000) for i in range(20)}
    budget = 12 * audit.BLOCK_BYTES
    seen: set[tuple[str, int]] = set()
    for turn in range(200):
        blocks = audit.blocks_of(tensors, turn, budget)
        assert sum(b.length for b in blocks) <= budget
        seen |= {(b.name, b.offset // audit.BLOCK_BYTES) for b in blocks}
    assert {n for n, _ in seen} == set(tensors)
    assert len(seen) > 20 * 20, "in time most blocks of each"


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition() and time.monotonic() < limit:
        time.sleep(0.01)
    assert condition()
