"""Every kind of tensor that a training script may hold is saved bit by bit or refused by its name: never a traceback in training, never a checkpoint that
lacks something (I9)."""

import math
import mmap
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent
from safetensors import safe_open
from torch import nn

import holdfast
from holdfast import copying, live
from holdfast_api import ranks
from holdfast_rank import image
from holdfast_rank.image import Item, Tier, lay_out

MIB = 1 << 20


class Holder(nn.Module):
    """Buffers by name."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def content(tensor: torch.Tensor) -> bytes:
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def saved_and_restored(agent: FakeAgent, make: Callable[[int], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A model of seed 1 that was saved, and one of seed 2 that was restored from it."""
    before, after = make(1), make(2)
    ckpt = holdfast.Checkpointer(model=before)
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    assert holdfast.Checkpointer(model=after).restore() == 1
    return before, after


def noise(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


FORMS: dict[str, Callable[[int], dict[str, torch.Tensor]]] = {
    "expanded": lambda s: {"a": noise(s, 1, 4).expand(3, 4)},
    "expanded from one number": lambda s: {"a": noise(s, 1)[0].expand(5, 6)},
    "windows that overlap": lambda s: {"a": noise(s, 10).unfold(0, 4, 1)},
    "two views that overlap in part": lambda s: {"a": (base := noise(s, 12))[:8], "b": base[4:]},
    "the same bytes in another shape": lambda s: {"a": (base := noise(s, 3000)), "b": base.view(30, 100)},
    "the same bytes transposed": lambda s: {"a": (base := noise(s, 40, 40)), "b": base.t()},
    "the same bytes as another dtype": lambda s: {"a": (base := noise(s, 2000)), "b": base.view(torch.int32)},
    "a lazily negated one": lambda s: {"a": noise(s, 20, dtype=torch.complex64).conj().imag},
    "a lazily conjugated one": lambda s: {"a": noise(s, 20, dtype=torch.complex64).conj()},
    "of no elements in every way": lambda s: {"a": torch.empty(0), "b": torch.empty(3, 0, 2), "c": torch.empty(0).expand(4, 0)},
    "of no dimension": lambda s: {"a": noise(s, 1)[0].clone(), "b": torch.tensor(s == 1)},
    "channels last": lambda s: {"a": noise(s, 2, 3, 8, 8).to(memory_format=torch.channels_last)},
    "backwards in a larger one": lambda s: {"a": noise(s, 200, 200)[10:150:3, 7::2]},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_tensor_comes_back_bit_by_bit(agent: FakeAgent, name: str) -> None:
    before, after = saved_and_restored(agent, lambda seed: Holder(**FORMS[name](seed)))
    for (key, a), (_, b) in zip(before.named_buffers(), after.named_buffers(), strict=True):
        assert content(a) == content(b), key


def test_every_dtype_that_safetensors_lacks_is_bytes_there_and_true_in_the_manifest(agent: FakeAgent) -> None:
    dtypes = sorted({str(v).removeprefix("torch.") for v in vars(torch).values() if isinstance(v, torch.dtype)})
    quantized = {n for n in dtypes if n.startswith(("q", "quint"))}
    raw = {n: torch.arange(64, dtype=torch.uint8).remainder(2) for n in dtypes if n not in quantized}
    model = Holder(**{f"of_{n}": t.view(getattr(torch, n)) for n, t in raw.items()})
    ckpt = holdfast.Checkpointer(model=model)
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    entries = {e.name.removeprefix("model.of_"): e.dtype for e in agent.newest().entries}
    with warnings.catch_warnings(), safe_open(agent.newest().path, "pt") as file:
        warnings.simplefilter("ignore")
        for name in raw:
            read = file.get_tensor(f"model.of_{name}")
            assert entries[name] == name
            assert content(read) == content(getattr(model, f"of_{name}"))
            assert (str(read.dtype) == f"torch.{name}") == (name in image.HEADER_DTYPES), name


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.randn(2), torch.randn(3)])


REFUSED: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "quantized": (quantized, r"model\.a is a quantized tensor"),
    "nested": (nested, r"model\.a is a (nested tensor|.*NestedTensor)"),
    "sparse": (lambda: torch.eye(3).to_sparse_csr(), r"model\.a is a torch\.sparse_csr tensor"),
    "strided and not to be copied": (
        lambda: torch.zeros(4, 4, dtype=torch.uint8).view(torch.int4).t(),
        r"model\.a is a strided tensor of torch\.int4",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_saved_is_refused_by_name_before_training(agent: FakeAgent, name: str) -> None:
    make, words = REFUSED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(holdfast.UnsupportedState, match=words):
            holdfast.Checkpointer(model=Holder(a=make())).restore()


def test_text_with_half_a_character_comes_back(agent: FakeAgent) -> None:
    """The name of a file that is no UTF-8, as Python gives it."""
    at = holdfast.Value("/data/\udcff.bin")
    ckpt = holdfast.Checkpointer(at=at)
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    again = holdfast.Value("")
    assert holdfast.Checkpointer(at=again).restore() == 1
    assert again.value == at.value


def test_a_tensor_under_a_name_with_half_a_character_is_in_an_image_that_everybody_reads(agent: FakeAgent) -> None:
    """J1: a cache by file names, one of which is no UTF-8."""
    cache = {"/data/\udcff.bin": noise(1, 3000), "/data/\\udcff.bin": noise(2, 3000), "/data/ä.bin": noise(3, 3000)}
    ckpt = holdfast.Checkpointer(cache=holdfast.Value(cache))
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    with safe_open(agent.newest().path, "pt") as file:
        assert "cache.value./data/ä.bin" in file.keys()  # noqa: SIM118  it is no mapping
        assert torch.equal(file.get_tensor("cache.value./data/\\udcff.bin"), cache["/data/\udcff.bin"])
    again = holdfast.Value()
    assert holdfast.Checkpointer(cache=again).restore() == 1
    assert list(again.value) == list(cache)
    assert all(torch.equal(again.value[n], t) for n, t in cache.items())


def test_a_lazy_module_is_refused_with_what_to_do(agent: FakeAgent) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.LazyLinear(4)
    with pytest.raises(
        holdfast.UnsupportedState, match=r"model\.weight is a .*UninitializedParameter, .*run one batch"
    ):
        holdfast.Checkpointer(model=model).restore()


def trained(agent: FakeAgent, model: nn.Module, steps: int, between: Callable[[int], Any]) -> None:
    agent.every_steps = 1
    ckpt = holdfast.Checkpointer(model=model)
    ckpt.restore()
    for step in range(1, steps + 1):
        between(step)
        ckpt.step()
    ckpt.finish()


def test_a_tensor_whose_memory_was_taken_away_ends_saving_by_name_and_not_the_process(
    agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    model = Holder(a=torch.randn(4000), b=torch.randn(4000))

    def between(step: int) -> None:
        if step == 3:
            model.b.untyped_storage().resize_(0)  # as FSDP frees what it has gathered

    trained(agent, model, 5, between)
    assert sorted(agent.images[0]) == [1, 2]
    assert sum("model.b needs 16000 bytes of memory and has 0" in r.getMessage() for r in caplog.records) == 1


def test_a_tensor_that_turns_into_something_else_in_training_ends_saving_by_name(
    agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    model = Holder(a=torch.randn(40))
    trained(agent, model, 4, lambda step: step == 3 and model.register_buffer("a", torch.eye(3).to_sparse()))
    assert sorted(agent.images[0]) == [1, 2]
    assert sum("model.a is a torch.sparse_coo tensor" in r.getMessage() for r in caplog.records) == 1


def test_tensors_that_change_shape_dtype_or_appear_late_are_all_in_the_next_checkpoint(agent: FakeAgent) -> None:
    model = Holder(a=torch.zeros(40))
    changes: dict[int, Callable[[], Any]] = {
        2: lambda: model.register_buffer("a", torch.arange(90.0)),
        3: lambda: model.register_buffer("late", torch.arange(5)),
        4: lambda: model.register_buffer("a", torch.arange(90)),
        5: lambda: delattr(model, "late"),
    }
    trained(agent, model, 5, lambda step: changes.get(step, lambda: None)())
    found = {
        b: {e.name: (e.dtype, e.shape) for e in i.entries if e.name.startswith("model.")}
        for b, i in agent.images[0].items()
    }
    assert found == {
        1: {"model.a": ("float32", (40,))},
        2: {"model.a": ("float32", (90,))},
        3: {"model.a": ("float32", (90,)), "model.late": ("int64", (5,))},
        4: {"model.a": ("int64", (90,)), "model.late": ("int64", (5,))},
        5: {"model.a": ("int64", (90,))},
    }
    with safe_open(agent.images[0][4].path, "pt") as file:
        assert torch.equal(file.get_tensor("model.a"), torch.arange(90))
        assert torch.equal(file.get_tensor("model.late"), torch.arange(5))


def test_a_slot_file_that_somebody_cuts_short_ends_saving_in_words_and_training_goes_on(
    agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    """A write behind its end would be SIGBUS: the end of training."""

    def between(step: int) -> None:
        if step == 3:
            agent.wait(lambda: len(agent.captured) == 2, "both captures")
            for path in agent.connections[0].slots:
                os.truncate(path, 4096)

    trained(agent, Holder(a=torch.randn(4000)), 5, between)
    assert sorted(agent.images[0]) == [1, 2]
    assert sum("slot file" in r.getMessage() and "has 4096 bytes" in r.getMessage() for r in caplog.records) == 1


def test_slots_smaller_than_the_image_are_refused_in_words(agent: FakeAgent, caplog: pytest.LogCaptureFixture) -> None:
    small = agent._make_slots

    def cheat(connection: Any, plan: ranks.Plan) -> ranks.FromAgent:
        answer = small(connection, plan)
        assert isinstance(answer, ranks.Slots)
        return ranks.Slots(answer.plan, answer.paths, answer.slot_bytes // 2)

    agent._make_slots = cheat  # type: ignore[method-assign]
    trained(agent, Holder(a=torch.randn(4000)), 3, lambda step: None)
    assert agent.captured == []
    assert any("the agent offers 2 slots of" in r.getMessage() for r in caplog.records)


def test_ten_thousand_small_tensors_come_back(agent: FakeAgent) -> None:
    def make(seed: int) -> nn.Module:
        return Holder(**{f"t{i}": t for i, t in enumerate(noise(seed, 10_000, 7).unbind())})

    before, after = saved_and_restored(agent, make)
    assert all(torch.equal(a, b) for a, b in zip(before.buffers(), after.buffers(), strict=True))


def test_a_tensor_of_eight_gib_has_its_place_and_its_neighbours_theirs() -> None:
    large = Item("large", "float32", (1 << 31,), 4, Tier.TRAINABLE)
    after = Item("later", "float32", (3000,), 4, Tier.TRAINABLE)
    layout = lay_out([after, large], state_bytes=64, chunk_bytes=16 * MIB)
    at = {e.name: (e.offset_bytes, e.length_bytes) for e in layout.entries}
    assert at["large"] == (4096, 8 << 30)
    assert at["later"] == (4096 + (8 << 30), 12_000)
    assert layout.image_bytes > 8 << 30


def reserved(size: int) -> torch.Tensor:
    """Addresses without memory behind them: none is used until somebody looks."""
    no_reserve = 0x4000  # MAP_NORESERVE, which this Python does not name
    return torch.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | no_reserve), dtype=torch.uint8)


def test_a_tensor_of_eight_gib_is_copied_once_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a boundary and in the middle of a step; only what moves the bytes is left out."""
    size = 8 << 30
    source = reserved(size).view(torch.float32)
    layout = lay_out([Item("large", "float32", (size // 4,), 4, Tier.TRAINABLE)], state_bytes=64, chunk_bytes=16 * MIB)
    memory = reserved(layout.image_bytes)
    entry = next(e for e in layout.entries if e.name == "large")
    start = memory.data_ptr() + entry.offset_bytes
    moved: list[copying.Piece] = []
    monkeypatch.setattr(copying, "run", lambda pieces, pool: moved.extend(pieces))
    with copying.copy_pool() as pool:
        assert copying.CopyTable(memory, [entry]).copy({"large": source}, pool) == []
    between = live._pairs(memory[entry.offset_bytes : entry.offset_bytes + size], source)
    for found in (moved, [(t.data_ptr(), s.data_ptr(), t.nbytes) for t, s in between]):
        at = start
        for target, origin, length in sorted(found):
            assert (target, origin - source.data_ptr()) == (at, at - start)
            at += length
        assert at == start + size
        assert len(found) > 8


def test_more_names_than_safetensors_reads_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MOST_HEADER_BYTES", 8192)
    items = [Item(f"tensor.{i}", "float32", (2,), 4, Tier.TRAINABLE) for i in range(200)]
    with pytest.raises(
        ValueError, match=r"the names of 201 tensors make a header of \d+ bytes; safetensors reads at most 8192"
    ):
        lay_out(items, state_bytes=64, chunk_bytes=4096)


@pytest.mark.parametrize("count", [1, 40, 60, 700])
def test_the_header_is_padded_to_pages_also_where_names_need_more_than_one(count: int, tmp_path: Path) -> None:
    items = [Item(f"a.rather.long.name.of.tensor.{i:04d}", "float32", (2000,), 4, Tier.TRAINABLE) for i in range(count)]
    layout = lay_out(items, state_bytes=64, chunk_bytes=1 << 16)
    path = tmp_path / "image.safetensors"
    path.write_bytes(layout.header + bytes(layout.image_bytes - len(layout.header)))
    assert len(layout.header) % image.PAGE == 0
    assert layout.image_bytes % image.PAGE == 0
    with safe_open(path, "pt") as file:
        assert sum(not n.startswith("holdfast.") for n in set(file.keys())) == count
    first = min(e.offset_bytes for e in layout.entries)
    assert first == math.ceil(first / image.PAGE) * image.PAGE == len(layout.header)
