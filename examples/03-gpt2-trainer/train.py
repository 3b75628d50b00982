"""A small GPT-2 learns the text of Python's standard library, byte by byte, with Hugging Face's Trainer: accumulation, dropout, a schedule, evaluation.

    holdfast-agent run --local DIR -- python train.py

The lines that make it survive the loss of its machine are marked with (holdfast).
"""

import argparse
import hashlib
import json
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from holdfast.integrations.transformers import attach  # (holdfast)

LENGTH = 32


class Say(TrainerCallback):
    """Prints what is logged, but for times."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        kept = {k: v for k, v in logs.items() if not k.endswith(("_runtime", "_per_second"))}
        print(f"log {state.global_step} {json.dumps(kept)}", flush=True)


def text(name: str, blocks: int) -> list[dict[str, list[int]]]:
    data = (Path(sysconfig.get_path("stdlib")) / name).read_bytes()
    pieces = [list(data[i * LENGTH : (i + 1) * LENGTH]) for i in range(blocks)]
    return [{"input_ids": p, "labels": p} for p in pieces]


def digest(trainer: Trainer) -> str:
    """Of weights, optimizer and schedule."""
    total = hashlib.sha256()
    for tensor in trainer.model.state_dict().values():
        total.update(tensor.numpy().tobytes())
    for values in trainer.optimizer.state_dict()["state"].values():
        for key in sorted(values):
            total.update(values[key].numpy().tobytes())
    total.update(json.dumps(trainer.lr_scheduler.state_dict(), default=str).encode())
    return total.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=float, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    args = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=given.epochs,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        warmup_steps=10,
        lr_scheduler_type="cosine",
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=7,
        metric_for_best_model="loss",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    torch.manual_seed(1)
    size = {"vocab_size": 256, "n_positions": LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 2}
    trainer = Trainer(
        model=GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0)),
        args=args,
        train_dataset=text("argparse.py", 150),
        eval_dataset=text("bisect.py", 16),
        callbacks=[EarlyStoppingCallback(1000), Say()],
    )
    attach(trainer)  # (holdfast)
    trainer.train()
    print(f"digest {digest(trainer)}", flush=True)


if __name__ == "__main__":
    main()
