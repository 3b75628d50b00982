"""Up and down, a few rounds, with a cluster of its own (the one that people use is left alone)."""

import subprocess
import time
from pathlib import Path

from benchmarks import results

TOP = Path(__file__).resolve().parents[2]
ROUNDS = 3


def timed(*command: str) -> float:
    began = time.monotonic()
    subprocess.run(command, cwd=TOP, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def main() -> None:
    """The default cluster is taken down first: two clusters on two cores would measure each other."""
    subprocess.run(
        [str(TOP / "hack/cluster/down")], cwd=TOP, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    ups, downs = [], []
    for _ in range(ROUNDS):
        ups.append(timed(str(TOP / "hack/cluster/up")))
        downs.append(timed(str(TOP / "hack/cluster/down")))
    rows = [
        (name, *(f"{results.spread(v)[k]:.1f}" for k in ("min", "median", "max")))
        for name, v in (("up, s", ups), ("down, s", downs))
    ]
    measures = [{
        "id": "cluster.up", "unit": "s", "ours": results.spread(ups)["median"], "goal": 30, "met": results.spread(ups)["median"] <= 30,
    }]  # fmt: skip
    results.write(
        "cluster_up", {"up_s": ups, "down_s": downs}, results.markdown(("", "min", "median", "max"), rows), measures
    )
