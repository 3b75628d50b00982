"""A small GPT that learns bytes, trained on text that every machine has: the source of Python's standard library.

    python train.py --steps 50                                   one process
    torchrun --nproc-per-node 2 train.py --steps 50              two, with DistributedDataParallel
    holdfast-agent run --local DIR -- python train.py            with checkpoints, on a laptop

The five lines that make it survive the loss of its machine are marked with (holdfast). Everything else is plain PyTorch.
"""

import argparse
import hashlib
import json
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import holdfast


class Block(nn.Module):
    """Attention, then a feed-forward layer, each added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time_, width = x.shape
        parts = self.qkv(self.before_attention(x)).view(batch, time_, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop)
        x = x + self.out(y.transpose(1, 2).reshape(batch, time_, width))
        return x + self.mlp(self.before_mlp(x))


class BytesGPT(nn.Module):
    """Predicts the next byte. The head shares its weights with the embedding."""

    def __init__(self, context: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(256, width), nn.Embedding(context, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        self.head.weight = self.embed.weight
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, bytes_: torch.Tensor) -> torch.Tensor:
        places = torch.arange(bytes_.shape[1], device=bytes_.device)
        x = self.drop(self.embed(bytes_) + self.position(places))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Windows(Dataset):
    """Non-overlapping windows of the text, one byte longer than the context."""

    def __init__(self, context: int, megabytes: float) -> None:
        text, limit = bytearray(), int(megabytes * 1e6)
        for path in sorted(Path(os.__file__).parent.glob("*.py")):
            text += path.read_bytes()
            if len(text) >= limit:
                break
        self.text, self.context = torch.frombuffer(text, dtype=torch.uint8)[:limit], context

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.context

    def __getitem__(self, index: int) -> torch.Tensor:
        start = index * self.context
        return self.text[start : start + self.context + 1].long()


def arguments() -> argparse.Namespace:
    """Every option can be given as an environment variable as well: --step-sleep as STEP_SLEEP."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    defaults = {
        "steps": 200, "epochs": 100, "batch": 8, "accumulate": 2, "context": 128, "width": 192, "layers": 6, "heads": 6,
        "dropout": 0.1, "lr": 1e-3, "megabytes": 2.0, "workers": 1, "seed": 1, "step_sleep": 0.0, "losses": "", "digest": "",
    }  # fmt: skip
    for name, value in defaults.items():
        default = type(value)(os.environ.get(name.upper(), value))
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=default, help=f"default {value!r}")
    return parser.parse_args()


def digest(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """SHA-256 over every parameter, buffer and optimizer state, bit by bit."""
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{k}": v for k, v in values.items() if isinstance(v, torch.Tensor)}
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def main() -> None:
    args = arguments()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    torch.manual_seed(args.seed)
    model: nn.Module = BytesGPT(args.context, args.width, args.layers, args.heads, args.dropout).to(device)
    if world > 1:
        model = DistributedDataParallel(model)
    torch.manual_seed(args.seed + 1 + rank)  # from here on the ranks draw apart: dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / 20, 0.5 * (1 + math.cos(math.pi * min(n / args.steps, 1))) + 0.01)
    )
    data = Windows(args.context, args.megabytes)
    sampler = DistributedSampler(data, seed=args.seed) if world > 1 else None
    loader = DataLoader(
        data, args.batch, shuffle=sampler is None, sampler=sampler, num_workers=args.workers, drop_last=True
    )

    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)  # (holdfast)
    print(f"rank {rank} of {world} starts at boundary {ckpt.restore()}", flush=True)  # (holdfast)
    epochs, window = args.epochs if ckpt.boundary < args.steps else 0, 0.0
    for number, window_bytes in enumerate(ckpt.batches(loader, epochs=epochs), 1):  # (holdfast)
        window_bytes = window_bytes.to(device)
        last = number % args.accumulate == 0
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = last  # add up locally, reduce once
        logits = model(window_bytes[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), window_bytes[:, 1:].flatten()) / args.accumulate
        loss.backward()
        window += loss.item()
        if not last:
            continue
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if rank == 0:  # before the boundary: an evacuation stops the process there for good
            print(f"step {ckpt.boundary + 1} loss {window.hex()} {window:.4f}", flush=True)  # hex: exact
            if args.losses:
                with Path(args.losses).open("a") as file:
                    file.write(json.dumps({"step": ckpt.boundary + 1, "loss": window.hex()}) + "\n")
        ckpt.step(loss=window)  # (holdfast)
        window = 0.0
        time.sleep(args.step_sleep)
        if ckpt.boundary >= args.steps:
            break

    if rank == 0:
        total = digest(model.module if isinstance(model, DistributedDataParallel) else model, optimizer)
        print(f"digest {total}", flush=True)
        if args.digest:
            Path(args.digest).write_text(total + "\n")
    ckpt.finish()  # (holdfast)
    if world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
