"""Export and import with the files that the frameworks themselves write and read: Hugging Face's sharded safetensors, Lightning's checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from tests.cli.foreign import call, same


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    directory = tmp_path / "bucket"
    directory.mkdir()
    return directory


def brought(bucket: Path, *arguments: str | Path) -> dict[str, Any]:
    result = call("import", bucket, "-o", "json", "--chunk-mib", "1", *arguments)
    assert result.exit_code == 0, result.output
    said: dict[str, Any] = json.loads(result.stdout)
    return said


@pytest.mark.parametrize("size", ["100KB", "5GB"], ids=["shards", "one file"])
def test_what_transformers_saves_goes_in_and_what_goes_out_transformers_reads(
    tmp_path: Path, bucket: Path, size: str
) -> None:
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=16, vocab_size=500))
    model.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    assert ((tmp_path / "theirs" / "model.safetensors.index.json").exists()) == (size == "100KB")
    said = brought(bucket, "--from", tmp_path / "theirs")
    result = call("export", bucket, "--uid", said["jobUid"], "--to", tmp_path / "ours", "--max-shard-size", size)
    assert result.exit_code == 0, result.output
    (tmp_path / "ours" / "config.json").write_bytes((tmp_path / "theirs" / "config.json").read_bytes())
    loaded, told = GPT2LMHeadModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert same(dict(loaded.state_dict()), dict(model.state_dict()))


class Net(LightningModule):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 1)
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


def test_what_lightning_saves_goes_in(tmp_path: Path, bucket: Path) -> None:
    net = Net()
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )  # fmt: skip
    trainer.fit(net, DataLoader(torch.randn(12, 4), batch_size=4))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    said = brought(bucket, "--from", tmp_path / "last.ckpt")
    assert (said["format"], said["boundary"], sorted(said["parts"])) == (
        "lightning",
        9,
        ["model", "optimizer", "scheduler"],
    )
    result = call(
        "export", bucket, "--uid", said["jobUid"], "--to", tmp_path / "again.pt", "-f", "state-dict", "--everything"
    )
    assert result.exit_code == 0, result.output
    loaded = torch.load(tmp_path / "again.pt", weights_only=True)
    assert same(dict(loaded["model"]), dict(net.state_dict()))
    assert same(loaded["optimizer"], trainer.optimizers[0].state_dict())
    assert loaded["scheduler"]["last_epoch"] == trainer.lr_scheduler_configs[0].scheduler.last_epoch
