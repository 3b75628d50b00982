"""Preempts a job, a fresh one each time, and reads the phases from its status; when the agent had the notice comes from the agent itself."""

import json
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.ground import Ground, Receipt, say
from hack.demo import install, show
from hack.demo.kube import wait_for

HERE = Path(__file__).resolve().parent
ROUNDS = 5
TAINT = "aws-node-termination-handler/spot-itn"
SIZE = ("--batch", "4", "--context", "64")
"""As in `make demo`: what two shared cores can do in half a second per step."""
GOAL_MS = 250
TOGETHER = "**together: notice → first new step**"


def main() -> None:
    with Ground("resume", install.EXAMPLE, taints=(TAINT,)) as ground:
        rounds = [one_round(ground, n) for n in range(1, ROUNDS + 1)]
    report(rounds)


def one_round(ground: Ground, n: int) -> dict[str, Any]:
    """A job until it trains, a spot notice on the node of its worker 1, until it trains again."""
    job = f"round-{n}"
    ground.start(job, arguments=("--steps", "100000", *SIZE))
    where = ground.workers(job)
    if where[0] == where[1]:
        say(f"round {n}: both workers are on {where[0]}, so both have to go")
    ground.agents.receipts.clear()
    moment = ground.nodes.put_taint(where[1], TAINT, "NoSchedule")

    def heard(receipts: list[Receipt]) -> Receipt | None:
        return next((r for r in receipts if r.worker == 1 and r.find(1, f"taint:{TAINT}", withdrawn=False)), None)

    first: Receipt = ground.agents.wait("the agent of worker 1 has the notice", heard, timeout=30)

    def resumed() -> Any:
        return next((p for p in ground.status(job).get("preemptions") or [] if p.get("resumedAt")), None)

    preemption: dict[str, Any] = wait_for("the job resumes", resumed, timeout=120)
    ground.nodes.take_taint(where[1], TAINT)
    result = {
        "notice_to_agent_ms": round((first.at - moment.sent) * 1000, 1),
        "phases_ms": {p["name"]: p["milliseconds"] for p in preemption["phases"]},
        "total_ms": preemption["totalMilliseconds"],
        "workers_lost": sorted(preemption["workers"]),
        "step_at_notice": preemption["stepAtNotice"],
        "steps_lost": preemption.get("stepsLost", 0),
    }
    say(f"round {n}/{ROUNDS}: {json.dumps(result)}")
    ground.stop(job)
    return result


def report(rounds: list[dict[str, Any]]) -> None:
    names = list(rounds[0]["phases_ms"])
    columns = {name: [r["phases_ms"].get(name, 0) for r in rounds] for name in names}
    columns |= {TOGETHER: [r["total_ms"] for r in rounds]}
    columns |= {"besides: notice put on the node → agent has it": [r["notice_to_agent_ms"] for r in rounds]}
    rows = [
        (name, show.PHASES.get(name, ""), *(round(results.spread(v)[k]) for k in ("min", "median", "max")))
        for name, v in columns.items()
    ]
    agent = results.spread([r["notice_to_agent_ms"] for r in rounds])
    total = results.spread(columns[TOGETHER])
    lost = sum(r["steps_lost"] for r in rounds)
    measures = [
        {
            "id": "time_to_resume.agent", "what": f"a spot notice is put on a node → the agent has it, the slowest of {len(rounds)}",
            "unit": "ms", "ours": round(agent["max"]), "median": agent["median"], "goal": GOAL_MS, "met": agent["max"] <= GOAL_MS,
        },
        {
            "id": "time_to_resume.total", "what": f"notice → first new step on another node, median of {len(rounds)}",
            "unit": "ms", "ours": round(total["median"]), "min": total["min"], "max": total["max"], "goal": None, "met": None,
        },
    ]  # fmt: skip
    table = results.markdown(("phase", "from, until", "min, ms", "median", "max"), rows)
    table += f"\n\n{len(rounds)} rounds; steps lost in all of them: {lost}."
    results.write("time_to_resume", {"rounds": rounds}, table, measures)
    plot(names, rounds)


def plot(names: list[str], rounds: list[dict[str, Any]]) -> None:
    """Stacked bars, one per round."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.5 * len(rounds) + 1.5))
    left = [0.0] * len(rounds)
    for name in names:
        widths = [r["phases_ms"].get(name, 0) for r in rounds]
        axes.barh(range(len(rounds)), widths, left=left, label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlabel("ms from the notice to the first new step")
    axes.set_yticks(range(len(rounds)), [f"round {n + 1}" for n in range(len(rounds))])
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.savefig(HERE / "results/phases.png", bbox_inches="tight", dpi=110)
    plt.close(figure)
