"""C4: what must be finite is the same at a save and at a load, whoever looks: the agent at the bits, torch at the numbers."""

import numpy
import pytest
import torch
from fake_agent import FakeAgent

import holdfast
from holdfast import filling
from holdfast.finite import must_be_finite
from holdfast.load import open_image
from holdfast.state import read_document
from holdfast_agent.finite import FORMATS, Look
from holdfast_api import ranks
from holdfast_api.manifest import TensorEntry
from holdfast_rank.image import STATE_NAME

FLOATS = [
    d
    for d in vars(torch).values()
    if isinstance(d, torch.dtype) and (d.is_floating_point or d.is_complex) and "float4" not in str(d)
]


@pytest.mark.parametrize("dtype", sorted(set(FLOATS), key=str), ids=str)
def test_every_bit_pattern_is_judged_as_torch_judges_it(dtype: torch.dtype) -> None:
    """All of 8 bits; of more every first byte with some second ones, and those beside. One number at a time, beside an ordinary one."""
    name = str(dtype).removeprefix("torch.")
    item = FORMATS[name].item_bytes
    bits = numpy.arange(256, dtype=f"u{item}")
    if item > 1:
        seconds = numpy.array([0x00, 0x01, 0x7C, 0x7F, 0x80, 0xF0, 0xFF], dtype=f"u{item}")
        high = ((bits[:, None] << 8) | seconds).reshape(-1) << (8 * (item - 2))
        bits = numpy.concatenate([high, high - 1, high + 1])
    rows = numpy.stack([bits, numpy.ones_like(bits)], axis=1)
    numbers = torch.from_numpy(rows.copy()).view(dtype)
    for row, number in zip(rows, numbers, strict=True):
        entry = TensorEntry("w", name, (number.numel(),), 0, 2 * item)
        look = Look([entry], ["w"], 1)
        look.piece(memoryview(row).cast("B"), 0)
        assert look.finite is (filling.first_not_finite([("w", number)]) is None), hex(int(row[0]))


def test_the_plan_names_trained_parameters_and_optimizer_state_and_nothing_else(agent: FakeAgent) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    model[0].requires_grad_(False)
    model.register_buffer("mask", torch.full((4, 4), float("-inf")), persistent=False)
    alpha = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([*model[1].parameters(), *model[2].parameters(), alpha])
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    ckpt.restore()
    agent.every_steps = 1
    (model(torch.randn(8, 4)).mean() * (1 + alpha)).backward()
    optimizer.step()
    optimizer.zero_grad()
    ckpt._every = 1
    ckpt.step()
    agent.wait(lambda: bool(agent.images[0]), "an image")
    plan: ranks.Plan = agent.heard(ranks.Plan)[-1]
    assert plan.must_be_finite is not None
    named = set(plan.must_be_finite)
    assert {"model.1.weight", "model.1.bias", "model.2.weight", "model.2.bias"} <= named
    assert not named & {"model.0.weight", "model.1.running_mean", "model.mask"}
    assert sum(n.startswith("optimizer.orphan") for n in named) == 1
    assert sum("exp_avg_sq" in n for n in named) == 5
    image = agent.newest()
    tensors = open_image(str(image.path), plan.image_bytes, image.entries)
    document = read_document(tensors[STATE_NAME].numpy().tobytes())
    assert must_be_finite(document) == list(plan.must_be_finite), (
        "what is looked at beside the save is what is looked at when it is loaded"
    )
