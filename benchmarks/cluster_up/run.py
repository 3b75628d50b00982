"""The cluster up and down, a few rounds, everything built and cached."""

import signal
import subprocess
import time
from pathlib import Path

from benchmarks import results
from benchmarks.ground import say
from hack import target

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
ROUNDS = 5
GOAL_SECONDS = 30


def main() -> None:
    if target.decide(target.look()) is not target.Target.NAMESPACES:
        say("left out: the cluster of this machine is not one that hack/cluster brings up")
        return
    say("a cluster that runs is taken down first; a round that is not counted builds what is missing")
    call("down")
    call("up")
    call("down")
    ups, downs = [], []
    for n in range(1, ROUNDS + 1):
        ups.append(call("up", quiet=True))
        downs.append(call("down", quiet=True))
        say(f"round {n}/{ROUNDS}: up {ups[-1]:.1f} s, down {downs[-1]:.1f} s")
    report(ups, downs)


def call(verb: str, *, quiet: bool = False) -> float:
    """Seconds. When we are stopped, `up` gets the time to take away what it has begun."""
    where = subprocess.DEVNULL if quiet else None
    began = time.monotonic()
    process = subprocess.Popen([str(TOP / "hack/cluster" / verb)], cwd=TOP, stdout=subprocess.DEVNULL, stderr=where)
    try:
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        raise
    if code:
        raise subprocess.CalledProcessError(code, f"hack/cluster/{verb}")
    return time.monotonic() - began


def report(ups: list[float], downs: list[float]) -> None:
    columns = {"up: two nodes Ready, with Holdfast's images": ups, "down: nothing is left": downs}
    rows = [
        (name, len(v), *(f"{results.spread(v)[k]:.1f}" for k in ("min", "median", "max"))) for name, v in columns.items()
    ]  # fmt: skip
    up = results.spread(ups)
    measures = [
        {
            "id": "cluster_up.up", "what": f"cluster up with a warm cache, the slowest of {len(ups)}", "unit": "s",
            "ours": round(up["max"], 1), "median": up["median"], "goal": GOAL_SECONDS, "met": up["max"] <= GOAL_SECONDS,
        }
    ]  # fmt: skip
    data = {"up_s": [round(s, 2) for s in ups], "down_s": [round(s, 2) for s in downs]}
    results.write("cluster_up", data, results.markdown(("in s", "rounds", "min", "median", "max"), rows), measures)
