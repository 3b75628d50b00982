"""The smallest script that trains, saves and resumes: a few hundred parameters, so that a test on a real cluster takes seconds.

Environment: STEPS, SLEEP (seconds in every step), CRASH_AT (raise at this step, once per directory in CRASH_MARK).
"""

import hashlib
import os
import time
from pathlib import Path

import torch
from torch import nn

import holdfast

torch.set_num_threads(1)
torch.manual_seed(0)
world = int(os.environ.get("WORLD_SIZE", "1"))
rank = int(os.environ.get("RANK", "0"))
model: nn.Module = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.Linear(16, 1))
if world > 1:
    torch.distributed.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
data = torch.utils.data.TensorDataset(torch.arange(4096 * 8, dtype=torch.float32).reshape(-1, 8).sin())
loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)

ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, loader=loader)
step = ckpt.restore()
steps = int(os.environ.get("STEPS", "40"))
for (x,) in ckpt.batches(loader, epochs=1_000):
    loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    step += 1
    if rank == 0:
        print(f"step {step} loss {loss.item().hex()}", flush=True)
    ckpt.step(loss=loss)
    time.sleep(float(os.environ.get("SLEEP", "0.05")))
    if step == int(os.environ.get("CRASH_AT", "0")):
        raise RuntimeError("this script was told to crash")
    if step >= steps:
        break
ckpt.finish()
digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
if rank == 0:
    print(f"digest {digest}", flush=True)
Path("/tmp/done").touch()
if world > 1:
    torch.distributed.destroy_process_group()
