"""C1, C4, C5 with a real agent: weights become NaN in the middle of a run, the saves say so, and the next start goes on from before."""

import os
import subprocess
import sys
from pathlib import Path

from holdfast_api.manifest import CommitRecord
from holdfast_store.file import FileBucket
from holdfast_store.job import JobStore
from holdfast_store.overview import overview

LIMIT = 240
SCRIPT = """
import sys, time, torch, holdfast
until, wrong = int(sys.argv[1]), int(sys.argv[2])
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 1))
model.register_buffer("mask", torch.full((4,), float("-inf")))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
print("starts at", ckpt.restore(), flush=True)
while ckpt.boundary < until:
    loss = model(torch.randn(8, 64)).square().mean()
    (loss * (float("nan") if ckpt.boundary + 1 == wrong else 1)).backward()
    optimizer.step()
    optimizer.zero_grad()
    ckpt.step()
    time.sleep(0.2)  # each save is committed before the next
ckpt.finish()
"""


def run(folder: Path, until: int, wrong: int = 0) -> str:
    (folder / "train.py").write_text(SCRIPT)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HOLDFAST_", "RANK", "WORLD_SIZE"))}
    agent = [sys.executable, "-m", "holdfast_agent", "run", "--local", str(folder / "job"), "--every-steps", "1", "--"]
    done = subprocess.run(
        [*agent, sys.executable, str(folder / "train.py"), str(until), str(wrong)],
        env=kept | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def commits(folder: Path) -> list[CommitRecord]:
    """Oldest first, of all attempts."""
    (directory,) = (folder / "job" / "local").iterdir()
    store = JobStore(FileBucket(folder / "job"), "local", "run", directory.name.removeprefix("run-"))
    return [view.record for view in reversed(overview(store)) if view.record is not None]


def test_a_run_that_becomes_nan_says_so_at_its_next_save_and_goes_on_from_before(tmp_path: Path) -> None:
    said = run(tmp_path, 9, wrong=5)
    first = commits(tmp_path)
    findings = [(r.progress.boundary < 5, r.finite) for r in first]
    assert set(findings) == {(True, True), (False, False)}, "each save knows which it is"
    assert "model.0.weight" in first[-1].not_finite
    assert "holds NaN or infinite values" in said
    good = max(r.progress.boundary for r in first if r.finite)
    again = run(tmp_path, 7)
    assert f"starts at {good}" in again
    assert all(r.finite for r in commits(tmp_path) if r.attempt > 1)
