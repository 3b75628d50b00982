"""How long a job stands still, by the way in which a worker was taken, beside what plain Kubernetes and a recreated gang do on the same cluster.

A cycle: a job of ours from which worker 1 is taken in every way (ways.py), then one of each peer (peers.py); never two at a time. `ROUNDS` preemptions of each
kind, `EACH` in a cycle. With ADD=1 they are added to those of results/latest.json, so that a long measurement can be made in pieces; each round carries
its commit.
"""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.ground import Ground, Receipt, say
from benchmarks.time_to_resume import peers
from benchmarks.time_to_resume.pods import Pods
from benchmarks.time_to_resume.report import report
from benchmarks.time_to_resume.ways import WAYS, Taker
from hack.demo import install
from hack.demo.kube import wait_for

HERE = Path(__file__).resolve().parent
LATEST = HERE / "results/latest.json"
PART = LATEST.with_suffix(".part")
ROUNDS, EACH = int(os.environ.get("ROUNDS") or 2), int(os.environ.get("EACH") or 2)
WANTED = tuple(filter(None, os.environ.get("WAYS", "").split(",")))
"""Names of ways and peers; empty: all."""
TAINT = "aws-node-termination-handler/spot-itn"
EVERY = 10
SIZE = ("--batch", "4", "--context", "64")
"""As in `make demo`: what two shared cores can do in half a second per step."""
TWO = peers.Shape(workers=2, ranks=2, every=EVERY, batch=4, context=64)
THREE = peers.Shape(workers=3, ranks=1, every=EVERY, batch=4, context=64)
JOBS = (("plain", TWO, "Off"), ("warm", TWO, "On"), ("three", THREE, "Off"))
"""Name, shape and `spec.warmStart` of each job of ours in a cycle."""
NOT_PLAIN = ("handover", "in-place")
"""Ways that are also measured with what is not plain."""
PEERS = {"job": peers.PlainJob, "gang": peers.Gang}
TORN = {"budgets": {"failures": {"max": 1000, "backoffSeconds": 0}}}
"""One job is broken many times over here; back-off is not what is measured."""


def main() -> None:
    rounds = earlier() if os.environ.get("ADD") else []
    facts = {"commit": results.commit(), "at": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())}
    with Ground("resume", install.EXAMPLE, taints=(TAINT,)) as ground:
        pods = Pods(ground.cluster.kubeconfig, ground.namespace)
        example = install.EXAMPLE.read_text()
        peers.script(ground, {"train.py": example, "train_dcp.py": (HERE / "train_dcp.py").read_text()})
        for cycle in range(1, -(-ROUNDS // EACH) + 1):
            for found in one_cycle(ground, pods, cycle, min(EACH, ROUNDS - EACH * (cycle - 1))):
                rounds.append({**found, **facts})
                say(json.dumps(found))
                PART.write_text(json.dumps(rounds))
        pods.close()
    report(rounds, every=EVERY)
    PART.unlink(missing_ok=True)


def earlier() -> list[dict[str, Any]]:
    """Rounds to add to: of a measurement that was cut short, else of the last one."""
    if PART.exists():
        return list(json.loads(PART.read_text()))
    return list(json.loads(LATEST.read_text())["rounds"]) if LATEST.exists() else []


def one_cycle(ground: Ground, pods: Pods, cycle: int, each: int) -> Any:
    """Rounds, as they are done."""
    if wanted("spot"):
        yield notice_to_agent(ground, f"spot-{cycle}")
    for name, shape, start in JOBS:
        ways = [w for w in WAYS if wanted(w.name) and (name == "plain" or w.name in NOT_PLAIN)]
        if ways and (name == "plain" or wanted(name)):
            job = f"ours-{name}-{cycle}"
            spec = {"workers": shape.workers, "processesPerWorker": shape.ranks, "warmStart": start, **TORN}
            ground.start(job, arguments=("--steps", "1000000", *SIZE), spec=spec, every={"steps": EVERY})
            taker = Taker(ground, pods, job, EVERY)
            for _ in range(each):
                for way in ways:
                    kind = way.name if start == "Off" else f"{way.name}-warm"
                    yield {"kind": kind, "workers": shape.workers, **taker.one(way)}
            ground.stop(job)
    for kind, peer in PEERS.items():
        for n in range(each if wanted(kind) else 0):
            with peer(ground, pods, f"{kind}-{cycle}-{n}", TWO) as running:
                yield {"kind": kind, "workers": TWO.workers, **dataclasses.asdict(running.preempt())}


def wanted(name: str) -> bool:
    return not WANTED or name in WANTED


def notice_to_agent(ground: Ground, job: str) -> dict[str, Any]:
    """A spot notice on the node of worker 1: when its agent has it, and how long the whole takes where the worker leaves for another node."""
    ground.start(job, arguments=("--steps", "100000", *SIZE))
    where = ground.workers(job)
    ground.agents.receipts.clear()
    moment = ground.nodes.put_taint(where[1], TAINT, "NoSchedule")

    def heard(receipts: list[Receipt]) -> Receipt | None:
        return next((r for r in receipts if r.worker == 1 and r.find(1, f"taint:{TAINT}", withdrawn=False)), None)

    def resumed() -> Any:
        return next((p for p in ground.status(job).get("preemptions") or [] if p.get("resumedAt")), None)

    first: Receipt = ground.agents.wait("the agent of worker 1 has the notice", heard, timeout=30)
    preemption: dict[str, Any] = wait_for("the job resumes", resumed, timeout=120)
    ground.nodes.take_taint(where[1], TAINT)
    ground.stop(job)
    return {
        "kind": "spot",
        "workers": 2,
        "notice_to_agent_ms": round((first.at - moment.sent) * 1000, 1),
        "phases_ms": {p["name"]: p["milliseconds"] for p in preemption["phases"]},
        "total_ms": preemption["totalMilliseconds"],
        "steps_lost": preemption.get("stepsLost", 0),
    }
