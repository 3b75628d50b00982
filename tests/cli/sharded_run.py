"""A job of two ranks that hold halves of everything (FSDP2), for test_export_parts.py: says what the whole is, saves once."""

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

import holdfast

torch.set_num_threads(1)
distributed.init_process_group("gloo")
torch.manual_seed(3)
model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
for part in (*model, model):
    if list(part.parameters()):
        fully_shard(part)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
ckpt.restore()
model(torch.ones(2, 6)).square().mean().backward()
optimizer.step()
optimizer.zero_grad()
ckpt.step()
whole = {name: value.full_tensor() for name, value in model.state_dict().items()}
moments = [optimizer.state[p]["exp_avg"].full_tensor() for p in model.parameters()]
if distributed.get_rank() == 0:
    torch.save({"model": whole, "exp_avg": moments}, Path(sys.argv[1]))
ckpt.finish()
distributed.destroy_process_group()
