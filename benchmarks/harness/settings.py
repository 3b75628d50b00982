"""How much is measured: the whole, a quick run, or whatever somebody asks for while developing. From the environment, read once per process.

QUICK=1 is the reduced run of `make bench QUICK=1`. BENCH_MIB and BENCH_ROUNDS override the size of the state and the number of rounds; figures taken with
them are shown and not written into the results.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scale:
    mebibytes: int
    """Of the state that is saved."""
    rounds: int
    saves: int
    """Of the test of memory over many saves."""
    quick: bool
    trial: bool
    """Made smaller by hand: nothing is written."""


def scale() -> Scale:
    quick = os.environ.get("QUICK", "") not in ("", "0")
    mebibytes, rounds, saves = (512, 3, 1000) if quick else (2048, 7, 10_000)
    trial = {"BENCH_MIB", "BENCH_ROUNDS", "BENCH_SAVES"} & os.environ.keys()
    return Scale(
        int(os.environ.get("BENCH_MIB", mebibytes)),
        int(os.environ.get("BENCH_ROUNDS", rounds)),
        int(os.environ.get("BENCH_SAVES", saves)),
        quick,
        bool(trial),
    )


def disk() -> Path:
    """A directory on a real disk for what is written: BENCH_DIR, else the system's place for temporary files."""
    return Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir=os.environ.get("BENCH_DIR")))


def memory() -> Path:
    """A directory in memory."""
    return Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir="/dev/shm"))


def missing_peers() -> str:
    """Why the peers that are installed beside the project are not there; empty if they are."""
    return os.environ.get("BENCH_NO_PEERS", "")
