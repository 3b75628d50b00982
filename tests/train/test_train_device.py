"""I3: a slot is clean only when the event behind its copy has completed on the host. The state machine runs over fake streams, which complete when told
to; test_train_gpu.py runs the same over CUDA's, where there is one."""

import weakref
from collections.abc import Callable

import pytest
import torch
from fake_gpu import FakeStreams

from holdfast import device, pinning
from holdfast.device import Transfer


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(4), torch.arange(4.0)


def begin(transfer: Transfer, moved: tuple[torch.Tensor, torch.Tensor]) -> None:
    def work() -> None:
        moved[0].copy_(moved[1])

    transfer.begin(work, moved)


def test_a_slot_is_clean_only_when_the_event_behind_the_copy_has_completed() -> None:
    streams = FakeStreams()
    transfer, moved = Transfer(streams), pair()
    assert transfer.clean
    begin(transfer, moved)
    assert streams.calls == ["follow", "give", "record"], (
        "it begins after what the update has issued, and the event is last"
    )
    assert not transfer.clean
    assert moved[0].sum() == 0
    streams.run(1)
    assert transfer.clean
    assert torch.equal(*moved)


def test_the_update_is_held_back_by_the_copy_while_there_is_one() -> None:
    streams = FakeStreams()
    transfer = Transfer(streams)
    transfer.hold_back()
    begin(transfer, pair())
    transfer.hold_back()
    transfer.wait()
    transfer.hold_back()
    assert streams.calls == ["follow", "give", "record", "hold back 1", "wait"]


def test_a_slot_is_not_written_twice_at_once() -> None:
    transfer = Transfer(FakeStreams())
    begin(transfer, pair())
    with pytest.raises(RuntimeError, match="under way"):
        begin(transfer, pair())
    transfer.wait()
    begin(transfer, pair())


def test_the_source_lives_until_the_copy_is_done() -> None:
    """Its memory would be given to another tensor while the copy engine still reads it."""
    streams = FakeStreams()
    transfer = Transfer(streams)
    moved = pair()
    source = weakref.ref(moved[1])
    transfer.begin(lambda: None, moved)
    del moved
    assert source() is not None
    streams.run(1)
    assert transfer.clean
    assert source() is None


def test_what_was_issued_before_a_failure_is_waited_for() -> None:
    """A copy that runs on into a slot that somebody else was given would tear that one."""
    streams = FakeStreams()
    transfer = Transfer(streams)

    def give(work: Callable[[], None]) -> None:
        raise RuntimeError("CUDA error: out of memory")

    streams.give = give  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of memory"):
        begin(transfer, pair())
    assert streams.calls == ["follow", "record"]
    transfer.wait()
    assert streams.calls[-1] == "wait"


def test_the_side_stream_is_on_unless_a_person_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOLDFAST_SIDE_STREAM", raising=False)
    assert device.side_stream_wanted()
    monkeypatch.setenv("HOLDFAST_SIDE_STREAM", "off")
    assert not device.side_stream_wanted()
    assert "HOLDFAST_SIDE_STREAM" in device.why_not_beside([torch.zeros(1)])


def test_no_thread_of_ours_uses_cuda_where_it_could_spoil_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """I7."""
    monkeypatch.delenv("HOLDFAST_SIDE_STREAM", raising=False)
    monkeypatch.setattr(device, "relaxes", lambda: False)
    assert "capture of a graph" in device.why_not_beside([torch.zeros(1)])
    monkeypatch.setattr(device, "relaxes", lambda: True)
    assert device.why_not_beside([torch.zeros(1)]) == ""


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
