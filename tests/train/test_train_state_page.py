"""docs/format.md names everything that stands in the state of a rank: who reads a checkpoint with other tools has nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent
from test_train_registered_objects import WithMetric
from torch.utils.data import DataLoader, TensorDataset

import holdfast
from holdfast import tree
from holdfast.allowed import WORDS
from holdfast.state import Registry

PAGE = Path(__file__).parents[2] / "docs"
SECTION = (PAGE / "format.md").read_text().partition("### The state of a rank")[2].partition("### Verdict")[0]


def unnamed(names: Any) -> list[str]:
    return [name for name in names if f"`{name}`" not in SECTION and f'"{name}"' not in SECTION]


def state_of(agent: FakeAgent) -> dict[str, Any]:
    """Of a run that has something of everything."""
    model = WithMetric()
    model.metric.update(torch.tensor(1.0))
    optimizer = torch.optim.AdamW(model.parameters())
    loader: DataLoader[Any] = DataLoader(
        TensorDataset(torch.arange(8)), batch_size=2, shuffle=True, generator=torch.Generator()
    )
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, loader=loader, own=torch.Generator())
    ckpt.describe(dataset="v1")
    ckpt.restore()
    next(ckpt.batches(loader))
    model.layer(torch.ones(1, 3)).sum().backward()
    ckpt.step()
    ckpt.finish()
    image = agent.newest()
    entry = next(e for e in image.entries if e.name == "holdfast.state.json")
    text = image.path.read_bytes()[entry.offset_bytes : entry.offset_bytes + entry.length_bytes]
    found: dict[str, Any] = json.loads(text)
    return found


def test_every_field_of_the_state_is_on_the_page(agent: FakeAgent) -> None:
    state = state_of(agent)
    assert state["gradients"]["model"], "an open window"
    assert unnamed(state) == []
    for part in ("model", "optimizer"):
        assert unnamed(state["parts"][part]) == [], part
    assert unnamed(state["parts"]["model"]["metrics"]["metric"]) == []
    assert unnamed(state["positions"]["loader"]) == []
    assert unnamed([*state["progress"], *state["dataset"]]) == []
    assert unnamed(["anew", "sync_buffers", "ranks", "settings"]) == [], "imports, DistributedDataParallel, ZeRO-1"


def test_every_form_of_a_value_is_on_the_page() -> None:
    tags = {*tree._DECODERS, "$tensor", "$part", "$ndarray"}
    assert [tag for tag in sorted(tags) if tag not in SECTION] == []


@pytest.mark.parametrize("word", WORDS)
def test_every_allowance_is_in_the_library_s_page(word: str) -> None:
    assert f'"{word}"' in (PAGE / "library.md").read_text()


def test_a_field_that_a_reader_does_not_know_is_ignored(agent: FakeAgent) -> None:
    state = state_of(agent)
    registry = Registry({"model": (model := WithMetric()), "optimizer": torch.optim.AdamW(model.parameters())})
    tensors = {e.name: torch.empty(e.shape, dtype=getattr(torch, e.dtype)) for e in agent.newest().entries}
    for name in ("loader", "own"):
        state["parts"].pop(name, None)
        state["positions"].pop(name, None)
    registry.compare(state | {"later": {"a": 1}}, tensors)
