"""I3: a slot is clean only when the event behind its copy has completed on the host. The state machine runs over fake streams, which complete when told
to; the tests marked gpu run the same over CUDA's, where there is one."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from holdfast import device, pinning
from holdfast.device import Pair, Transfer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


class FakeStreams:
    """In place of a GPU: nothing is copied before the event completes."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.pending: list[Pair] = []
        self.done: set[int] = set()
        self.events = 0

    def follow(self) -> None:
        self.calls.append("follow")

    def copy(self, pairs: Sequence[Pair]) -> None:
        self.calls.append("copy")
        self.pending += pairs

    def record(self) -> int:
        self.calls.append("record")
        self.events += 1
        return self.events

    def completed(self, event: Any) -> bool:
        return event in self.done

    def wait(self, event: Any) -> None:
        self.calls.append("wait")
        self.complete(event)

    def hold_back(self, event: Any) -> None:
        self.calls.append(f"hold back {event}")

    def complete(self, event: int) -> None:
        for target, source in self.pending:
            target.copy_(source)
        self.pending.clear()
        self.done.add(event)


def pair() -> Pair:
    return torch.zeros(4), torch.arange(4.0)


def test_a_slot_is_clean_only_when_the_event_behind_the_copy_has_completed() -> None:
    streams = FakeStreams()
    transfer, moved = Transfer(streams), pair()
    assert transfer.clean
    transfer.begin([moved])
    assert streams.calls == ["follow", "copy", "record"], (
        "it begins after what the update has issued, and the event is last"
    )
    assert not transfer.clean
    assert moved[0].sum() == 0
    streams.complete(1)
    assert transfer.clean
    assert torch.equal(*moved)


def test_the_update_is_held_back_by_the_copy_while_there_is_one() -> None:
    streams = FakeStreams()
    transfer = Transfer(streams)
    transfer.hold_back()
    transfer.begin([pair()])
    transfer.hold_back()
    transfer.wait()
    transfer.hold_back()
    assert streams.calls == ["follow", "copy", "record", "hold back 1", "wait"]


def test_a_slot_is_not_written_twice_at_once() -> None:
    transfer = Transfer(FakeStreams())
    transfer.begin([pair()])
    with pytest.raises(RuntimeError, match="under way"):
        transfer.begin([pair()])
    transfer.wait()
    transfer.begin([pair()])


def test_the_source_lives_until_the_copy_is_done() -> None:
    """Its memory would be given to another tensor while the copy engine still reads it."""
    import weakref

    streams = FakeStreams()
    transfer = Transfer(streams)
    moved = pair()
    source = weakref.ref(moved[1])
    streams.copy = lambda pairs: None  # type: ignore[method-assign,assignment]
    transfer.begin([moved])
    del moved
    assert source() is not None
    streams.done.add(1)
    assert transfer.clean
    assert source() is None


def test_the_side_stream_is_off_unless_a_person_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOLDFAST_SIDE_STREAM", raising=False)
    assert not device.side_stream_wanted()
    monkeypatch.setenv("HOLDFAST_SIDE_STREAM", "on")
    assert device.side_stream_wanted()


class FakeCuda:
    """In place of the CUDA runtime: refuses the registration number `fails`."""

    def __init__(self, fails: int) -> None:
        self.fails, self.registered, self.count = fails, [], 0

    def cudaHostRegister(self, address: int, length: int, flags: int) -> int:
        self.count += 1
        if self.count == self.fails:
            return 2
        self.registered.append((address, length, flags))
        return 0


def test_memory_that_cannot_be_page_locked_is_said_once_and_saving_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = FakeCuda(fails=2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device", lambda index: __import__("contextlib").nullcontext())
    assert pinning.pin_all([(4096, 10), (8192, 10), (12288, 10)], 0) == [4096]
    assert [r.getMessage() for r in caplog.records] == [
        "holdfast: the slots are not page-locked, so copies from the GPU are slower: cudaHostRegister answers 2"
    ]
    assert cuda.registered == [(4096, 10, pinning.PORTABLE)]


def test_without_cuda_nothing_is_page_locked_and_cuda_is_not_started() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert pinning.device_in_use() is None
    assert "Error" in pinning.pin(4096, 4096, 0), "a failure is words, never an exception"


@pytest.mark.gpu
@needs_gpu
def test_a_copy_from_a_gpu_is_complete_when_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SIDE_STREAM", "on")
    target = torch.zeros(64 << 20, dtype=torch.uint8)
    assert pinning.pin(target.data_ptr(), target.numel(), 0) == ""
    try:
        source = torch.randint(0, 255, (64 << 20,), dtype=torch.uint8, device="cuda")
        source.add_(1)  # issued, not waited for
        device.copy([(target, source)])
        assert torch.equal(target, source.cpu())
    finally:
        pinning.unpin(target.data_ptr())


@pytest.mark.gpu
@needs_gpu
def test_an_update_that_was_held_back_does_not_reach_the_copy() -> None:
    streams = device.TorchStreams(torch.device("cuda", 0))
    transfer = Transfer(streams)
    target = torch.zeros(256 << 20, dtype=torch.uint8).pin_memory()
    source = torch.ones(256 << 20, dtype=torch.uint8, device="cuda")
    transfer.begin([(target, source)])
    transfer.hold_back()
    source.add_(1)
    transfer.wait()
    assert bool((target == 1).all())
