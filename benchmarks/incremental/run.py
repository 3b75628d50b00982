"""A low-rank adapter on a frozen base: what a save is logically, what is sent, what lies in the store."""

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from benchmarks.harness import figures, settings
from benchmarks.harness.agent import Local
from benchmarks.harness.figures import Goal
from benchmarks.harness.report import Report
from benchmarks.nvme_flush.peers import version_of
from benchmarks.results import markdown

HERE = Path(__file__).resolve().parent
CHUNK_BYTES = 16 << 20
SAVES = 4
AT_MOST = Goal(1.0)
WRITE_ALL = {"torch.save": "torch", "DCP": "torch", "torch_checkpointing": "torch_checkpointing"}
"""Formats that write the whole state each time, and the packages that they are part of."""


def main() -> None:
    scale = settings.scale()
    mebibytes = scale.mebibytes if scale.trial else 1024
    disk, memory = settings.disk(), settings.memory()
    try:
        saves, trained = measure(mebibytes, disk)
    finally:
        shutil.rmtree(disk)
        shutil.rmtree(memory)
    report(scale, mebibytes, saves, trained)


def measure(mebibytes: int, disk: Path) -> tuple[list[dict[str, Any]], int]:
    """One entry per save, and the bytes of the adapter with its optimizer state."""
    local = Local(disk / "lora", "--every-steps", "5", rank={"model": "lora", "base_mebibytes": mebibytes})
    try:
        trained = int(local.ready["bytes"]) - (mebibytes << 20)
        local.tell("steps", count=3)
        found = []
        for number in range(1, SAVES + 1):
            local.tell("steps", count=1)
            local.wait_for_commits(number)
            commit = local.commits()[-1]
            record = json.loads(commit.read_text())
            stored = (
                sum(p.stat().st_size for p in (commit.parent / "chunks").glob("*"))
                if (commit.parent / "chunks").exists()
                else 0
            )
            found.append(
                {
                    "save": number,
                    "logical": record["bytes_logical"],
                    "sent": record["bytes_sent"],
                    "stored": stored,
                    "timings": record["timings"],
                }
            )
            print(
                f"   save {number}: logical {record['bytes_logical'] / 1e6:.0f} MB, sent {record['bytes_sent'] / 1e6:.1f} MB",
                flush=True,
            )
            local.tell("steps", count=4)
    finally:
        local.close()
    return found, trained


def report(scale: settings.Scale, mebibytes: int, saves: list[dict[str, Any]], trained: int) -> None:
    page = Report("incremental", HERE, [], scale)
    later = saves[1:]
    sent = [s["sent"] for s in later]
    bound = trained + 2 * CHUNK_BYTES
    page.add(
        figures.measure(
            "incremental.lora", f"bytes sent by a later save of an adapter on a base of {mebibytes} MiB / adapter, optimizer state and two chunks", "MB",
            max(sent) / 1e6, goal=AT_MOST, ratios=[n / bound for n in sent], floor=bound / 1e6, floor_name="adapter, its optimizer state, two chunks",
            peers={name: {"version": version_of(package), "value": round(later[0]["logical"] / 1e6, 1), "remark": "not run: the whole state each time"}
                   for name, package in WRITE_ALL.items()},
        )
    )  # fmt: skip
    share = statistics.median(s["sent"] / s["logical"] for s in later)
    page.add(
        figures.measure(
            "incremental.share", "of that, bytes sent / bytes of the state", "%", round(100 * share, 2), goal=None
        )
    )
    rows = [(s["save"], *(f"{s[key] / 1e6:.1f}" for key in ("logical", "sent", "stored"))) for s in saves]
    page.more = {"saves": saves, "adapter_and_optimizer_bytes": trained, "base_mebibytes": mebibytes}
    page.text(markdown(("save", "logical, MB", "sent, MB", "stored below this save, MB"), rows))
    page.size = f"Base: {mebibytes} MiB, chunks of 16 MiB; adapter with its optimizer state: {trained / 1e6:.1f} MB."
    page.write()
