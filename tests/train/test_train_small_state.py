"""What is kept at every boundary: memory in one system call, generators without asking them, copies that later changes do not reach (I2)."""

import collections
import ctypes
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast import generators, rng
from holdfast.gather import IOV_MAX, Gather
from holdfast.part import LARGE_BYTES, freeze

DRAWS = {
    "python": random.random,
    "python's pairs": lambda: random.gauss(0, 1),
    "numpy": lambda: np.random.rand(3),
    "numpy's pairs": lambda: np.random.randn(),
    "torch": lambda: torch.rand(3),
    "python seeded": lambda: random.seed(3),
    "numpy seeded": lambda: np.random.seed(3),
}


@given(st.lists(st.sampled_from(sorted(DRAWS)), max_size=30))
def test_generators_are_kept_as_they_would_say_themselves(draws: list[str]) -> None:
    """After draws of every kind, the kept half of a pair of normal numbers among what counts."""
    kept = generators.Generators()
    gather = Gather(kept.segments)
    assert len(kept.segments) == 3, "both have been found in memory"
    for draw in draws:
        DRAWS[draw]()
        gather.take()
        state = kept.state(kept.note(), [gather.piece(i) for i in range(3)])
        assert state == rng.capture()


def test_generators_that_are_not_found_in_memory_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generators, "_inside", lambda known, pattern: None)
    kept = generators.Generators()
    assert kept.segments == []
    assert kept.state(kept.note(), []) == rng.capture()


def test_an_exchanged_generator_of_numpy_is_noticed() -> None:
    kept = generators.Generators()
    assert kept.valid
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(1))
        assert not kept.valid
    finally:
        np.random.set_bit_generator(before)


@pytest.mark.parametrize("count", [0, 1, IOV_MAX, 3 * IOV_MAX + 7])
def test_any_number_of_pieces_is_collected(count: int) -> None:
    source = torch.arange(4 * max(count, 1), dtype=torch.int32).view(torch.uint8)
    gather = Gather([(source.data_ptr() + 16 * i, 3 + i % 5) for i in range(count)])
    gather.take()
    data = source.numpy().tobytes()
    assert [gather.piece(i) for i in range(count)] == [data[16 * i : 16 * i + 3 + i % 5] for i in range(count)]
    assert gather.pieces(0, count) == b"".join(gather.piece(i) for i in range(count))


def test_memory_that_is_not_there_is_an_error_and_no_crash() -> None:
    with pytest.raises(OSError, match="Bad address"):
        Gather([(8, 64)]).take()


def test_pieces_that_differ_are_named() -> None:
    memory = ctypes.create_string_buffer(b"abcdefgh", 8)
    address = ctypes.addressof(memory)
    before, now = (Gather([(address, 4), (address + 4, 4)]) for _ in range(2))
    before.take()
    memory[5] = b"x"
    now.take()
    assert now.differing(before) == [1]


def test_what_is_kept_is_not_reached_by_later_changes() -> None:
    value = {
        "list": [1, [2]], "tuple": ([3],), "ordered": collections.OrderedDict(a=[4]), "counter": collections.Counter("aa"),
        "set": {5}, "tensor": torch.ones(2), "array": np.ones(2), "text": "x", "bytes": bytearray(b"y"),
    }  # fmt: skip
    kept = freeze(value)
    want = repr(kept)
    value["list"][1].append(9)
    value["tuple"][0].append(9)
    value["ordered"]["a"].append(9)
    value["counter"]["b"] += 1
    value["set"].add(9)
    value["tensor"].add_(1)
    value["array"] += 1
    value["bytes"].append(9)
    value["new"] = 9
    assert repr(kept) == want
    assert type(kept["ordered"]) is collections.OrderedDict
    large = torch.zeros(LARGE_BYTES)
    assert freeze(large).data_ptr() == large.data_ptr(), "large tensors stand still, or the audit says so"
