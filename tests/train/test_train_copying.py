"""The copy into a slot: every byte, whatever the pointers do between two captures, in pieces that threads can share."""

import ctypes
import os
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import copying
from holdfast.copying import CopyTable, shares
from holdfast_rank.image import Item, Tier, lay_out

MIB = 1 << 20
spans = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40 * MIB)), min_size=1, max_size=12)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with copying.copy_pool() as made:
        yield made


@given(spans, st.integers(1, 4))
def test_shares_are_the_same_bytes_in_pieces_that_all_threads_can_work_on(
    found: list[tuple[int, int]], threads: int
) -> None:
    copies, at = [], 0
    for gap, length in found:
        at += gap
        copies.append((at, 1 << 40 | at * 3, length))
        at += length
    cut = shares(copies, threads=threads)
    total = sum(c[2] for c in copies)
    wanted = {c[0]: c for c in copies}
    end = {c[0] + c[2] for c in copies}
    for target, source, length in sorted(cut):
        original = next(c for c in sorted(wanted.values(), reverse=True) if c[0] <= target)
        assert source - target == original[1] - original[0]
        assert length > 0
        end.discard(target + length)
    assert sum(c[2] for c in cut) == total
    assert not end
    limit = max(copying.LEAST_PIECE_BYTES, total // (threads * copying.PIECES_PER_THREAD))
    assert max(c[2] for c in cut) <= limit
    assert [c[2] for c in cut] == sorted((c[2] for c in cut), reverse=True)


def test_tensors_that_lie_in_one_flat_buffer_are_one_copy() -> None:
    assert shares([(100, 500, 10), (110, 510, 20), (130, 600, 5)], threads=2) == [(100, 500, 30), (130, 600, 5)]


def table(tensors: dict[str, torch.Tensor]) -> tuple[CopyTable, torch.Tensor, dict[str, tuple[int, int]]]:
    items = [
        Item(n, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.element_size(), Tier.TRAINABLE)
        for n, t in tensors.items()
    ]
    layout = lay_out(items, state_bytes=64, chunk_bytes=4096)
    memory = torch.full((layout.image_bytes,), 0xEE, dtype=torch.uint8)
    entries = [e for e in layout.entries if e.name in tensors and e.length_bytes]
    return CopyTable(memory, entries), memory, {e.name: (e.offset_bytes, e.length_bytes) for e in entries}


def held(memory: torch.Tensor, place: tuple[int, int]) -> bytes:
    return memory[place[0] : place[0] + place[1]].numpy().tobytes()


def content(tensor: torch.Tensor) -> bytes:
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_a_tensor_that_moves_or_turns_between_two_captures_is_found(pool: ThreadPoolExecutor) -> None:
    """The table of addresses is kept from capture to capture; whatever decides how a tensor is copied is looked at anew."""
    a, square = torch.randn(64, 32), torch.randn(20, 20)
    waves = torch.randn(12, dtype=torch.complex64)
    tensors = {"a": a, "square": square, "waves": waves}
    copy, memory, places = table(tensors)
    changes = [
        lambda: None,
        lambda: a.add_(1),  # in place
        lambda: tensors.update(a=torch.randn(64, 32)),  # elsewhere
        lambda: tensors.update(square=square.t()),  # the same address and shape, other strides
        lambda: tensors.update(waves=waves.conj()),  # the same address, shape and strides
        lambda: tensors.update(waves=torch.randn(24, dtype=torch.complex64)[::2]),
    ]
    for change in changes:
        change()
        assert copy.copy(tensors, pool) == []
        for name, tensor in tensors.items():
            assert held(memory, places[name]) == content(tensor), name


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 9_000_000), min_size=1, max_size=6))
def test_large_copies_are_shared_by_threads_and_complete_when_it_returns(sizes: list[int]) -> None:
    tensors = {f"t{i}": torch.randint(0, 255, (n,), dtype=torch.uint8) for i, n in enumerate(sizes)}
    copy, memory, places = table(tensors)
    with copying.copy_pool() as pool:
        copy.copy(tensors, pool)
    for name, tensor in tensors.items():
        assert torch.equal(memory[places[name][0] : sum(places[name])], tensor)


def test_a_copy_ends_without_any_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool may be busy, or its threads without a core."""
    monkeypatch.setattr(copying, "thread_count", lambda: 4)
    source = torch.randint(0, 255, (64 * MIB,), dtype=torch.uint8)
    target = torch.zeros_like(source)
    with ThreadPoolExecutor(1) as pool:
        release = threading.Event()
        busy = pool.submit(release.wait)
        copying.run(shares([(target.data_ptr(), source.data_ptr(), source.numel())], threads=4), pool)
        assert torch.equal(source, target)
        assert not busy.done()
        release.set()


def test_no_tensor_is_kept_alive_by_the_table(pool: ThreadPoolExecutor) -> None:
    """What training frees between captures must be free: the table holds addresses, not tensors."""
    tensors = {"a": torch.randn(1000)}
    copy, _, _ = table(tensors)
    copy.copy(tensors, pool)
    gone = weakref.ref(tensors["a"])
    tensors["a"] = torch.randn(1000)
    assert gone() is None


def test_ten_thousand_small_tensors_cost_a_bounded_number_of_calls_each(
    monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    tensors = {f"t{i:05d}": torch.full((16,), i, dtype=torch.int32) for i in range(10_000)}
    copy, memory, places = table(tensors)
    copy.copy(tensors, pool)
    calls = []
    monkeypatch.setattr(ctypes, "memmove", lambda *piece: calls.append(piece))
    monkeypatch.setattr(copying, "copy_bits", lambda *_: pytest.fail("torch was called for a contiguous tensor"))
    monkeypatch.setattr(CopyTable, "_plan", lambda *_: pytest.fail("the table was made anew"))
    copy.copy(tensors, pool)
    assert len(calls) <= len(tensors)
    assert all(held(memory, places[n]) == content(t) for n, t in tensors.items())


def test_the_threads_are_bounded_by_the_cores_of_the_process() -> None:
    assert 1 <= copying.thread_count() <= min(copying.MOST_THREADS, len(os.sched_getaffinity(0)))
