"""What ranks train: just enough of a model, with the tensors, buffers and optimizer state that a question is about."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.harness import states

RESNET50_CHANNELS = [64] + [
    c
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3))
    for block in range(blocks)
    for c in ([width, width, 4 * width] + ([4 * width] if block == 0 else []))
]
"""Of its 53 batch norms, each with two buffers of this length and a counter: 159 buffers."""


WIDTH = 4096


@dataclass
class Made:
    parts: dict[str, Any]
    """What is registered."""
    tensors: dict[str, torch.Tensor]
    """The large ones, which `touch` changes."""
    bytes: int
    work: Callable[[float], None]
    """Forward and backward: keeps a core busy for so many seconds, or with so many matrix products."""
    update: Callable[[], None]


def make(model: str, **options: Any) -> Made:
    return MODELS[model](**options)


class _Plain(nn.Module):
    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(tensor, requires_grad=False))


def plain(mebibytes: int, device: str = "cpu") -> Made:
    """Large parameters and nothing else: what is saved is bytes. There is no optimizer, so nothing is hooked."""
    state = states.make(mebibytes)
    tensors = {name: tensor.to(device) for name, tensor in state.tensors.items()}
    return Made({"model": _Plain(tensors)}, tensors, state.bytes, busy, lambda: None)


def products(mebibytes: int, device: str = "cpu") -> Made:
    """The same, with iterations of so many matrix products: a step takes longer when something else takes the processor."""
    made = plain(mebibytes, device)
    made.work = lambda count: fixed_work(int(count), device)
    return made


def unfilled(mebibytes: int) -> Made:
    """As `plain` with memory that nobody has touched, as a model is built that will be loaded."""
    each = (mebibytes << 20) // 4 // states.TENSORS
    tensors = {f"layers.{i:02d}.weight": torch.empty(each).view(-1, 1024) for i in range(states.TENSORS)}
    return Made({"model": _Plain(tensors)}, tensors, each * 4 * states.TENSORS, busy, lambda: None)


def trained(mebibytes: int, device: str = "cuda") -> Made:
    """A tower of square layers that AdamW really updates: a third of the state are parameters. `work`: so many forward and backward passes, in bfloat16."""
    torch.manual_seed(1)
    count = max(1, mebibytes // (3 * WIDTH * WIDTH * 4 >> 20))
    tower = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False, device=device) for _ in range(count)))
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-4, fused=device == "cuda")
    batch = torch.randn(WIDTH, WIDTH, device=device)

    def work(passes: float) -> None:
        for _ in range(max(1, int(passes))):
            with torch.autocast(device, torch.bfloat16):
                loss = tower(batch).square().mean()
            loss.backward()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()  # so that whoever is measured next pays for nothing of this

    tensors = dict(tower.named_parameters())
    size = 3 * sum(t.nbytes for t in tensors.values())
    return Made({"model": tower, "optimizer": optimizer}, tensors, size, work, update)


def headed(mebibytes: int) -> Made:
    """Large frozen parameters and a small head that SGD updates: a loop with an update window, whose state is still mostly bytes."""
    state = states.make(mebibytes)
    head = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(head.parameters(), lr=1e-3)
    for parameter in head.parameters():
        parameter.grad = torch.ones_like(parameter)
    parts = {"model": _Plain(state.tensors), "head": head, "optimizer": optimizer}
    return Made(parts, state.tensors, state.bytes, busy, lambda: optimizer.step())


def small(buffers: bool) -> Made:
    """A small network that really updates, with SGD; `buffers` gives it the batch norms of a ResNet-50."""
    layers: list[nn.Module] = [nn.Linear(64, 64)]
    norms = [nn.BatchNorm2d(c) for c in RESNET50_CHANNELS] if buffers else []
    body = nn.ModuleList([*layers, *norms])
    optimizer = torch.optim.SGD(body.parameters(), lr=1e-3, momentum=0.9)
    for parameter in body.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def update() -> None:
        for norm in norms:
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.add_(1)
        optimizer.step()

    tensors = dict(body.state_dict())
    return Made({"model": body, "optimizer": optimizer}, {}, sum(t.nbytes for t in tensors.values()), busy, update)


def lora(base_mebibytes: int, rank: int = 16) -> Made:
    """A frozen base, a low-rank adapter for each of its matrices, and Adam on the adapter."""
    state = states.make(base_mebibytes)
    base = _Plain(state.tensors)
    width, count = 1024, len(state.tensors)
    adapter = nn.ModuleList(
        nn.ParameterList([torch.randn(rank, width) * 0.01, torch.randn(width, rank) * 0.01]) for _ in range(count)
    )
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-4)

    def update() -> None:
        for parameter in adapter.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    trained = sum(p.nbytes for p in adapter.parameters())
    return Made({"base": base, "adapter": adapter, "optimizer": optimizer}, {}, state.bytes + 3 * trained, busy, update)


def busy(seconds: float) -> None:
    """Matrix products on one thread until the time is over."""
    until = time.perf_counter() + seconds
    left = torch.ones(96, 96)
    while time.perf_counter() < until:
        left = (left @ left).clamp_(0, 1)


def fixed_work(products: int, device: str = "cpu") -> None:
    """The same number of matrix products each time: takes longer when something else takes the processor."""
    left = torch.ones(256 if device == "cpu" else 4096, 256 if device == "cpu" else 4096, device=device)
    for _ in range(products):
        left = (left @ left).clamp_(0, 1)
    if device != "cpu":
        torch.cuda.synchronize()


MODELS: dict[str, Callable[..., Made]] = {
    "plain": plain,
    "products": products,
    "unfilled": unfilled,
    "headed": headed,
    "trained": trained,
    "small": small,
    "lora": lora,
}
