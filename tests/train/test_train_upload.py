"""From an image on the host into tensors on a GPU: in page-locked pieces, the small ones together. A fake GPU; test_train_gpu.py does it over CUDA."""

import pytest
import torch
from fake_gpu import FakeStreams

from holdfast import device, filling, upload


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Addresses of what lies on the device."""
    found: set[int] = set()
    monkeypatch.setattr(device, "is_far", lambda t: t.data_ptr() in found)
    monkeypatch.setattr(upload, "BUFFER_BYTES", 4096)
    monkeypatch.setattr(upload, "SMALL_BYTES", 512)
    return found


def on(far: set[int], tensor: torch.Tensor) -> torch.Tensor:
    far.add(tensor.data_ptr())
    return tensor


def test_everything_arrives_whatever_its_size_and_dtype(far: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    streams = FakeStreams()
    monkeypatch.setattr(device, "streams_of", lambda place: streams)
    sources = {f"tiny {i}": torch.randn(i % 9 + 1) for i in range(50)}
    sources |= {"several buffers": torch.randn(10_001), "one": torch.randn(1024), "bits": torch.rand(777) > 0.5}
    sources |= {
        "half": torch.randn(3001).bfloat16(),
        "last": torch.tensor(2.5),
        "f8": torch.randn(5).to(torch.float8_e4m3fn),
    }
    targets = {n: on(far, torch.zeros_like(t)) for n, t in sources.items()}
    filling.fill([(targets[n], sources[n]) for n in sources])
    for name, target in targets.items():
        assert torch.equal(target.view(-1).view(torch.uint8), sources[name].view(-1).view(torch.uint8)), name
    assert streams.calls.count("give") > upload.BUFFERS, "buffers were used again"
    assert streams.pending == 0, "the image may go away"
    assert streams.calls[0] == "follow", "after what the current stream was given before"
    assert any(c.startswith("hold back") for c in streams.calls), "before what it is given afterwards"


def test_a_buffer_is_not_filled_again_while_the_device_reads_it(far: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake reads it at the last moment."""
    streams = FakeStreams()
    monkeypatch.setattr(device, "streams_of", lambda place: streams)
    source = torch.arange(16_000.0)
    target = on(far, torch.zeros(16_000))
    assert upload.upload([(target, source)]) == []
    assert torch.equal(target, source)


def test_tied_targets_are_sent_once_and_the_rest_is_left(far: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    streams = FakeStreams()
    monkeypatch.setattr(device, "streams_of", lambda place: streams)
    target, source = on(far, torch.zeros(300)), torch.randn(300)
    turned = on(far, torch.zeros(5, 7).t())
    near = torch.zeros(4)
    rest = [(turned, torch.ones(7, 5)), (near, torch.ones(4)), (on(far, torch.zeros(3)), torch.ones(3).double())]
    assert upload.upload([(target, source), (target, source), *rest]) == rest
    assert torch.equal(target, source)
    assert streams.calls.count("give") == 1


def test_switched_off_it_is_torch_that_copies(far: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SIDE_STREAM", "off")
    pair = (on(far, torch.zeros(300)), torch.randn(300))
    assert upload.upload([pair]) == [pair]
    filling.fill([pair])
    assert torch.equal(*pair)
