"""K1, K2 on a GPU: a Trainer in half precision goes on from any boundary as if nothing had been, with deterministic algorithms (docs/exactness.md)."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.frameworks.test_trainer_resume import STEPS, kept, resumed
from tests.frameworks.trainer_runs import Run, after, differences

RUNS = {
    "fp16": Run(args={**STEPS, "use_cpu": False, "fp16": True}),
    "fp16, accumulated and clipped": Run(
        args={"use_cpu": False, "fp16": True, "gradient_accumulation_steps": 2, "max_grad_norm": 0.3}
    ),
    "bf16": Run(args={"use_cpu": False, "bf16": True}),
    "fused": Run(args={"use_cpu": False, "fp16": True, "optim": "adamw_torch_fused"}),
}


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"))
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize("name", RUNS)
def test_half_precision_on_a_gpu_goes_on_from_any_boundary(name: str, tmp_path: Path) -> None:
    run = replace(RUNS[name], record=[])
    want, images = kept(run, tmp_path)
    assert len(images) > 3
    for boundary in sorted(images):
        again, state = resumed(run, images[boundary], tmp_path / str(boundary), output_dir=str(tmp_path / "output"))
        assert differences(after(run.record, boundary), again.record) == [], f"from {boundary}"
        assert differences(want, state) == [], f"from {boundary}"
