"""Preempts a small job again and again, and reads the phases from its status and the agent's stages from its report in the store."""

import json
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import results
from hack.cluster import api
from hack.demo import install, show
from hack.demo.kube import Kube, wait_for

TOP = Path(__file__).resolve().parents[2]
ROUNDS = 7
TAINT = "aws-node-termination-handler/spot-itn"


def main() -> None:
    cluster = api.ensure_cluster(nodes=2, grace=12, images=True)
    kube = Kube(cluster.bin / "kubectl", cluster.kubeconfig)
    install.install_chart(kube, cluster.bin / "helm")
    s3 = cluster.s3("benchmarks")
    namespace = f"bench-{uuid.uuid4().hex[:6]}"
    install.prepare_namespace(
        kube, namespace, install.Bucket(s3.endpoint, s3.access_key, s3.secret_key, s3.region, s3.bucket)
    )
    kube.apply(
        install.training_job(
            "bench",
            namespace,
            "s3://benchmarks/ttr",
            torch_path=cluster.torch_path_in_pod,
            arguments=("--steps", "100000"),
        )
    )
    rounds = [one_round(kube, cluster, namespace, n) for n in range(ROUNDS)]
    kube.run("delete", "namespace", namespace, "--wait=false")
    report(rounds)


def status_of(kube: Kube, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] = kube.get("trainingjob", "bench", namespace=namespace).get("status", {})
    return found


def one_round(kube: Kube, cluster: Any, namespace: str, n: int) -> dict[str, Any]:
    """Notice on the node of worker 1, until the job trains again; the node is clean afterwards."""

    def trains() -> bool:
        status = status_of(kube, namespace)
        return (
            status.get("phase") == "Running"
            and status.get("step", 0) > (status.get("attempt") or {}).get("parentStep", 0) + 3
        )

    wait_for("the job trains", trains, timeout=120)
    attempt = status_of(kube, namespace)["attempt"]["number"]
    pods = [
        p for p in install.pods_of(kube, namespace, "bench") if p["metadata"]["labels"]["holdfast.dev/worker"] == "1"
    ]
    node, uid = pods[-1]["spec"]["nodeName"], kube.get("trainingjob", "bench", namespace=namespace)["metadata"]["uid"]
    sent = datetime.now(UTC)
    kube.run("taint", "node", node, f"{TAINT}=bench:NoSchedule", "--overwrite")

    def resumed() -> Any:
        past = status_of(kube, namespace).get("preemptions") or []
        fresh = [p for p in past if p["attempt"] == attempt and p.get("resumedAt")]
        return fresh and fresh[-1]

    preemption: dict[str, Any] = wait_for("the job resumes", resumed, timeout=120)
    kube.run("taint", "node", node, f"{TAINT}-")
    data = Path(cluster.s3_data) / "benchmarks/ttr" / namespace / f"bench-{uid}"
    stages = json.loads((data / f"attempts/{attempt:010d}.reports/1.json").read_text())["stages"]
    noticed = datetime.fromisoformat(stages["noticed"])
    result = {
        "notice_to_agent_ms": round((noticed - sent).total_seconds() * 1000, 1),
        "phases_ms": {p["name"]: p["milliseconds"] for p in preemption["phases"]},
        "total_ms": preemption["totalMilliseconds"],
        "steps_lost": preemption.get("stepsLost", 0),
    }
    print(f"round {n + 1}/{ROUNDS}: {json.dumps(result)}", flush=True)
    time.sleep(1)
    return result


def report(rounds: list[dict[str, Any]]) -> None:
    names = list(rounds[0]["phases_ms"])
    columns = {"notice to agent": [r["notice_to_agent_ms"] for r in rounds]}
    columns |= {name: [r["phases_ms"].get(name, 0) for r in rounds] for name in names}
    columns |= {"together (notice to first new step)": [r["total_ms"] for r in rounds]}
    rows = [
        (name, show.PHASES.get(name, ""), *(round(results.spread(v)[k]) for k in ("min", "median", "max")))
        for name, v in columns.items()
    ]
    agent = results.spread(columns["notice to agent"])
    total = results.spread(columns["together (notice to first new step)"])
    measures = [
        {
            "id": "notice.to_agent",
            "unit": "ms",
            "ours": agent["median"],
            "max": agent["max"],
            "goal": 250,
            "met": agent["max"] <= 250,
        },
        {
            "id": "time_to_resume.total",
            "unit": "ms",
            "ours": total["median"],
            "max": total["max"],
            "goal": None,
            "met": None,
        },
    ]
    plot(names, rounds)
    results.write(
        "time_to_resume",
        {"rounds": rounds},
        results.markdown(("phase", "from, until", "min, ms", "median", "max"), rows),
        measures,
    )


def plot(names: list[str], rounds: list[dict[str, Any]]) -> None:
    """Stacked bars, one per round."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.5 * len(rounds) + 1.5))
    left = [0.0] * len(rounds)
    for name in names:
        widths = [r["phases_ms"].get(name, 0) for r in rounds]
        axes.barh(range(len(rounds)), widths, left=left, label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlabel("ms from the notice")
    axes.set_yticks(range(len(rounds)), [f"round {n + 1}" for n in range(len(rounds))])
    axes.invert_yaxis()
    axes.legend(ncols=len(names), loc="upper center", bbox_to_anchor=(0.5, -0.25), fontsize=7)
    figure.savefig(Path(__file__).parent / "results/phases.png", bbox_inches="tight", dpi=110)
