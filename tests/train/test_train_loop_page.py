"""I4, K2: each kind of loop in docs/loops.md is a whole example. It is run, is of the class that the page says, and goes on bit by bit from its boundaries."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent, Image
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset

import holdfast
from holdfast import midstep

PAGE = (Path(__file__).parents[2] / "docs" / "loops.md").read_text()
SECTIONS = {
    m[1]: (m[2], m[3])
    for m in re.finditer(
        r"^## ([^\n]+)\n\*([a-z -]+)\*(?:[^`\n]|`[^`\n]+`|\n(?!```))*\n```python\n(.*?)^```", PAGE, re.M | re.S
    )
}
"""By heading: class and code."""
ONLY_READ = {"A CUDA graph of the update"}
GROUPS = {"ZeRO-1", "FSDP2"}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 160), nn.BatchNorm1d(160), nn.ReLU(), nn.Dropout(0.2), nn.Linear(160, 1))


def data() -> DataLoader[Any]:
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=5, shuffle=True)


def loss_of(model: Any, batch: Any) -> torch.Tensor:
    x, y = batch
    weights = next(model.parameters()).dtype if isinstance(model, nn.Module) else torch.float32
    return nn.functional.mse_loss(model(x.to(weights)).float(), y)


def run(code: str, seed: int) -> dict[str, Any]:
    """What the example's names stand for at its end."""
    torch.manual_seed(seed)
    names: dict[str, Any] = {"torch": torch, "holdfast": holdfast, "net": net, "data": data, "loss_of": loss_of}
    if distributed.is_initialized():
        names["mesh"] = distributed.device_mesh.init_device_mesh("cpu", (1,))
    exec(compile(code, "docs/loops.md", "exec"), names)
    return names


def state_of(names: dict[str, Any]) -> dict[str, list[Any]]:
    """Everything that training has changed."""
    found: dict[str, list[Any]] = {"next": [torch.rand(3)]}
    for name, value in names.items():
        if isinstance(value, nn.Module):
            found[name] = [v.detach().clone() for v in value.state_dict().values()]
        elif isinstance(value, torch.optim.Optimizer):
            inner = getattr(value, "optim", value)
            found[name] = [v for state in inner.state.values() for v in state.values()]
            found[name] += [p.detach().clone() for group in inner.param_groups for p in group["params"]]
        elif hasattr(value, "steps"):
            found[name] = [value.steps]
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        a, b = (getattr(t, "_local_tensor", t) for t in (one, other))
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.fixture
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """A process group of one rank, where the example needs one."""
    with ExitStack() as left:
        if request.node.callspec.params["name"] in GROUPS:
            distributed.init_process_group(
                "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
            )
            left.callback(distributed.destroy_process_group)
        yield


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("name", [n for n in SECTIONS if n not in ONLY_READ])
def test_an_example_is_of_its_class_and_goes_on_bit_by_bit(
    agent: FakeAgent, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(midstep, "NOTE_SECONDS", 60.0)  # on a busy machine a small state may seem to cost too much
    loop, code = SECTIONS[name]
    agent.every_steps = 2  # gradients that wait come and go with each step, and each layout is audited by itself
    expected = state_of(run(code, 1))
    facts = agent.newest().message.run
    assert facts["loop"] == loop.replace(" ", "-"), facts
    agent.every_steps, last = 1, agent.newest().boundary
    agent.images[0].clear()
    again = state_of(run(code, 1))
    assert [n for n in expected if not same(expected[n], again[n])] == [], "saves leave no trace in training"
    images: dict[int, Image] = dict(agent.images[0])
    assert len(images) == last >= 16
    for at in (3, 8, 13):
        agent.restore_from = {0: [images[at]]}
        got = run(code, 100 + at)
        assert got["ckpt"].boundary == last
        found = state_of(got)
        assert [n for n in expected if not same(expected[n], found[n])] == [], f"resumed at boundary {at}"


def anchor(heading: str) -> str:
    """As links to it are written."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_the_page_has_an_example_for_each_line_of_its_table() -> None:
    table = PAGE.partition("## ")[0]
    assert set(re.findall(r"\]\(#([\w-]+)\)", table)) == set(map(anchor, SECTIONS))
    assert len(SECTIONS) == PAGE.count("```python")
    for heading, (loop, code) in SECTIONS.items():
        compile(code, heading, "exec")
        line = next(line for line in table.splitlines() if f"(#{anchor(heading)})" in line)
        assert line.rstrip(" |").endswith(loop), heading


def test_an_example_that_forgot_something_would_be_found(agent: FakeAgent) -> None:
    """The comparison above can fail."""
    _, code = SECTIONS["Plain"]
    agent.every_steps = 1
    code = code.replace("optimizer=optimizer, scheduler", "scheduler")
    expected = state_of(run(code, 1))
    agent.restore_from = {0: [agent.images[0][8]]}
    found = state_of(run(code, 2))
    assert not same(expected["model"], found["model"])
