"""Weights and moments of which each rank holds a part are exported as the whole that they are, bit by bit."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.cli.foreign import call, same

RUN = Path(__file__).parent / "sharded_run.py"


def test_what_two_ranks_hold_in_halves_is_exported_whole(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")} | {"OMP_NUM_THREADS": "1"}
    agent = [sys.executable, "-m", "holdfast_agent", "run", "--local", str(bucket), "--processes", "2"]
    done = subprocess.run(
        [*agent, "--", sys.executable, str(RUN), str(tmp_path / "whole.pt")],
        capture_output=True,
        text=True,
        env=kept,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    want = torch.load(tmp_path / "whole.pt", weights_only=True)
    for kind in ("safetensors", "dcp"):
        result = call("export", bucket, "--to", tmp_path / kind, "-f", kind)
        assert result.exit_code == 0, result.output
    loaded = load_file(tmp_path / "safetensors" / "model.safetensors")
    assert same(dict(sorted(loaded.items())), dict(sorted(want["model"].items())))
    result = call("export", bucket, "--to", tmp_path / "all.pt", "-f", "state-dict", "--everything")
    assert result.exit_code == 0, result.output
    everything = torch.load(tmp_path / "all.pt", weights_only=True)
    assert same(dict(everything["model"]), want["model"])
    state = everything["optimizer"]["state"]
    assert same([state[n]["exp_avg"] for n in sorted(state)], want["exp_avg"])
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")], "nothing is left"
