"""One rank of a DistributedDataParallel run of Hugging Face's Trainer: writes what it does, line by line. Arguments: the directory to write to, and what is
read, "map" or "stream"."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from holdfast.integrations.transformers import attach
from tests.frameworks.trainer_runs import Endless, Numbers, collate, noisy, timeless

LENGTHS = {"map": 53, "stream": 56}
transformers.logging.set_verbosity_error()


class Net(nn.Module):
    def __init__(self, written: Path) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
        self.written = written.open("a")

    def note(self, **what: Any) -> None:
        print(json.dumps(what), file=self.written, flush=True)

    def forward(self, x: Any, labels: Any, sample: Any = None) -> dict[str, Any]:
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, labels)
        if self.training:
            self.note(loss=loss.item().hex(), samples=sample.tolist())
        return {"loss": loss, "logits": logits}


class Recorder(TrainerCallback):
    def __init__(self, net: Net) -> None:
        self._net = net

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._net.note(step=state.global_step, epoch=state.epoch)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self._net.note(log=timeless(logs))


def main() -> None:
    directory, reads = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    torch.manual_seed(3)
    rank = int(os.environ["RANK"])
    net = Net(directory / f"rank-{rank}")
    args = TrainingArguments(
        output_dir=str(directory / "output"), max_steps=96, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.02, logging_steps=1,
        eval_strategy="steps", eval_steps=7, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, ddp_backend="gloo",
        data_seed=5,
    )  # fmt: skip
    trainer = Trainer(
        model=net,
        args=args,
        data_collator=noisy if reads == "map" else collate,
        train_dataset=(Numbers if reads == "map" else Endless)(LENGTHS[reads]),
        eval_dataset=Numbers(9),
        callbacks=[Recorder(net)],
    )
    torch.manual_seed(100 + rank)  # dropout differs on each
    attach(trainer)
    trainer.train()
    total = hashlib.sha256()
    for tensor in net.state_dict().values():
        total.update(tensor.numpy().tobytes())
    net.note(digest=total.hexdigest())
    torch.distributed.barrier()  # gloo ends a process whose peer is gone with an abort, now and then
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
