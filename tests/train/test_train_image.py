"""J1, J2: the image is exactly a safetensors file, its header depends on the plan alone, and what is frozen keeps its chunks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import CHUNK, FakeAgent, Image
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

import holdfast
from holdfast_rank.image import FILLER_PREFIX, PAGE, STATE_NAME, Item, Tier, lay_out, state_capacity

items = st.lists(
    st.builds(
        Item,
        name=st.text("abc.0", min_size=1, max_size=6),
        dtype=st.just("uint8"),
        shape=st.lists(st.integers(0, 40), max_size=3).map(tuple),
        item_bytes=st.just(1),
        tier=st.sampled_from([Tier.FROZEN, Tier.TRAINABLE, Tier.OPTIMIZER]),
    ),
    max_size=30,
    unique_by=lambda i: i.name,
)


@settings(deadline=None)
@given(items)
def test_any_layout_has_no_holes_ends_on_a_page_and_starts_tiers_on_chunks(found: list[Item]) -> None:
    layout = lay_out(found, state_bytes=1 << 16, chunk_bytes=CHUNK)
    assert len(layout.header) % PAGE == 0
    assert layout.image_bytes % PAGE == 0
    spans = sorted([(e.offset_bytes, e.length_bytes) for e in layout.entries] + list(layout.fillers))
    end = len(layout.header)
    for offset, length in spans:
        assert offset == end
        end = offset + length
    assert end == layout.image_bytes
    tiers = {i.name: Tier.SMALL if i.length <= 4096 else i.tier for i in found} | {STATE_NAME: Tier.SMALL}
    firsts: dict[Tier, int] = {}
    for entry in sorted(layout.entries, key=lambda e: e.offset_bytes):
        firsts.setdefault(tiers[entry.name], entry.offset_bytes)
    assert list(firsts) == sorted(firsts)
    assert all(offset % CHUNK == 0 for offset in list(firsts.values())[1:])


@given(items)
def test_equal_plans_give_equal_bytes_in_whatever_order_they_are_listed(found: list[Item]) -> None:
    a = lay_out(found, state_bytes=1 << 16, chunk_bytes=CHUNK)
    assert a == lay_out(list(reversed(found)), state_bytes=1 << 16, chunk_bytes=CHUNK)


def test_names_that_holdfast_uses_itself_are_refused() -> None:
    with pytest.raises(ValueError, match="reserved"):
        lay_out([Item(STATE_NAME, "uint8", (1,), 1, Tier.SMALL)], state_bytes=1, chunk_bytes=CHUNK)


def test_the_state_may_double_before_the_image_is_planned_anew() -> None:
    assert state_capacity(0) == 64 << 10
    assert all(2 * n <= state_capacity(n) < 5 * n for n in (40_000, 100_000, 1_000_000))


class Everything(nn.Module):
    """One tensor of every dtype, and of every awkward form."""

    NOT_SAVED = ("qint8", "qint32", "quint8", "quint4x2", "quint2x4")

    def __init__(self, fill: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1 if fill else 2)
        for name in self.dtypes():
            dtype = getattr(torch, name)
            size = 24 * torch.empty(0, dtype=dtype).element_size()
            raw = torch.randint(0, 2 if name == "bool" else 255, (size,), dtype=torch.uint8, generator=generator)
            self.register_buffer(f"of_{name}", raw.view(dtype).reshape(4, 6))
        noise = torch.randn(40, 60, generator=generator)
        self.register_buffer("transposed", noise.clone().t())
        self.register_buffer("strided", noise.repeat(2, 2)[::2, ::3])
        self.register_buffer("conjugated", torch.randn(30, 20, dtype=torch.complex64, generator=generator).conj())
        self.register_buffer("scalar", noise[0, 0].clone())
        self.register_buffer("empty", torch.zeros(0, 7))
        self.register_buffer("odd", noise.flatten()[:101].to(torch.int8))
        self.register_buffer("loose", noise[:3, :3].clone(), persistent=False)

    @classmethod
    def dtypes(cls) -> list[str]:
        found = {str(v).removeprefix("torch.") for v in vars(torch).values() if isinstance(v, torch.dtype)}
        return sorted(found - set(cls.NOT_SAVED))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def captured(agent: FakeAgent, **parts: Any) -> Image:
    """The image of `parts` at boundary 1."""
    ckpt = holdfast.Checkpointer(**parts)
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    return agent.newest()


@pytest.mark.filterwarnings("ignore:.*omplex.* support is experimental")
def test_every_dtype_and_form_of_tensor_comes_back_bit_by_bit(agent: FakeAgent) -> None:
    before, after = Everything(fill=True), Everything(fill=False)
    image = captured(agent, model=before)
    agent.restore_from = {0: [image]}
    ckpt = holdfast.Checkpointer(model=after)
    assert ckpt.restore() == 1
    for (name, a), (_, b) in zip(before.named_buffers(), after.named_buffers(), strict=True):
        assert a.dtype == b.dtype
        assert bits(a) == bits(b), name


@pytest.mark.filterwarnings("ignore:.*omplex.* support is experimental")
def test_safetensors_reads_the_image_and_finds_every_tensor_it_has_a_type_for(agent: FakeAgent) -> None:
    model = Everything(fill=True)
    image = captured(agent, model=model)
    with safe_open(image.path, "pt") as file:
        names = set(file.keys())
        for name, tensor in model.state_dict().items():
            read = file.get_tensor(f"model.{name}")
            assert bits(read) == bits(tensor), name
            assert read.dtype == tensor.dtype or read.dtype == torch.uint8
        assert file.get_tensor("model.scalar").shape == ()
        assert file.get_tensor("model.empty").shape == (0, 7)
        fillers = [file.get_tensor(n) for n in names if n.startswith(FILLER_PREFIX)]
    assert fillers
    assert not any(f.any() for f in fillers), "fillers are zero, whatever the slot held"
    true = {e.name: e.dtype for e in image.entries}
    assert true["model.of_complex128"] == "complex128"
    assert true["model.of_int4"] == "int4"


def adapter(rank: int = 8) -> nn.Sequential:
    """A large frozen part and a small trainable one, as in LoRA."""
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256), nn.Linear(256, rank), nn.Linear(rank, 256))
    for layer in list(model)[:2]:
        layer.requires_grad_(False)
    return model


def test_the_header_is_free_of_step_and_time_and_frozen_parts_keep_their_chunks(tmp_path: Path) -> None:
    model = adapter()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with FakeAgent(tmp_path, every_steps=1) as agent, agent.as_environment():
        ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
        ckpt.restore()
        for _ in range(3):
            model(torch.randn(8, 256)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            ckpt.step()
        ckpt.finish()
        first, last = agent.images[0][1], agent.images[0][3]
        a, b = first.chunks(), last.chunks()
    frozen = sum(p.numel() * 4 for p in model.parameters() if not p.requires_grad)
    assert a[0] == b[0], "the chunk with the header"
    same = [x == y for x, y in zip(a, b, strict=True)]
    assert same[: frozen // CHUNK] == [True] * (frozen // CHUNK)
    assert not all(same)
    trained = next(e for e in first.entries if e.name == "model.2.weight")
    assert trained.offset_bytes % CHUNK == 0


def test_tied_weights_are_stored_once_and_stay_tied(agent: FakeAgent) -> None:
    def tied(value: float) -> nn.Module:
        model = nn.ModuleDict({"embed": nn.Embedding(50, 64), "head": nn.Linear(64, 50, bias=False)})
        model["head"].weight = model["embed"].weight
        nn.init.constant_(model["head"].weight, value)
        return model

    image = captured(agent, model=tied(1.5))
    entries = {e.name: e for e in image.entries}
    assert entries["model.head.weight"].tied_to == "model.embed.weight"
    assert entries["model.head.weight"].offset_bytes == entries["model.embed.weight"].offset_bytes
    agent.restore_from = {0: [image]}
    model = tied(0.0)
    holdfast.Checkpointer(model=model).restore()
    assert model["head"].weight is model["embed"].weight
    assert model["head"].weight.unique().tolist() == [1.5]


def test_a_plan_that_no_longer_fits_is_made_anew_and_no_tensor_is_dropped(tmp_path: Path) -> None:
    """I9: optimizer state that appears late, a parameter unfrozen, a state that outgrows its room."""
    model = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
    optimizer = torch.optim.AdamW(model.parameters())
    notes = holdfast.Value("")
    with FakeAgent(tmp_path, every_steps=1) as agent, agent.as_environment():
        ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, notes=notes)
        ckpt.restore()
        for step in range(4):
            for layer in list(model)[: 1 if step < 2 else 2]:
                layer(torch.randn(4, 64)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 3:
                notes.value = "x" * 200_000
            ckpt.step()
        ckpt.finish()
        names = [{e.name for e in agent.images[0][b].entries} for b in (1, 2, 3, 4)]
        plans = [agent.images[0][b].message.plan for b in (1, 2, 3, 4)]
        assert "optimizer.state.2.exp_avg" not in names[1]
        assert "optimizer.state.2.exp_avg" in names[2]
        assert plans == [1, 1, 2, 3]
        agent.restore_from = {0: [agent.newest()]}
        again = holdfast.Value()
        fresh = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
        other = torch.optim.AdamW(fresh.parameters())
        holdfast.Checkpointer(model=fresh, optimizer=other, notes=again).restore()
    assert again.value == notes.value
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(optimizer.state[p]["exp_avg"], other.state[q]["exp_avg"])
