"""From the start of the agent's process to the first step of the resumed training, against each of its phases alone."""

import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import figures, settings
from benchmarks.harness.contender import Contender, Kind, Rounds, Sample
from benchmarks.harness.crew import Outcome, compete
from benchmarks.harness.figures import Goal
from benchmarks.harness.report import Report
from benchmarks.restore_speed.sources import forget
from holdfast_agent.restore import Image
from holdfast_api import __version__

HERE = Path(__file__).resolve().parent
NAME = "Holdfast"
LONGEST, SUM = Goal(1.15), Goal(0.6)
PHASES = ("import", "fetch", "load")


def main() -> None:
    scale = settings.scale()
    disk, memory = settings.disk(), settings.memory()
    try:
        save_once(scale.mebibytes, disk)
        alone = [_import(), _fetch(disk, memory), _load(disk, memory)]
        outcomes = compete([ours(scale.mebibytes, disk), *alone], scale.rounds, memory)
    finally:
        shutil.rmtree(disk)
        shutil.rmtree(memory)
    report(outcomes, scale)


def save_once(mebibytes: int, disk: Path) -> None:
    """The checkpoint that everybody resumes from, made by a real run."""
    from benchmarks.harness.agent import Local

    local = Local(disk / "resumed", "--every-steps", "2", rank={"model": "plain", "mebibytes": mebibytes}, keep=True)
    try:
        local.tell("steps", count=1)
        local.wait_for_commits(1)
    finally:
        local.close()


def ours(mebibytes: int, disk: Path) -> Contender:
    def rounds() -> Rounds:
        from benchmarks.harness.agent import Local
        from benchmarks.harness.usage import cpu_seconds

        job = disk / "resumed"
        yield None
        while True:
            forget(job / "job")
            cpu = cpu_seconds()
            local = Local(
                job, "--every-steps", "1000000", rank={"model": "unfilled", "mebibytes": mebibytes}, keep=True
            )
            try:
                spent = cpu_seconds() - cpu
                ready = local.ready
                assert ready["boundary"] == 3, f"it did not resume: boundary {ready['boundary']}"
                extra = {
                    "rank started, s": ready["began"] - local.started,
                    "imported, s": ready["imported"] - local.started,
                    "asked, s": ready["asked"] - local.started,
                    "restored, s": ready["restored"] - local.started,
                }
                yield Sample(ready["first_step"] - local.started, int(ready["bytes"]), spent, extra)
            finally:
                local.close()
            yield None

    return Contender(
        NAME,
        Kind.OURS,
        rounds,
        __version__,
        "agent and rank started together, cold files, new arena; until the first `ckpt.step()` has returned",
    )


def _import() -> Contender:
    def rounds() -> Rounds:
        from benchmarks.harness.usage import metered

        yield None
        while True:
            with metered(1) as work:
                subprocess.run([sys.executable, "-c", "import torch, holdfast, benchmarks.harness.models"], check=True)
            yield work.sample()
            yield None

    return Contender("import", Kind.FLOOR, rounds, "", "Python starts and imports torch, holdfast and the model")


def _fetch(disk: Path, memory: Path) -> Contender:
    """The agent's restore into a new arena, from the files of the saved run."""

    def rounds() -> Rounds:
        from benchmarks.harness.usage import metered

        yield None
        while True:
            forget(disk / "resumed/job")
            folder = memory / "arena-fetch"
            with metered(1) as work:
                image = fetched(disk / "resumed/job", folder)
            work.bytes = image.manifest.image_bytes
            yield work.sample()
            shutil.rmtree(folder)
            yield None

    return Contender("fetch", Kind.FLOOR, rounds, "", "restore.fetch into a new arena: allocate, read, verify")


def _load(disk: Path, memory: Path) -> Contender:
    def rounds() -> Rounds:
        from benchmarks.harness import models
        from benchmarks.harness.usage import metered
        from holdfast.load import load_image
        from holdfast.progress import Progress
        from holdfast.state import Registry

        image = fetched(disk / "resumed/job", memory / "arena-load")
        mebibytes = image.manifest.image_bytes >> 20
        size = mebibytes // 64 * 64
        yield None
        while True:
            made = models.make("unfilled", mebibytes=size)
            registry = Registry(made.parts)
            registry.capture(Progress(), window_open=False)
            with metered(image.manifest.image_bytes) as work:
                m = image.manifest
                load_image(str(image.path), m.image_bytes, m.tensors, registry, Progress(), finite=True)
            yield work.sample()
            del made, registry
            yield None

    return Contender("load", Kind.FLOOR, rounds, "", "load_image into tensors that nobody has touched")


def fetched(job: Path, folder: Path) -> Image:
    """The newest image of rank 0, in a slot below `folder`."""
    import asyncio
    import json

    from holdfast_agent import restore
    from holdfast_agent.arena import Arena
    from holdfast_agent.laptop import JOB, NAMESPACE
    from holdfast_agent.threads import Stop, Threads
    from holdfast_api.config import StorageConfig
    from holdfast_api.layout import CheckpointRef
    from holdfast_store.job import JobStore
    from holdfast_store.opening import open_bucket

    uid = json.loads((job / ".holdfast/job.json").read_text())["uid"]
    store = JobStore(open_bucket(StorageConfig(job.resolve().as_uri()), {}), NAMESPACE, JOB, uid)
    newest = max(job.glob(f"{NAMESPACE}/{JOB}-*/checkpoints/*/*/commit.json"))
    record, _ = store.read_commit(CheckpointRef(int(newest.parts[-3]), int(newest.parts[-2])))
    tally = restore.Tally(lambda source, count: None)
    found = asyncio.run(
        restore.fetch(
            record, range(1), store=store, node=None, arena=Arena(folder), threads=Threads(), tally=tally, stop=Stop()
        )
    )
    return found[0]


def report(outcomes: list[Outcome], scale: settings.Scale) -> None:
    page = Report("start_to_step", HERE, outcomes, scale)
    me = figures.named(outcomes, NAME)
    alone = [figures.named(outcomes, name) for name in PHASES]
    if me and all(alone):
        found = [o for o in alone if o]
        longest = [max(o.samples[n].seconds for o in found) for n in range(len(me.samples))]
        sums = [sum(o.samples[n].seconds for o in found) for n in range(len(me.samples))]
        mine = [s.seconds for s in me.samples]
        slowest = max(found, key=lambda o: figures.median(o, figures.seconds)).contender.name
        page.add(
            figures.measure(
                "start_to_step.longest", f"process start → first step / the longest phase alone ({slowest})", "s", statistics.median(mine), goal=LONGEST,
                ratios=[a / b for a, b in zip(mine, longest, strict=True)], floor=statistics.median(longest), floor_name=slowest,
            )
        )  # fmt: skip
        page.add(
            figures.measure(
                "start_to_step.sum", "process start → first step / all phases one after the other", "s", statistics.median(mine), goal=SUM,
                ratios=[a / b for a, b in zip(mine, sums, strict=True)], floor=statistics.median(sums), floor_name="sum of the phases",
            )
        )  # fmt: skip
        stages = ", ".join(
            f"{key.removesuffix(', s')} {statistics.median(s.extra[key] for s in me.samples):.2f} s"
            for key in me.samples[0].extra
        )
        page.text(
            f"Inside Holdfast's start, seconds after the agent was started, median: {stages}, first step {statistics.median(mine):.2f} s."
        )
    page.table(outcomes, (("seconds, median", figures.seconds, ".3f"), ("CPU s", lambda s: s.cpu_seconds, ".2f")))
    page.bars("start.svg", figures.seconds, "seconds (less is better)")
    page.write()
