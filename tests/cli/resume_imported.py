"""A job that goes on from an import (test_import.py): says what it was given, takes two steps."""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import holdfast
from tests.cli.foreign import Net

torch.set_num_threads(1)
rank, to = os.environ["RANK"], Path(sys.argv[1])
model = Net(seed=99)
optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
best = holdfast.Value(7)
ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, scheduler=scheduler, best=best)
ckpt.restore()
first = {
    "boundary": ckpt.boundary,
    "best": best.value,
    "model": dict(model.state_dict()),
    "optimizer": optimizer.state_dict(),
}
torch.save(first | {"scheduler": scheduler.state_dict()}, to / f"first-{rank}.pt")
for n in range(2):
    model(torch.arange(n, n + 40)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    ckpt.step()
ckpt.finish()
