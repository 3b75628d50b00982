"""What the agent holds in memory beside the arena: while it writes a large state, and over many saves of a small one."""

import re
import shutil
import statistics
import threading
from pathlib import Path

from benchmarks.harness import figures, settings
from benchmarks.harness.agent import Local
from benchmarks.harness.figures import Goal
from benchmarks.harness.report import Report
from benchmarks.harness.usage import anonymous_bytes

HERE = Path(__file__).resolve().parent
LIMIT, FLAT = Goal(150), Goal(5)
KEPT = 20
PARTS = 50
"""Times that the memory is looked at."""
WARM_UP = 0.1
"""Share of the saves after which the memory is expected to have settled."""


def main() -> None:
    scale = settings.scale()
    disk, memory = settings.disk(), settings.memory()
    try:
        large = while_writing(scale.mebibytes, disk)
        saves, held = over_many(scale.saves, memory)
    finally:
        shutil.rmtree(disk)
        shutil.rmtree(memory)
    report(scale, large, saves, held)


def while_writing(mebibytes: int, disk: Path, rounds: int = 3) -> list[float]:
    """MB at the peak of each of some saves of a large state, sampled every 10 ms."""
    local = Local(disk / "large", "--every-steps", "5", rank={"model": "plain", "mebibytes": mebibytes})
    peaks = []
    try:
        local.wait_for_slots(int(local.ready["bytes"]), 2)
        local.tell("steps", count=3, work=0.1)
        for round in range(1, rounds + 1):
            seen = [anonymous_bytes(local.process.pid)]
            over = threading.Event()

            def watch(seen: list[int] = seen, over: threading.Event = over) -> None:
                while not over.wait(0.01):
                    seen.append(anonymous_bytes(local.process.pid))

            watcher = threading.Thread(target=watch)
            watcher.start()
            local.tell("steps", count=1, change=True)
            local.wait_for_commits(round)
            over.set()
            watcher.join()
            peaks.append(max(seen) / 1e6)
            print(f"   a save of {mebibytes} MiB: at most {peaks[-1]:.0f} MB", flush=True)
            local.tell("steps", count=4, work=0.05)
    finally:
        local.close()
    return peaks


def over_many(count: int, memory: Path) -> tuple[list[int], list[float]]:
    """(saves committed so far, MB) again and again until `count` saves are committed; everything in memory, so that no disk slows it down."""
    local = Local(memory / "small", "--every-steps", "1", rank={"model": "small", "buffers": False})
    saves, held = [0], [anonymous_bytes(local.process.pid) / 1e6]
    try:
        while saves[-1] < count:
            local.tell("steps", count=max(1, count // PARTS))
            saves.append(committed(local))
            retire(local)
            held.append(anonymous_bytes(local.process.pid) / 1e6)
            if len(saves) % 10 == 0:
                print(f"   {saves[-1]} saves: {held[-1]:.1f} MB", flush=True)
    finally:
        local.close()
    return saves, held


def retire(local: Local) -> None:
    """Plays the retention that an operator decides: without it the store grows, and with it every listing that a commit asks for."""
    for checkpoint in sorted(local.job.glob("local/run-*/checkpoints/*/*"))[:-KEPT]:
        shutil.rmtree(checkpoint)


def committed(local: Local) -> int:
    """The agent's own count."""
    lines = re.findall(r"committed at boundary", local.log.read_text(errors="replace"))
    return len(lines)


def report(scale: settings.Scale, large: list[float], saves: list[int], held: list[float]) -> None:
    page = Report("agent_memory", HERE, [], scale)
    settled = [mb for n, mb in zip(saves, held, strict=True) if n >= saves[-1] * WARM_UP]
    third = max(1, len(settled) // 3)
    growth = statistics.median(settled[-third:]) - statistics.median(settled[:third])
    page.add(
        figures.measure(
            "agent_memory.large",
            f"anonymous memory of the agent while it writes {scale.mebibytes} MiB, peak",
            "MB",
            max(large),
            goal=LIMIT,
            values=large,
        )
    )
    page.add(
        figures.measure(
            "agent_memory.small",
            f"anonymous memory of the agent over {saves[-1]} saves, peak",
            "MB",
            max(held),
            goal=LIMIT,
            values=held,
        )
    )
    page.add(
        figures.measure(
            "agent_memory.growth", f"its growth over {saves[-1]} saves, after the first tenth: last third less first third", "MB", round(growth, 2), goal=FLAT,
        )
    )  # fmt: skip
    page.more = {"saves": saves, "anonymous_mb": [round(mb, 2) for mb in held], "peaks_of_large_saves_mb": large}
    page.text("One point in results/latest.json for every fiftieth part of the saves.")
    page.lines("memory.svg", {"agent, anonymous memory": (saves, held)}, "saves committed", "MB")
    page.size = f"Large state: {scale.mebibytes} MiB{' (QUICK=1)' if scale.quick else ''}."
    page.write()
