"""The README's commands, links, script and manifest are executed or looked up here, so that they stay true."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

from holdfast_operator.crd.v1alpha1 import TrainingJobSpec

TOP = Path(__file__).resolve().parents[2]
README = (TOP / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_make_verb_of_the_readme_exists() -> None:
    verbs = set(re.findall(r"`?make ([a-z-]+)", README))
    listed = subprocess.run(["make", "help"], cwd=TOP, capture_output=True, text=True, check=True).stdout
    assert verbs
    assert all(f"make {verb} " in listed for verb in verbs)


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (TOP / link).exists()] == []


def test_the_manifest_is_short_and_valid() -> None:
    (text,) = blocks("yaml")
    assert len(text.splitlines()) < 25
    job = yaml.safe_load(text)
    spec = TrainingJobSpec.model_validate(job["spec"])
    assert (spec.workers, spec.checkpoint.every.steps) == (2, 500)


def test_the_script_runs_without_any_agent_and_adds_at_most_five_lines() -> None:
    (text,) = blocks("python")
    before = """
import torch
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
loader = torch.utils.data.DataLoader(torch.randn(32, 4), batch_size=8, shuffle=True)
seen = 0
def train_one(batch):
    global seen
    seen += 1
    loss = model(batch).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss
"""
    ours = [line for line in text.splitlines() if "ckpt" in line or "holdfast" in line]
    loop = [line for line in ours if line.startswith("for ")]
    assert len(ours) - len(loop) <= 5
    done = subprocess.run(
        [sys.executable, "-c", before + text + "\nassert seen == 12, seen"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "nothing is saved" in done.stderr.lower()
