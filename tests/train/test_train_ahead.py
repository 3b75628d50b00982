"""C3, J5: while an image is fetched, a rank prepares its load. Not a bit of a tensor or of the file changes by it, and what is loaded in the end is what
`RestoreReady` names, whatever was prepared. A fake GPU; test_train_gpu.py does it over CUDA."""

import ctypes
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent, Image
from fake_gpu import FakeStreams
from torch import nn

import holdfast
from holdfast import ahead, device, filling, mapped, pinning, restorer, upload
from holdfast.errors import RestoreError
from holdfast.mapped import MappedImage, Twin
from holdfast_api import ranks

WAIT = 60.0
GARBAGE = b"\xff"
"""As floats: NaN."""


class BeginsFirst(FakeAgent):
    """Before it answers a rank's first question it does what a test wants, on the thread that serves the rank."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.first: Callable[[Any], ranks.FromAgent | None] | None = None

    def _answer(self, connection: Any, message: Any) -> ranks.FromAgent | None:
        if isinstance(message, ranks.RestoreWanted) and self.first is not None:
            assert message.prepares
            return self.first(connection)
        return super()._answer(connection, message)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[BeginsFirst]:
    with BeginsFirst(tmp_path / "agent") as running, running.as_environment():
        yield running


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[ahead.Ahead]:
    """Everything that was prepared, in order."""
    found: list[ahead.Ahead] = []
    real = ahead.begin

    def begin(*arguments: Any) -> ahead.Ahead | None:
        one = real(*arguments)
        assert one is not None
        found.append(one)
        return one

    monkeypatch.setattr(ahead, "begin", begin)
    return found


def until_prepared(made: list[ahead.Ahead], count: int) -> None:
    done = threading.Event()
    for _ in range(int(WAIT / 0.01)):
        if len(made) >= count:
            made[count - 1].wait()
            return
        done.wait(0.01)
    raise AssertionError(f"nothing was prepared {count} times")


def saved(agent: BeginsFirst, seed: int, width: int = 512) -> tuple[dict[str, torch.Tensor], Image]:
    """A state and its image, of another run's."""
    torch.manual_seed(seed)
    model = nn.Linear(width, width)
    ckpt = holdfast.Checkpointer(model=model)
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    image = agent.newest()
    kept = image.path.with_name(f"kept-{seed}")
    shutil.copyfile(image.path, kept)
    return {k: t.clone() for k, t in model.state_dict().items()}, Image(
        kept, image.boundary, "", image.entries, image.message
    )


def slot(tmp_path: Path, image: Image, name: str = "slot") -> Path:
    """A file of the image's size; its bytes mean nothing."""
    path = tmp_path / name
    path.write_bytes(GARBAGE * image.path.stat().st_size)
    return path


def begun(path: Path) -> ranks.RestoreBegun:
    return ranks.RestoreBegun(str(path), path.stat().st_size)


def ready(path: Path, image: Image, *, finite: bool = False) -> ranks.RestoreReady:
    return ranks.RestoreReady(str(path), path.stat().st_size, 1, 1, image.boundary, image.entries, finite)


def fetch(image: Image, path: Path) -> None:
    """Into the file that is there."""
    with path.open("rb+") as file:
        file.write(image.path.read_bytes())


def equal(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(bits(t), bits(state[k])) for k, t in model.state_dict().items())


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: t.clone() for k, t in model.state_dict().items()}


def test_nothing_reaches_a_tensor_before_all_is_verified_and_then_it_is_what_was_fetched(
    agent: BeginsFirst, made: list[ahead.Ahead], tmp_path: Path
) -> None:
    """Also of the pages that were mapped when they held something else."""
    state, image = saved(agent, 1)
    path, model, seen = slot(tmp_path, image), nn.Linear(512, 512), []
    before = state_of(model)

    def first(connection: Any) -> ranks.FromAgent:
        connection.send(begun(path))
        until_prepared(made, 1)
        seen.append((equal(model, before), path.read_bytes() == GARBAGE * path.stat().st_size))
        fetch(image, path)
        seen.append((equal(model, before), path.read_bytes() == image.path.read_bytes()))
        return ready(path, image)

    agent.first = first
    assert holdfast.Checkpointer(model=model).restore() == 1
    assert seen == [(True, True), (True, True)], "neither the tensors nor the file change by what is prepared"
    assert equal(model, state)
    assert not made[0]._thread.is_alive()


@pytest.mark.parametrize(
    "where", ["another slot", "the same slot", "the same name, made anew", "made anew and not said", "not said"]
)
def test_after_a_rejection_the_older_checkpoint_is_loaded_wherever_it_lies(
    agent: BeginsFirst, made: list[ahead.Ahead], tmp_path: Path, where: str
) -> None:
    """Another worker has refused what this rank had prepared for, all of which had been fetched here."""
    _, refused = saved(agent, 2)
    state, older = saved(agent, 3)
    path, model = slot(tmp_path, refused), nn.Linear(512, 512)

    def first(connection: Any) -> ranks.FromAgent:
        connection.send(begun(path))
        until_prepared(made, 1)
        fetch(refused, path)
        there = path if where != "another slot" else slot(tmp_path, older, "other")
        if "made anew" in where:
            path.rename(tmp_path / "gone")
            slot(tmp_path, older)
        if "not said" not in where:
            connection.send(begun(there))
        fetch(older, there)
        return ready(there, older)

    agent.first = first
    holdfast.Checkpointer(model=model).restore()
    assert equal(model, state)
    anew = where in ("another slot", "the same name, made anew")
    assert len(made) == 1 + anew
    assert not any(a._thread.is_alive() for a in made)


def test_a_file_that_was_made_anew_is_never_taken_for_the_one_that_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    path.write_bytes(b"a" * 8192)
    image = MappedImage(str(path), 8192)
    assert image.is_of(str(path), 8192)
    assert not image.is_of(str(path), 4096)
    assert not image.is_of(str(tmp_path / "other"), 8192)
    path.unlink()
    assert not image.is_of(str(path), 8192)
    path.write_bytes(b"b" * 8192)
    assert not image.is_of(str(path), 8192)


@pytest.mark.parametrize("end", ["fresh", "refused", "lost", "another shape"])
def test_a_start_that_loads_nothing_leaves_every_bit_as_it_was(
    agent: BeginsFirst, made: list[ahead.Ahead], tmp_path: Path, end: str, gpu: "FakeDriver"
) -> None:
    _, image = saved(agent, 4, 512)
    path, model = slot(tmp_path, image), nn.Linear(513, 512)
    before = state_of(model)

    def first(connection: Any) -> ranks.FromAgent | None:
        connection.send(begun(path))
        until_prepared(made, 1)
        fetch(image, path)
        if end == "lost":
            agent.die()
            return None
        if end == "refused":
            return ranks.Refused("no")
        return ranks.StartFresh() if end == "fresh" else ready(path, image)

    agent.first = first
    ckpt = holdfast.Checkpointer(model=model)
    if end == "fresh":
        assert ckpt.restore() == 0
    else:
        with pytest.raises(RestoreError):
            ckpt.restore()
        with pytest.raises(RuntimeError, match="restore"):
            ckpt.step()
    assert equal(model, before)
    assert not made[0]._thread.is_alive()
    assert gpu.was_locked
    assert not gpu.locked, "the agent may want its memory back"
    assert not mapped._twins


def test_a_checkpoint_that_the_load_refuses_is_followed_by_the_next_from_a_mapping_of_its_own(
    agent: BeginsFirst, made: list[ahead.Ahead], tmp_path: Path
) -> None:
    """C4: not finite, found by the load. What is in the private mapping of the first means nothing for the second."""
    state, older = saved(agent, 5)
    path, model = slot(tmp_path, older), nn.Linear(512, 512)
    bad = older.path.with_name("bad")
    data = bytearray(older.path.read_bytes())
    weight = next(e for e in older.entries if e.name == "model.weight")
    data[weight.offset_bytes : weight.offset_bytes + 4] = b"\x00\x00\xc0\x7f"
    bad.write_bytes(data)

    def refused(connection: Any) -> ranks.FromAgent:
        connection.send(begun(path))
        fetch(older, path)
        return ready(path, older)

    real = BeginsFirst._answer

    def answer(self: BeginsFirst, connection: Any, message: Any) -> ranks.FromAgent | None:
        if isinstance(message, ranks.LoadFailed):
            return refused(connection)
        return real(self, connection, message)

    def first_offer(connection: Any) -> ranks.FromAgent:
        connection.send(begun(path))
        until_prepared(made, 1)
        fetch(Image(bad, 1, "", older.entries, older.message), path)
        return ready(path, older)

    agent.first = first_offer
    agent._answer = answer.__get__(agent)  # type: ignore[method-assign]
    holdfast.Checkpointer(model=model).restore()
    assert equal(model, state)
    assert len(made) == 2


KILLED = """
import os, signal, sys
import torch
from holdfast import ahead
count = [0]
def kill(*_):
    count[0] += 1
    if count[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*_)
real, ahead.STEP_BYTES = ahead.Ahead._step, 1 << 20
ahead.Ahead._step = staticmethod(kill)
ahead.begin(sys.argv[1], os.path.getsize(sys.argv[1]), lambda: [torch.zeros(1 << 20)]).wait()
"""


def test_a_rank_that_is_killed_while_it_prepares_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    content = os.urandom(8 << 20)
    path.write_bytes(content)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=WAIT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == content


def resident(tensor: torch.Tensor) -> float:
    """The share of its pages that are there."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    count = (tensor.data_ptr() + tensor.nbytes - start) // mmap.PAGESIZE
    found = ctypes.create_string_buffer(count)
    assert libc.mincore(start, count * mmap.PAGESIZE, found) == 0
    return sum(b & 1 for b in found.raw[:count]) / count


def test_pages_that_nobody_has_touched_are_there_when_the_load_begins(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    path.write_bytes(bytes(1 << 20))
    untouched, strided = torch.empty(16 << 20), torch.arange(6.0).view(2, 3).t()
    one = ahead.begin(str(path), 1 << 20, lambda: [untouched, strided])
    assert one is not None
    one.wait()
    assert resident(untouched) == 1.0
    one.close()
    assert torch.equal(strided, torch.arange(6.0).view(2, 3).t())


def test_a_load_does_not_wait_for_all_that_could_be_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, enough, begun = tmp_path / "slot", threading.Event(), threading.Event()
    path.write_bytes(bytes(8192))

    def steps(_self: ahead.Ahead) -> Iterator[Callable[[], object]]:
        while not enough.is_set():
            yield begun.set

    monkeypatch.setattr(ahead.Ahead, "_steps", steps)
    late = threading.Timer(WAIT, enough.set)
    late.start()
    one = ahead.begin(str(path), 8192, list)
    assert one is not None
    assert begun.wait(WAIT)
    one.stop()
    late.cancel()
    assert not enough.is_set(), "it went on to the end"


def test_what_prepares_has_ended_before_the_load_begins(
    agent: BeginsFirst, made: list[ahead.Ahead], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lists are the load's from then on."""
    state, image = saved(agent, 8)
    path, model, begun_it, ended, real = (
        slot(tmp_path, image),
        nn.Linear(512, 512),
        threading.Event(),
        [],
        restorer.load_image,
    )

    def steps(self: ahead.Ahead) -> Iterator[Callable[[], object]]:
        while not self._begins.is_set():
            yield begun_it.set

    def load(*arguments: Any, **named: Any) -> Any:
        ended.append(not made[0]._thread.is_alive())
        return real(*arguments, **named)

    def first(connection: Any) -> ranks.FromAgent:
        connection.send(begun(path))
        assert begun_it.wait(WAIT)
        fetch(image, path)
        return ready(path, image)

    monkeypatch.setattr(ahead.Ahead, "_steps", steps)
    monkeypatch.setattr(restorer, "load_image", load)
    agent.first = first
    holdfast.Checkpointer(model=model).restore()
    assert ended == [True]
    assert equal(model, state)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("wrong", ["no file", "a short file", "no step", "an odd tensor"])
def test_what_cannot_be_prepared_is_loaded_as_ever(
    agent: BeginsFirst, tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, image = saved(agent, 6)
    path, model = slot(tmp_path, image), nn.Linear(512, 512)
    said = begun(path)

    def first(connection: Any) -> ranks.FromAgent:
        if wrong == "no file":
            path.rename(tmp_path / "away")
        elif wrong == "a short file":
            path.write_bytes(b"x")
        connection.send(said)
        connection.send(ranks.RestoreBegun(str(tmp_path), 0))
        path.unlink(missing_ok=True)
        shutil.copyfile(image.path, path)
        return ready(path, image)

    if wrong == "no step":

        def fails(*_: Any) -> None:
            raise OSError("no")

        monkeypatch.setattr(ahead.Ahead, "_step", staticmethod(fails))
    ckpt = holdfast.Checkpointer(model=model)
    if wrong == "an odd tensor":

        def odd() -> list[torch.Tensor]:
            raise ValueError("it cannot be asked before it is used")

        monkeypatch.setattr(ckpt._registry, "memory", odd)
    agent.first = first
    ckpt.restore()
    assert equal(model, state)


# A GPU


class FakeDriver:
    """CUDA's page-locking: what is locked, and when it says no."""

    def __init__(self) -> None:
        self.locked: dict[int, int] = {}
        self.was_locked: list[int] = []
        self.most = 1 << 30
        self.read_only = True

    def pin(self, address: int, length: int, _device: int, flags: int = pinning.PORTABLE) -> str:
        if flags & pinning.READ_ONLY and not self.read_only:
            return "not supported"
        if len(self.locked) >= self.most:
            return "no more"
        self.locked[address] = length
        self.was_locked.append(address)
        return ""

    def unpin(self, address: int) -> None:
        del self.locked[address]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver()
    monkeypatch.setattr(pinning, "device_in_use", lambda: 0)
    monkeypatch.setattr(pinning, "pin", driver.pin)
    monkeypatch.setattr(pinning, "unpin", driver.unpin)
    monkeypatch.setattr(pinning, "pin_all", lambda places, device: [])  # of the slots that are saved into
    monkeypatch.setattr(ahead.capture_mode, "relax", lambda: True)
    monkeypatch.setattr(mapped, "RANGE_BYTES", 64 << 10)
    return driver


def test_a_locked_range_is_never_copied_together_with_the_next(tmp_path: Path, gpu: FakeDriver) -> None:
    path, unit = tmp_path / "slot", 64 << 10
    path.write_bytes(os.urandom(4 * unit - 100))
    gpu.most = 3
    twin = Twin(str(path), 4 * unit - 100, 0)
    while twin.lock_next():
        pass
    assert twin.trouble == "no more"
    assert sorted(gpu.locked.values()) == [unit] * 3
    whole = path.read_bytes()
    for start, end in (
        (0, 1),
        (unit - 1, unit + 1),
        (0, 3 * unit),
        (5, 2 * unit),
        (unit, 2 * unit),
        (2 * unit, 3 * unit),
    ):
        pieces = twin.pieces(start, end - start)
        assert pieces is not None
        assert b"".join(p.numpy().tobytes() for p in pieces) == whole[start:end]
        for piece in pieces:
            at = piece.data_ptr() - twin.bytes.data_ptr()
            assert at // unit == (at + piece.numel() - 1) // unit, (start, end)
    assert twin.pieces(2 * unit, unit + 1) is None, "the rest of it is not locked"
    twin.close()
    assert not gpu.locked


@pytest.mark.parametrize("most", [1 << 30, 5, 0])
def test_what_is_locked_goes_to_the_gpu_straight_and_the_rest_through_buffers(
    agent: BeginsFirst,
    made: list[ahead.Ahead],
    tmp_path: Path,
    gpu: FakeDriver,
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, image = saved(agent, 7)
    path, model, streams = slot(tmp_path, image), nn.Linear(512, 512), FakeStreams()
    far = {t.data_ptr() for t in model.parameters()}
    monkeypatch.setattr(device, "is_far", lambda t: t.data_ptr() in far)
    monkeypatch.setattr(device, "streams_of", lambda place: streams)
    monkeypatch.setattr(upload, "BUFFER_BYTES", 128 << 10)
    gpu.most, loaded, real = most, list[int](), upload._load

    def load(buffer: torch.Tensor, batch: Any, pool: Any) -> None:
        loaded.extend(t.numel() for t, _ in batch)
        assert gpu.locked or not most, "until the load is over"
        real(buffer, batch, pool)

    monkeypatch.setattr(upload, "_load", load)

    def first(connection: Any) -> ranks.FromAgent:
        connection.send(begun(path))
        until_prepared(made, 1)
        fetch(image, path)
        return ready(path, image, finite=True)

    agent.first = first
    holdfast.Checkpointer(model=model).restore()
    assert equal(model, state)
    assert len(gpu.was_locked) == min(most, -(-path.stat().st_size // (64 << 10)))
    assert sum(loaded) == (512 * 4 if most > 5 else 512 * 513 * 4), "the bias is small; the weight is not wholly locked"
    assert streams.pending == 0
    assert not gpu.locked
    assert not mapped._twins
    assert path.read_bytes() == image.path.read_bytes()


def test_a_device_that_cannot_read_only_gets_a_mapping_that_it_could_write_to(tmp_path: Path, gpu: FakeDriver) -> None:
    path, gpu.read_only = tmp_path / "slot", False
    path.write_bytes(os.urandom(200 << 10))
    twin = Twin(str(path), 200 << 10, 0)
    while twin.lock_next():
        pass
    assert not twin.trouble
    assert min(gpu.locked) == twin.bytes.data_ptr(), "the one that is locked is the one that is copied from"
    pieces = twin.pieces(0, 200 << 10)
    assert pieces is not None
    assert b"".join(p.numpy().tobytes() for p in pieces) == path.read_bytes()
    twin.close()
    assert not gpu.locked


def test_what_a_gpu_reads_is_the_file_and_what_the_rank_writes_into_its_view_is_not(
    tmp_path: Path, gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the copy comes from the twin, and the file stays as it is."""
    path, streams = tmp_path / "slot", FakeStreams()
    content = os.urandom(1 << 20)
    path.write_bytes(content)
    target = torch.zeros(1 << 20, dtype=torch.uint8)
    monkeypatch.setattr(device, "is_far", lambda t: t.data_ptr() == target.data_ptr())
    monkeypatch.setattr(device, "streams_of", lambda place: streams)
    one = ahead.begin(str(path), 1 << 20, list)
    assert one is not None
    one.wait()
    one.stop()
    one.image.bytes.zero_()
    filling.fill([(target, one.image.bytes)])
    assert target.numpy().tobytes() == content
    assert path.read_bytes() == content
    one.close()
    target.fill_(1)
    filling.fill([(target, one.image.bytes)])
    assert not target.any(), "no longer"


def test_pages_are_locked_for_the_gpu_that_the_tensors_lie_on(gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script need not have made it the current one, and asking another for something starts it."""
    here, there = SimpleNamespace(device=torch.device("cpu")), SimpleNamespace(device=torch.device("cuda", 3))
    assert ahead._gpu([here, there]) == 3  # type: ignore[list-item]
    assert ahead._gpu([here]) == 0  # type: ignore[list-item]
    monkeypatch.setattr(pinning, "device_in_use", lambda: None)
    assert ahead._gpu([here]) is None  # type: ignore[list-item]


@pytest.mark.parametrize("why", ["switched off", "it could spoil a capture"])
def test_nothing_is_locked_where_it_must_not_be(
    tmp_path: Path, gpu: FakeDriver, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "switched off":
        monkeypatch.setenv("HOLDFAST_SIDE_STREAM", "off")
    else:
        monkeypatch.setattr(ahead.capture_mode, "relax", lambda: False)
    path = tmp_path / "slot"
    path.write_bytes(bytes(1 << 20))
    one = ahead.begin(str(path), 1 << 20, list)
    assert one is not None
    one.wait()
    one.close()
    assert not gpu.was_locked
