"""A small Vision Transformer learns handwritten digits with Hugging Face's Trainer: scikit-learn's data, noisy images, dropout, accuracy after each epoch.

    holdfast-agent run --local DIR -- python train.py

The lines that make it survive the loss of its machine are marked with (holdfast).
"""

import argparse
import hashlib
import json
import tempfile
from typing import Any

import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from holdfast.integrations.transformers import attach  # (holdfast)


class Say(TrainerCallback):
    """Prints what is logged, but for times."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        kept = {k: v for k, v in logs.items() if not k.endswith(("_runtime", "_per_second"))}
        print(f"log {state.global_step} {json.dumps(kept)}", flush=True)


def noisy(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    images = torch.stack([item["pixel_values"] for item in items])
    return {"pixel_values": images + torch.randn_like(images) / 8, "labels": torch.tensor([i["labels"] for i in items])}


def accuracy(found: Any) -> dict[str, float]:
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}


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
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, digits.target, strict=True)]
    args = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=given.epochs,
        per_device_train_batch_size=64,
        learning_rate=2e-3,
        weight_decay=0.01,
        label_smoothing_factor=0.1,
        logging_steps=1,
        eval_strategy="epoch",
        per_device_eval_batch_size=128,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    torch.manual_seed(1)
    size = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 32, "intermediate_size": 64}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_dropout_prob": 0.1, "num_labels": 10}
    trainer = Trainer(
        model=ViTForImageClassification(ViTConfig(**size, **layers)),
        args=args,
        data_collator=noisy,
        train_dataset=data[:1500],
        eval_dataset=data[1500:],
        compute_metrics=accuracy,
        callbacks=[Say()],
    )
    attach(trainer)  # (holdfast)
    trainer.train()
    print(f"digest {digest(trainer)}", flush=True)


if __name__ == "__main__":
    main()
