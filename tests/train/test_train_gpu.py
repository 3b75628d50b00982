"""I3, I5, I7, I9 over CUDA: what the fakes of test_train_beside.py stand for. Races are made certain by kernels that sleep on one of the two streams.

The figures that some tests print are facts for the docs, not goals: the goals are measured by benchmarks/gpu_save and benchmarks/gpu_restore.
"""

import logging
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent, Image
from test_train_midstep import Loop, captured_in_round, one_round
from torch import nn

import holdfast
from holdfast import capture_mode, device, download, filling, live_device, pinning
from holdfast.load import open_image
from holdfast_api import ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
TENTH = 200_000_000
"""Cycles of a kernel that sleeps: about 0.1 s."""
CUDA = torch.device("cuda", 0)


@pytest.fixture
def agent() -> Iterator[FakeAgent]:
    """Its slots are in shared memory: the kernel lets nobody lock pages of a disk's file."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    try:
        with FakeAgent(folder / "agent") as running, running.as_environment():
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(8, 1024, device=CUDA, dtype=dtype)
        self.norm = nn.BatchNorm1d(1024, device=CUDA, dtype=dtype)
        self.last = nn.Linear(1024, 1024, device=CUDA, dtype=dtype)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.drop(self.last(torch.relu(self.norm(self.first(x)))))
        return out


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 300, 2, device=CUDA).to(memory_format=torch.channels_last)
        self.wide = nn.Conv2d(300, 300, 1, device=CUDA).to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.wide(self.conv(x.view(4, 2, 2, 2)))
        return out


class GpuLoop(Loop):
    """`heavy` runs on the current stream before each update."""

    def __init__(self, make: Callable[[Any], Any] = lambda p: torch.optim.AdamW(p, lr=1e-2), **parts: Any) -> None:
        self.scaler = parts.get("scaler")
        self.dtype = parts.pop("dtype", torch.float32)
        self.sleep = 0
        torch.cuda.manual_seed(3)
        super().__init__(make, model=parts.pop("model", None) or Net(self.dtype), **parts)

    def iterate(self, times: int = 1) -> None:
        for _ in range(times):
            self.start()
            x = torch.randn(4, 8, device=CUDA, dtype=self.dtype)
            with torch.autocast("cuda", torch.float16, enabled=self.scaler is not None):
                loss = self.model(x).float().square().mean()
            (self.scaler.scale(loss) if self.scaler is not None else loss).backward()
            self.middle()
            if self.sleep:
                torch.cuda._sleep(self.sleep)
            self.update()
            self.ckpt.step()

    def update(self) -> None:
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def ready(self, agent: FakeAgent) -> "GpuLoop":
        """Audited, and one iteration before a periodic save."""
        self.audited(agent)
        assert self.kind == "mid-step", self.ckpt._run
        arena = self.ckpt._saver.arena  # type: ignore[union-attr]
        assert arena is not None
        arena.prepared()
        assert arena.pinned
        self.ckpt._every = 10
        self.iterate(9 - self.ckpt.boundary % 10)
        return self

    @property
    def side(self) -> Any:
        return device.streams_of(CUDA)._side  # type: ignore[attr-defined]

    def hold_side(self, cycles: int = 3 * TENTH) -> None:
        with torch.cuda.stream(self.side):
            torch.cuda._sleep(cycles)

    def state(self) -> dict[str, torch.Tensor]:
        """As it will be when the device has come to this point: copied in the order of the current stream."""
        found = {f"model.{k}": v.clone() for k, v in self.model.state_dict().items()}
        for i, state in enumerate(self.optimizer.state.values()):
            found |= {f"optimizer.state.{i}.{k}": v.clone() for k, v in state.items()}
        return found


def different(image: Image, state: dict[str, torch.Tensor]) -> list[str]:
    tensors = open_image(str(image.path), image.path.stat().st_size, image.entries)
    return [n for n, t in state.items() if not torch.equal(tensors[n].reshape(t.shape), t.cpu())]


def saved(agent: FakeAgent, boundary: int) -> Image:
    agent.wait(lambda: boundary in agent.images[0], f"boundary {boundary}")
    return agent.images[0][boundary]


LOOPS: dict[str, Callable[[], GpuLoop]] = {
    "foreach AdamW, batch norm, dropout": GpuLoop,
    "fused AdamW": lambda: GpuLoop(lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True)),
    "capturable, the learning rate a tensor on the device": lambda: GpuLoop(
        lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2, device=CUDA), capturable=True)
    ),
    "one kernel for each tensor": lambda: GpuLoop(lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=False)),
    "SGD with momentum": lambda: GpuLoop(lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9)),
    "bfloat16": lambda: GpuLoop(dtype=torch.bfloat16),
    "a scaler": lambda: GpuLoop(scaler=torch.amp.GradScaler("cuda", init_scale=2.0**10)),
    "channels-last weights": lambda: GpuLoop(model=Convolution()),
    "an average, a generator of the device and a value there": lambda: GpuLoop(
        ema=Net(), noise=torch.Generator(CUDA).manual_seed(1), best=holdfast.Value(torch.ones(100_000, device=CUDA))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_in_the_middle_of_a_step_the_update_that_is_still_running_is_waited_for(agent: FakeAgent, name: str) -> None:
    """I3, I7: the update's kernels have not begun when the vote is given; the copy is that of the whole boundary."""
    loop = LOOPS[name]().ready(agent)
    loop.sleep = TENTH
    loop.iterate()
    loop.sleep = 0
    at, want = loop.ckpt.boundary, loop.state()
    loop.middle = lambda: agent.wait(captured_in_round(agent), "a copy in the middle of the step")
    with one_round(agent, 1) as result:
        agent.wait(lambda: (0, 1) in agent.votes, "the vote")
        loop.iterate()
    assert result == [at, at]
    assert not different(agent.images[0][at], want)


@pytest.mark.parametrize("name", LOOPS)
def test_a_save_beside_training_holds_the_boundary_whatever_comes_after(agent: FakeAgent, name: str) -> None:
    """I3: the side stream sleeps while a forward writes buffers and an update is issued."""
    loop = LOOPS[name]().ready(agent)
    loop.hold_side()
    loop.iterate()
    at, want = loop.ckpt.boundary, loop.state()
    far = loop.ckpt._mid._live.far  # type: ignore[union-attr]
    assert not far._transfer.clean, "step() returned before the copy was done"
    assert at not in agent.images[0]
    loop.iterate(3)
    image = saved(agent, at)
    assert image.message.stall_seconds is not None
    assert not different(image, want)
    assert different(image, loop.state()), "training has gone on"


def test_without_the_wait_at_the_gate_the_copy_is_found_not_to_be_whole(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """I5: the same with the rule of I3 taken out: what the look behind each segment is for."""
    loop = GpuLoop().ready(agent)
    monkeypatch.setattr(live_device.LiveOnDevice, "hold_back", lambda self: None)
    loop.hold_side()
    loop.iterate()
    at = loop.ckpt.boundary
    loop.iterate()
    loop.ckpt._saver.beside.settle()  # type: ignore[union-attr]
    assert at not in agent.images[0]
    assert "written to while they were copied" in caplog.text
    monkeypatch.undo()
    loop.iterate()
    assert not different(saved(agent, loop.ckpt.boundary), loop.state())


def test_weights_that_are_exchanged_for_an_evaluation_are_not_saved(agent: FakeAgent) -> None:
    """I5."""
    loop = GpuLoop().ready(agent)
    loop.hold_side()
    loop.iterate()
    at = loop.ckpt.boundary
    mine = [p.data.clone() for p in loop.model.parameters()]
    for p in loop.model.parameters():
        p.data.mul_(0.5)
    loop.model.eval()
    loop.model(torch.randn(4, 8, device=CUDA))
    loop.model.train()
    loop.ckpt._saver.beside.settle()  # type: ignore[union-attr]
    assert at not in agent.images[0]
    for p, q in zip(loop.model.parameters(), mine, strict=True):
        p.data.copy_(q)
    loop.iterate()
    assert not different(saved(agent, at + 1), loop.state())


def test_memory_that_is_given_up_while_it_is_copied_is_not_used_again(agent: FakeAgent) -> None:
    """The caching allocator would give it to the next tensor of its size."""
    loop = GpuLoop().ready(agent)
    loop.hold_side()
    loop.iterate()
    at, want = loop.ckpt.boundary, loop.state()
    weight = loop.model.last.weight
    weight.data = weight.data.clone()
    loop.optimizer.load_state_dict({**loop.optimizer.state_dict()})
    rubbish = [torch.full_like(weight, float("nan")) for _ in range(20)]
    assert not different(saved(agent, at), want)
    assert len(rubbish) == 20


def test_two_optimizers_on_two_streams_are_both_held_back_and_both_waited_for(agent: FakeAgent) -> None:
    """I3: an update on a stream that the current one never waits for."""
    other = nn.Linear(512, 512, device=CUDA)
    second = torch.optim.AdamW(other.parameters(), lr=0.1)
    stream = torch.cuda.Stream()
    loop = GpuLoop(other=other, second=second)

    def update() -> None:
        GpuLoop.update(loop)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            other(torch.ones(1, 512, device=CUDA)).sum().backward()
            torch.cuda._sleep(TENTH // 20)
            second.step()
            second.zero_grad()

    loop.update = update  # type: ignore[method-assign]
    loop.ready(agent)
    loop.hold_side()
    loop.iterate()
    at = loop.ckpt.boundary
    want = loop.state() | {f"other.{k}": v.clone() for k, v in other.state_dict().items()}
    loop.iterate(2)
    torch.cuda.current_stream().wait_stream(stream)
    assert not different(saved(agent, at), want)


def test_an_average_on_a_stream_of_its_own_is_found_and_copied_at_boundaries_only(agent: FakeAgent) -> None:
    """I3: no stream is believed to be the only one."""
    ema, stream = Net(), torch.cuda.Stream()
    loop = GpuLoop(ema=ema)

    def update() -> None:
        GpuLoop.update(loop)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            torch.cuda._sleep(TENTH // 4)
            for p, q in zip(ema.parameters(), loop.model.parameters(), strict=True):
                p.lerp_(q, 0.1)

    loop.update = update  # type: ignore[method-assign]
    loop.audited(agent)
    assert loop.kind == "boundary-only"
    assert "is written on a CUDA stream" in loop.ckpt._run["loop_why"]
    loop.ckpt._every = 1
    loop.iterate()
    torch.cuda.synchronize()
    want = {f"ema.{k}": v.clone() for k, v in ema.state_dict().items()}
    assert not different(saved(agent, loop.ckpt.boundary), want)


# CUDA graphs


def test_a_thread_in_relaxed_mode_does_not_spoil_a_capture() -> None:
    """I7. Without it the capture is invalidated: seen on an H200."""
    event = torch.cuda.Event()
    event.record()
    torch.cuda.synchronize()
    found: list[Any] = []

    def ask() -> None:
        found.append(capture_mode.relax())
        found.append(event.query())
        event.synchronize()
        target = torch.zeros(1 << 20, dtype=torch.uint8)
        found.append(pinning.pin(target.data_ptr(), target.numel(), 0))
        pinning.unpin(target.data_ptr())

    x, graph = torch.zeros(8, device=CUDA), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.add_(1)
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    graph.replay()
    assert found == [True, True, ""]
    assert x.sum().item() == 8


def test_a_graph_is_captured_while_a_save_is_copied_and_while_a_round_copies(agent: FakeAgent) -> None:
    loop = GpuLoop().ready(agent)
    x, graphs = torch.zeros(8, device=CUDA), [torch.cuda.CUDAGraph() for _ in range(2)]
    loop.hold_side(TENTH)
    loop.iterate()
    at, want = loop.ckpt.boundary, loop.state()
    with torch.cuda.graph(graphs[0]):
        x.add_(1)
        agent.wait(lambda: at in agent.images[0], "the save")
    assert not different(agent.images[0][at], want)
    loop.iterate()
    want = loop.state()

    def middle() -> None:
        with torch.cuda.graph(graphs[1]):
            x.add_(1)
            agent.wait(captured_in_round(agent), "the round's copy")

    loop.middle = middle
    with one_round(agent, 1) as result:
        agent.wait(lambda: (0, 1) in agent.votes, "the vote")
        loop.iterate()
    assert result == [at + 1, at + 1]
    assert not different(agent.images[0][at + 1], want)
    for graph in graphs:
        graph.replay()
    assert x.sum().item() == 16


def test_a_graph_of_the_whole_step_is_boundary_only_and_its_saves_are_whole(agent: FakeAgent) -> None:
    """I4: known when it is captured, before the first replay goes past the gate."""
    loop = GpuLoop(lambda p: torch.optim.AdamW(p, lr=1e-2, capturable=True)).ready(agent)
    x = torch.randn(4, 8, device=CUDA)
    loop.optimizer.zero_grad(set_to_none=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            loop.model(x).square().mean().backward()
            loop.optimizer.step()
            loop.optimizer.zero_grad(set_to_none=True)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loop.model(x).square().mean().backward()
        loop.optimizer.step()
    loop.ckpt.step()
    assert (loop.kind, loop.ckpt._run["loop_kind"]) == ("boundary-only", "graph of the update")
    loop.ckpt._every = 1
    for _ in range(3):
        graph.replay()
        loop.ckpt.step()
        assert not different(saved(agent, loop.ckpt.boundary), loop.state())


# The copy itself


def many_kinds() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    found: dict[str, torch.Tensor] = {f"tiny {i}": torch.randn(i % 9 + 1, device=CUDA) for i in range(300)}
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128):
        found[str(dtype)] = torch.randn(1000, device=CUDA, dtype=dtype)
        found[f"{dtype} large"] = torch.randn(1_000_001, device=CUDA, dtype=dtype)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        found[str(dtype)] = torch.randn(1_000_003, device=CUDA).to(dtype)
    found["bool"] = torch.rand(1_000_000, device=CUDA) > 0.5
    found["int64"] = torch.arange(200_000, device=CUDA)
    found["zero-dim"] = torch.tensor(3.5, device=CUDA)
    found["strided"] = torch.randn(900, 1000, device=CUDA).t()
    found["slice"] = torch.randn(900, 1000, device=CUDA)[:, ::3]
    found["channels-last"] = torch.randn(30, 40, 20, 20, device=CUDA).to(memory_format=torch.channels_last)
    found["conjugated"] = torch.randn(500_000, device=CUDA, dtype=torch.complex64).conj()
    found["negated"] = torch.randn(500_000, device=CUDA, dtype=torch.complex64).conj().imag
    return found


def laid_out(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, int], torch.Tensor]:
    offsets, at = {}, 0
    for name, tensor in tensors.items():
        offsets[name] = at
        at += tensor.nbytes + -tensor.nbytes % 64
    return offsets, torch.zeros(at, dtype=torch.uint8).pin_memory()


@pytest.mark.parametrize("wanted", ["on", "off"])
def test_every_kind_of_tensor_arrives_bit_by_bit(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SIDE_STREAM", wanted)
    tensors = many_kinds()
    offsets, slot = laid_out(tensors)
    torch.cuda._sleep(TENTH)
    for tensor in tensors.values():
        if tensor.is_floating_point() and tensor.element_size() > 1:
            tensor.mul_(2)  # issued, not waited for
    with download.fetching(slot, tensors, offsets):
        pass
    for name, tensor in tensors.items():
        place = slot[offsets[name] : offsets[name] + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        assert torch.equal(place.clone().view(-1).view(torch.uint8), bits(tensor)), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.resolve_conj().resolve_neg().contiguous().cpu().view(-1).view(torch.uint8)


def test_what_is_restored_is_bit_by_bit_what_was_saved() -> None:
    sources = {n: t.resolve_conj().resolve_neg().contiguous().cpu() for n, t in many_kinds().items()}
    sources["empty"] = torch.empty(0, 3)
    targets = {n: torch.empty_like(t, device=CUDA) for n, t in sources.items()}
    targets["strided"] = torch.empty(900, 1000, device=CUDA).t()
    targets["tied"], sources["tied"] = targets["int64"], sources["int64"]
    torch.cuda._sleep(TENTH)
    for target in targets.values():
        target.zero_()
    filling.fill([(targets[n], sources[n]) for n in targets])
    for name, target in targets.items():
        assert torch.equal(bits(target), bits(sources[name])), name


def test_a_training_that_is_restored_goes_on_as_if_nothing_had_happened(agent: FakeAgent) -> None:
    """K2, on one GPU."""
    loop = GpuLoop().ready(agent)
    loop.iterate()
    image = saved(agent, loop.ckpt.boundary)
    loop.iterate(5)
    want = loop.state()
    loop.ckpt.finish()
    agent.restore_from[0] = [image]
    again = GpuLoop()
    assert again.ckpt.boundary == image.boundary
    again.iterate(5)
    assert all(torch.equal(v, want[n]) for n, v in again.state().items())
    again.ckpt.finish()


def test_ten_thousand_tiny_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    """I7: what is small goes over the bus as one."""
    tensors = {f"t{i}": torch.full((16,), float(i), device=CUDA) for i in range(10_000)}
    offsets, slot = laid_out(tensors)
    began = time.perf_counter()
    made = download.Download(tensors, offsets)
    listed = time.perf_counter() - began
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        made.stage()
        made.copy(slot)
        torch.cuda.synchronize()
    copies = [e for e in seen.events() if "Memcpy DtoH" in e.name]
    assert 1 <= len(copies) <= 4
    assert made.finish(slot) == ""
    assert torch.equal(slot.view(torch.float32).view(10_000, 16)[:, 5], torch.arange(10_000.0))
    began = time.perf_counter()
    made.stage()
    made.copy(slot)
    issued = time.perf_counter() - began
    torch.cuda.synchronize()
    done = time.perf_counter() - began
    made.finish(slot)
    whole = time.perf_counter() - began
    with capsys.disabled():
        print(
            f"\nFACT 10,000 x 64 B: list {listed:.4f} s, issue {issued:.4f} s, device done {done:.4f} s, in the slot {whole:.4f} s"
        )


def test_what_a_boundary_costs_when_nothing_is_saved(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    """A fact, not a goal: with the buffers of a ResNet-50, in a loop that is copied in the middle of a step."""
    norms = nn.ModuleList([nn.BatchNorm2d(256, device=CUDA) for _ in range(53)])
    loop = GpuLoop(norms=norms).ready(agent)
    loop.ckpt._every = 0
    spent = []
    for _ in range(200):
        loop.model(torch.randn(4, 8, device=CUDA)).square().mean().backward()
        loop.update()
        began = time.perf_counter()
        loop.ckpt.step()
        spent.append(time.perf_counter() - began)
    with capsys.disabled():
        print(f"\nFACT boundary with 159 buffers on the device: median {sorted(spent)[100] * 1e6:.0f} us, {loop.kind}")
    assert loop.kind == "mid-step", loop.ckpt._run


BROKEN = """
import sys, torch
sys.path.insert(0, {tests!r})
import logging; logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
from pathlib import Path
from fake_agent import FakeAgent
import test_train_gpu as t
with FakeAgent(Path({folder!r})) as agent, agent.as_environment():
    loop = t.GpuLoop().ready(agent)
    # Device-side assertions may be compiled out: this writes to where there is no memory, volatile so that no compiler leaves it out.
    broken = torch.cuda.jiterator._create_jit_fn("template <typename T> T broken(T x) {{ if (x > 0) *reinterpret_cast<volatile T*>(8) = x; return x; }}")
    broken(torch.zeros(3, device="cuda"))  # compiled before the copy begins, which it must not outlast
    ones = torch.ones(3, device="cuda")
    torch.cuda.synchronize()
    try:
        loop.hold_side()
        loop.iterate()
        broken(ones)
        loop.ckpt._saver.beside.settle()
    except RuntimeError as e:
        print("raised", type(e).__name__)
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        print("broken for good")
    import os, time
    time.sleep(2)  # for what the agent may have been handed
    print("saved", loop.ckpt.boundary in agent.images[0], flush=True)
    os._exit(0)
"""


def test_a_device_that_fails_leaves_no_clean_slot() -> None:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    script = BROKEN.format(tests=str(Path(__file__).parent), folder=str(folder / "agent"))
    try:
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert "broken for good" in ended.stdout, "the device has not failed: " + ended.stdout[-1500:]
    assert "saved False" in ended.stdout, ended.stdout[-1500:] + ended.stderr[-1500:]
    assert "is made at the next one" in (said := ended.stdout + ended.stderr) or "raised" in said, said[-3000:]


def test_a_round_at_a_boundary_and_a_last_save_are_whole_too(
    agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    loop = GpuLoop().ready(agent)
    loop.iterate()
    loop.ckpt._saver.beside.settle()  # type: ignore[union-attr]
    loop.model.eval()
    agent.connections[0].send(ranks.CloseGate(round=1, lease_seconds=60))
    agent.wait(lambda: (0, 1) in agent.votes, "the vote")
    loop.model.train()
    at = loop.ckpt.boundary + 1
    assert agent.votes[(0, 1)].boundary == at
    thread = threading.Thread(
        target=lambda: (
            agent.connections[0].send(ranks.ReleaseGate(round=1, target=at)),
            agent.wait(captured_in_round(agent), "the round"),
            agent.open_gates(1),
        )
    )
    thread.start()
    loop.iterate()
    thread.join(60)
    assert not different(agent.images[0][at], loop.state())
    loop.iterate()
    want = loop.state()
    loop.ckpt.finish()
    assert not different(agent.newest(), want)
    assert agent.newest().kind == "final"
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
