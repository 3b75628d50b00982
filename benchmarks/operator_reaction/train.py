"""The job of this benchmark: trains next to nothing, ten steps a second, for ever. Saves when it is told to."""

import time

import torch
from torch import nn

import holdfast

torch.set_num_threads(1)
torch.manual_seed(0)
torch.distributed.init_process_group("gloo")
model = nn.parallel.DistributedDataParallel(nn.Linear(8, 8))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
ckpt.restore()
while True:
    loss = model(torch.ones(4, 8)).pow(2).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    ckpt.step(loss=loss)
    time.sleep(0.1)
