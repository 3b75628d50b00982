"""A training script over gloo that hangs in one of several real ways, in rank 1 and in the first attempt only.

hang_ranks.py KIND --log FILE      HANG_AT: the boundary after which it hangs
"""

import os
import re
import signal
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import holdfast

HANG_AT = 34
FOR_EVER = 10_000
LONG = 8.0
"""For waits that are no hang."""
KIND, LOG = sys.argv[1], sys.argv[sys.argv.index("--log") + 1]
RANK, WORLD, ATTEMPT = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["HOLDFAST_ATTEMPT"])
HANGS = RANK == 1 and ATTEMPT == 1


class Samples(Dataset):
    def __len__(self):
        return 4096

    def __getitem__(self, index):
        if KIND == "loader" and HANGS and index == HANG_AT * 4:
            time.sleep(FOR_EVER)
        if KIND == "patient" and RANK == 1 and index == 20 * 4:
            time.sleep(LONG)
        return torch.full((8,), float(index % 7))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, x):
        if self.training and HANGS and ckpt.boundary == HANG_AT:
            if KIND == "forward":
                time.sleep(FOR_EVER)
            elif KIND == "lock":
                re.match(r"(a+)+$", "a" * 60 + "b")  # in C, and never gives the interpreter's lock back
            elif KIND == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
        return self.layer(x)


def log(text):
    with open(LOG, "a") as file:
        file.write(f"{ATTEMPT} {RANK} {text}\n")


torch.manual_seed(1)
dist.init_process_group("gloo")
inner = Model()
model = DistributedDataParallel(inner)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
loader = DataLoader(Samples(), batch_size=4, num_workers=int(KIND == "loader"))
ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, loader=loader)
ckpt.restore()
log(f"restored {ckpt.boundary}")
for batch in ckpt.batches(loader, epochs=None):
    if KIND == "patient" and not ckpt.boundary:
        time.sleep(LONG)  # as a compilation does
    if KIND == "patient" and ckpt.boundary == 10:
        model.eval()
        time.sleep(LONG)
        model.train()
    if KIND == "collective" and HANGS and ckpt.boundary == HANG_AT:
        dist.barrier()  # the other rank does not come here
    optimizer.zero_grad()
    model(batch).sum().backward()
    optimizer.step()
    ckpt.step()
    time.sleep(0.02)
