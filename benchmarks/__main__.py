"""`make bench`, or `python -m benchmarks [--gpu] [QUESTION…]`: measures on this machine, writes results, redraws the README of each question.

Three kinds of questions. Those on the cluster take it down at the end, also by Ctrl-C, unless KEEP is set or it was there before and nothing had to take it
down. Those of the engine run in an environment of their own, beside what they are compared with (hack/peers.py). Those of the GPU run with --gpu alone, and
say why they did not where there is none. QUICK=1 runs the engine's alone, reduced.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import results
from hack import peers
from hack.cluster.errors import ClusterError
from hack.cluster.paths import state_directory
from hack.cluster.state import Store
from hack.demo.install import HelmFailed
from hack.demo.kube import KubectlFailed

CLUSTER = ("cluster_up", "operator_reaction", "time_to_resume")
ENGINE = (
    "save_stall",
    "boundary_cost",
    "background_persist",
    "nvme_flush",
    "store_upload",
    "checksum_cost",
    "emergency_flush",
    "restore_speed",
    "start_to_step",
    "agent_memory",
    "incremental",
    "interval_tuner",
    "preemptions_sealed",
)
GANGS = ("agreement",)
GPU = ("gpu_save", "gpu_restore")
QUESTIONS = (*ENGINE, *GANGS, *CLUSTER, *GPU)
TOP = Path(__file__).resolve().parents[1]
FAILURES = (ClusterError, HelmFailed, KubectlFailed, TimeoutError, subprocess.SubprocessError, AssertionError)


def main() -> int:
    quick = os.environ.get("QUICK", "") not in ("", "0")
    arguments = [a for a in sys.argv[1:] if a != "--gpu"]
    usual = GPU if "--gpu" in sys.argv[1:] else ENGINE if quick else (*ENGINE, *GANGS, *CLUSTER)
    wanted = arguments or list(usual)
    if unknown := [w for w in wanted if w not in QUESTIONS]:
        sys.exit(f"no such question: {', '.join(unknown)}; there are {', '.join(QUESTIONS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    stays = (
        not set(wanted) & set(CLUSTER)
        or bool(os.environ.get("KEEP"))
        or (Store(state_directory()).exists() and "cluster_up" not in wanted)
    )
    try:
        failed = [name for name in wanted if not measured(name)]
    except KeyboardInterrupt:
        print("\ninterrupted: taking down what was started", file=sys.stderr)
        return 130
    finally:
        if not stays:
            subprocess.run([str(TOP / "hack/cluster/down")], cwd=TOP, stderr=subprocess.DEVNULL, check=False)
    if failed:
        print(f"NOT measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def measured(name: str) -> bool:
    """Whether it went to its end; one question that cannot be answered leaves the others alone."""
    began = time.monotonic()
    print(f"== {name}", flush=True)
    results.begin()
    try:
        if name in CLUSTER:
            importlib.import_module(f"benchmarks.{name}.run").main()
        else:
            beside_peers(name)
    except FAILURES as e:
        print(f"== {name}: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
        return False
    print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    return True


def beside_peers(name: str) -> None:
    """In a process of the peers' environment, or of this one where there is none."""
    python, reason = peers.ensure()
    paths = [str(TOP / part) for part in ("api", "operator", "agent", "cli", ".")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "BENCH_NO_PEERS": reason, "OMP_NUM_THREADS": "1"}
    environ["PYTHONWARNINGS"] = "ignore::FutureWarning"  # torch's about a package that a peer brings
    subprocess.run([str(python or sys.executable), "-m", "benchmarks.harness", name], cwd=TOP, env=environ, check=True)


if __name__ == "__main__":
    sys.exit(main())
