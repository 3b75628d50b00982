"""The same with real agents, in real time: a small state, a real S3 server, and a proxy before it that lets so much through that a flush takes 60 % of the
budget. The training process is the fake one of the agent's tests: bytes that name their boundary, copied at boundaries only.
"""

import random
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hack import s3_server

BYTES_ON_THE_WIRE = 420_000
"""A state of 300 kB in chunks of 4 KiB, with the heads of the requests."""
GRACE_SECONDS = 20.0
"""Beyond the budget, for an agent that does not end by itself."""


@dataclass(frozen=True, slots=True)
class Real:
    budget: float
    step: float
    boundary_at_notice: int
    committed: int
    exit_code: int
    ended_after: float
    choice: str

    @property
    def sealed(self) -> bool:
        return self.committed >= self.boundary_at_notice > 0 and self.ended_after <= self.budget


def run(seeds: range) -> list[Real] | str:
    """Or why it cannot be done here."""
    binary = s3_server.find()
    if binary is None:
        return "the S3 server versitygw is not built (make test builds it)"
    folder = Path(tempfile.mkdtemp(prefix="holdfast-preemptions-"))
    try:
        with s3_server.running(binary, folder / "s3") as server:
            return [_one(seed, folder / f"run-{seed}", server) for seed in seeds]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _one(seed: int, folder: Path, server: Any) -> Real:
    from tests.agent.conftest import Gang
    from tests.store.proxy import Proxy

    r = random.Random(seed)
    budget, step = r.choice((15, 30)), round(r.uniform(0.05, 1.5), 2)
    proxy = Proxy(server.endpoint)
    proxy.bytes_per_second = BYTES_ON_THE_WIRE / (0.6 * budget)
    gang = Gang(
        folder,
        workers=1,
        trainer=("1000000", "--step-seconds", str(step)),
        config={
            "sigterm_floor_seconds": budget,
            "grace_seconds": budget,
            "every_steps": 1_000_000,
            "chunk_bytes": 4096,
        },
        storage=server.config(f"jobs-{seed}", endpoint=proxy.endpoint),
        bucket_dir=server.data / s3_server.BUCKET / f"jobs-{seed}",
        environ=server.environ,
    )
    try:
        gang.start().begin()
        gang.wait_for_boundary(2)
        time.sleep(r.uniform(0, 2 * step))
        pod = gang.pods[0]
        at = pod.report().boundary
        began = time.monotonic()
        pod.kill(signal.SIGTERM)
        code = pod.wait(budget + GRACE_SECONDS)
        took = time.monotonic() - began
        committed = max((b for _, b, _ in gang.commits()), default=0)
        plans = pod.last_report().plans
        return Real(budget, step, at, committed, code, round(took, 2), plans[-1].choice if plans else "none")
    finally:
        gang.close()
        proxy.close()
