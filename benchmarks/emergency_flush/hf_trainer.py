"""A training process of Hugging Face's Trainer with `enable_jit_checkpoint`: trains until SIGTERM, checkpoints, and uploads what it has written with boto3.

    python -m benchmarks.emergency_flush.hf_trainer '{"folder": ..., "mebibytes": ..., "step_seconds": ..., "endpoint": ..., "bucket": ..., "prefix": ...}'

Says `training` when the first steps are over, and ends when everything is acknowledged. The model is as large as ours; plain SGD, so nothing else is large.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.emergency_flush import sending
from benchmarks.emergency_flush.sending import Uploader, say


class Model(nn.Module):
    def __init__(self, mebibytes: int, step_seconds: float) -> None:
        super().__init__()
        large = torch.rand((mebibytes << 20) // 4 // 64, 64)
        self.large = nn.Parameter(large, requires_grad=False)
        self.head = nn.Linear(64, 64)
        self.step_seconds = step_seconds

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        time.sleep(self.step_seconds)
        return {"loss": self.head(x).square().mean()}


class Says(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 3:
            say("training")


def main() -> None:
    order = sending.order()
    folder = Path(order["folder"])
    data = [{"x": torch.rand(64)} for _ in range(100_000)]
    model = Model(order["mebibytes"], order["step_seconds"])
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=1, max_steps=100_000, optim="sgd", use_cpu=True, report_to=[],
        enable_jit_checkpoint=True, save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    uploader = Uploader(order)
    Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Says()]).train()
    [made] = folder.glob("checkpoint-*")
    assert not (made / "checkpoint-is-incomplete.txt").exists()
    say("on disk")
    uploader.send(sorted(made.iterdir()))
    say("stored")


if __name__ == "__main__":
    main()
