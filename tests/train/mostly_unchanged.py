"""Training of which most of the state stays as it is: `mostly_unchanged.py lora|frozen|embedding BASE_MIB STEPS`. Run below an agent.

Prints how many bytes may change: what is trained, and its optimizer's state.
"""

import sys

import torch
from torch import nn

import holdfast

WIDTH = 512
RANK = 4


class Lora(nn.Module):
    """A frozen linear layer with a small trainable addition."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x) + self.up(self.down(x))
        return out


class Words(nn.Module):
    """A large table of which a step touches a few rows."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.table = nn.Embedding(count, WIDTH, sparse=True)
        self.head = nn.Linear(WIDTH, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.table(x))
        return out


def made(kind: str, base_bytes: int) -> tuple[nn.Module, list[torch.optim.Optimizer], torch.Tensor]:
    """Model, optimizers and a batch."""
    layer = WIDTH * WIDTH * 4
    inputs = torch.randn(4, WIDTH)
    if kind == "lora":
        # Ten per cent of the layers have an adapter: the base is large, the adapter small.
        count = max(1, base_bytes // layer)
        layers: list[nn.Module] = [nn.Linear(WIDTH, WIDTH) for _ in range(count)]
        model: nn.Module = nn.Sequential(
            *(Lora(x) if i % 10 == 0 else x.requires_grad_(False) for i, x in enumerate(layers))  # type: ignore[arg-type]
        )
        return model, [torch.optim.Adam([p for p in model.parameters() if p.requires_grad])], inputs
    if kind == "frozen":
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(max(2, base_bytes // layer))))
        for frozen in model[:-1]:
            frozen.requires_grad_(False)
        return model, [torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])], inputs
    words = Words(base_bytes // (WIDTH * 4))
    dense = torch.optim.AdamW(words.head.parameters())
    return words, [torch.optim.SparseAdam(words.table.parameters()), dense], torch.arange(64)


def main(kind: str, base_mib: int, steps: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, optimizers, inputs = made(kind, base_mib << 20)
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    print(f"trained {trained} all {sum(p.nbytes for p in model.parameters())}", flush=True)
    ckpt = holdfast.Checkpointer(model=model, **{f"optimizer{i}": o for i, o in enumerate(optimizers)})
    ckpt.restore()
    for _ in range(steps):
        model(inputs).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        ckpt.step()
    ckpt.finish()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
