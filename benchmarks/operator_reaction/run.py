"""Puts 200 notices on nodes under a job that trains and takes each back; reads from the agents when they heard, from the operator's process what it cost."""

import random
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.ground import STATUS_WRITES, Ground, Moment, Receipt, Usage, say, seconds_of

HERE = Path(__file__).resolve().parent
NOTICES = 200
"""Each is two changes of a node: it is put there and taken back."""
LIMIT_SECONDS = 420.0
"""No more are put then, however many there have been."""
TAINT = "DeletionCandidateOfClusterAutoscaler"
SOURCE = f"taint:{TAINT}"
GOAL_MS = 250
SETTLE_SECONDS, WATCH_SECONDS = 15.0, 20.0
PAUSE_SECONDS = (0.25, 0.6)
"""Between changes, at random: nothing in the cluster that is periodic may keep in step with them."""
LATE_SECONDS = 15.0
NOTICED = "**notice put on the node → agent has it**"


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a node, in milliseconds from just before the request that makes it is sent."""

    kind: str
    """put or taken"""
    acknowledged: float
    """The API server's answer was there."""
    decided: float | None
    """The operator had seen it and decided, by its own clock; only of notices that were put, as they carry that time."""
    agent: float
    """The agent of the worker on that node had taken it in."""
    all_agents: float


def main() -> None:
    with Ground("reaction", HERE / "train.py", taints=(TAINT,)) as ground:
        ground.operator.restart()
        operator = ground.operator.pod()
        usage = {"no job": watch(ground, "no job")}
        ground.start("steady", spec={"processesPerWorker": 1}, every={"seconds": 86_400})
        usage["one job"] = watch(ground, "one job that trains")
        before = ground.operator.metrics() | ground.operator.status_writes()
        began = ground.operator.usage()
        changes = change_nodes(ground)
        ended = ground.operator.usage()
        metrics = difference(before, ground.operator.metrics() | ground.operator.status_writes())
        usage[f"{len(changes)} changes"] = (began, ended)
        usage["the same job afterwards"] = watch(ground, "the same job afterwards")
        if ground.operator.pod() != operator:
            raise AssertionError("the operator was replaced meanwhile: somebody else works on this cluster")
        final = ground.status("steady")
        if final["attempt"]["number"] != 1 or final.get("preemptions"):
            raise AssertionError("the job was interrupted: these were to be notices that only prepare")
        say(f"the job is at step {final['step']}, still in its first attempt")
        ground.stop("steady")
    report(changes, usage, metrics)


def watch(ground: Ground, what: str) -> tuple[Usage, Usage]:
    """The operator's process at the beginning and the end of a while in which nothing is asked of it."""
    say(f"operator with {what}: {SETTLE_SECONDS + WATCH_SECONDS:.0f} s")
    time.sleep(SETTLE_SECONDS)
    first = ground.operator.usage()
    time.sleep(WATCH_SECONDS)
    return first, ground.operator.usage()


def change_nodes(ground: Ground) -> list[Change]:
    """Puts a notice on the node of one worker and takes it back, on both nodes in turn."""
    where = ground.workers("steady")
    say(f"{NOTICES} notices, put and taken back, at most {LIMIT_SECONDS:.0f} s")
    changes: list[Change] = []
    began = time.monotonic()
    while len(changes) < 2 * NOTICES and time.monotonic() - began < LIMIT_SECONDS:
        worker = len(changes) // 2 % len(where)
        changes.append(one_change(ground, where, worker, put=True))
        changes.append(one_change(ground, where, worker, put=False))
        if len(changes) % 40 == 0:
            seen = results.spread([c.agent for c in changes])
            say(f"{len(changes) // 2}/{NOTICES}: median {seen['median']:.0f} ms, max {seen['max']:.0f} ms, {time.monotonic() - began:.0f} s")  # fmt: skip
    return changes


def one_change(ground: Ground, where: dict[int, str], worker: int, *, put: bool) -> Change:
    time.sleep(random.uniform(*PAUSE_SECONDS))
    # Workers may share a node: then the notice is about each of them, and each must hear of all.
    concerned = [w for w in where if where[w] == where[worker]]
    nodes, node = ground.nodes, where[worker]
    moment = nodes.put_taint(node, TAINT, "PreferNoSchedule") if put else nodes.take_taint(node, TAINT)

    def heard(receipts: list[Receipt]) -> dict[int, Receipt] | None:
        found: dict[int, Receipt] = {}
        for r in receipts:
            knows = all(r.find(w, SOURCE, withdrawn=not put) for w in concerned)
            if r.at >= moment.sent and knows:
                found.setdefault(r.worker, r)
        return found if len(found) == len(where) else None

    ground.agents.receipts.clear()
    first: dict[int, Receipt] = ground.agents.wait("every agent has heard of the change", heard, timeout=LATE_SECONDS)
    return as_change("put" if put else "taken", moment, first, worker)


def as_change(kind: str, moment: Moment, first: dict[int, Receipt], worker: int) -> Change:
    def after(at: float) -> float:
        return round((at - moment.sent) * 1000, 2)

    notice = first[worker].find(worker, SOURCE, withdrawn=False)
    return Change(
        kind=kind,
        acknowledged=after(moment.acked),
        decided=after(seconds_of(notice["noticed_at"])) if notice else None,
        agent=after(first[worker].at),
        all_agents=after(max(r.at for r in first.values())),
    )


# ---- what came of it


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


@dataclass(frozen=True, slots=True)
class Histogram:
    """Of Prometheus, between two looks."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float

    @classmethod
    def of(cls, metrics: dict[str, float], name: str) -> "Histogram":
        """Of the only series that there is of this name."""
        buckets = {k: v for k, v in metrics.items() if k.startswith(f"{name}_bucket{{")}
        pairs = sorted((float(re.findall(r'[{,]le="([^"]+)"', k)[0]), v) for k, v in buckets.items())
        total = next(v for k, v in metrics.items() if k.startswith(f"{name}_sum"))
        return cls(tuple(b for b, _ in pairs), tuple(v for _, v in pairs), total)

    @property
    def count(self) -> float:
        return self.counts[-1]

    def quantile(self, q: float) -> float:
        """As histogram_quantile does: linear within the bucket."""
        rank, below, low = q * self.count, 0.0, 0.0
        for bound, upto in zip(self.bounds, self.counts, strict=True):
            if upto >= rank and upto > below:
                return low if bound == float("inf") else low + (bound - low) * (rank - below) / (upto - below)
            below, low = upto, bound
        return low

    @property
    def most(self) -> float:
        """Upper bound of the greatest value."""
        return next(b for b, upto in zip(self.bounds, self.counts, strict=True) if upto >= self.count)

    def quantiles(self) -> dict[str, float]:
        """In milliseconds."""
        return {f"p{round(q * 100)}": round(self.quantile(q) * 1000, 1) for q in (0.5, 0.9, 0.99)}

    def row(self, name: str) -> tuple[object, ...]:
        return name, int(self.count), *(f"{v:.0f}" for v in self.quantiles().values()), f"< {self.most * 1000:.0f}"

    def as_json(self) -> dict[str, Any]:
        found = {"le": [str(b) for b in self.bounds], "count": list(self.counts), "sum_seconds": round(self.total, 4)}
        return found | {f"{k}_ms": v for k, v in self.quantiles().items()}


def report(changes: list[Change], usage: dict[str, tuple[Usage, Usage]], metrics: dict[str, float]) -> None:
    put, taken = ([c for c in changes if c.kind == kind] for kind in ("put", "taken"))
    parts = {
        NOTICED: [c.agent for c in put],
        "the same from the acknowledgement of the API server on": [c.agent - c.acknowledged for c in put],
        "of it, until the operator has decided": [c.decided for c in put if c.decided is not None],
        "of it, from there until the agent has it": [c.agent - c.decided for c in put if c.decided is not None],
        "notice taken back → agent knows": [c.agent for c in taken],
        "node changed (both) → every agent of the job has it": [c.all_agents for c in changes],
        "node changed (both) → acknowledged": [c.acknowledged for c in changes],
    }
    spreads = {name: results.spread(values) for name, values in parts.items()}
    rows = [
        (name, s["n"], *(f"{s[k]:.0f}" for k in ("median", "p90", "p99", "max"))) for name, s in spreads.items()
    ]  # fmt: skip
    reaction = Histogram.of(metrics, "holdfast_reaction_seconds")
    writes = Histogram.of(metrics, STATUS_WRITES)
    rows.append(reaction.row("the operator's own `holdfast_reaction_seconds`"))
    rows.append(writes.row("every write of the job's status, as the API server measures it"))
    agent = spreads[NOTICED]
    costs = {name: cost(name, first, last, changes) for name, (first, last) in usage.items()}
    table = "\n\n".join((
        results.markdown(("in ms", "n", "p50", "p90", "p99", "max"), rows),
        results.markdown(
            ("the operator's process", "resident, MiB", "of it anonymous", "peak so far", "threads", "processor", "per change, ms"),
            [(name, *c.values()) for name, c in costs.items()],
        ),
        f"Status writes that lost a race: {metrics.get('holdfast_status_conflicts_total', 0):.0f}; "
        f"orders that an agent did not take in: {metrics.get('holdfast_agent_orders_failed_total', 0):.0f}; "
        f"rounds: {metrics['holdfast_reconcile_seconds_count']:.0f}, "
        f"on average {metrics['holdfast_reconcile_seconds_sum'] / metrics['holdfast_reconcile_seconds_count'] * 1000:.0f} ms.",
    ))  # fmt: skip
    results.write("operator_reaction", {
        "taint": TAINT,
        "changes": [asdict(c) for c in changes],
        "spreads_ms": spreads,
        "operator_histogram": reaction.as_json(),
        "status_writes_histogram": writes.as_json(),
        "operator_process": costs,
    }, table, measures(agent, reaction.quantiles(), costs))  # fmt: skip
    plot(changes)
    say(f"notice to agent, ms: {agent}")


def cost(name: str, first: Usage, last: Usage, changes: list[Change]) -> dict[str, Any]:
    spent = last.cpu_seconds - first.cpu_seconds
    return {
        "resident_mib": round(last.resident_mib, 1),
        "anonymous_mib": round(last.anonymous_mib, 1),
        "peak_mib": round(last.peak_mib, 1),
        "threads": last.threads,
        "processor": f"{100 * spent / (last.at - first.at):.1f} %",
        "per_change_ms": round(1000 * spent / len(changes), 1) if name.endswith("changes") else "",
    }


def measures(
    agent: dict[str, float], quantiles: dict[str, float], costs: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    idle, busy = costs["no job"], costs["the same job afterwards"]
    none = {"goal": None, "met": None}
    return [
        {
            "id": "operator_reaction.agent", "what": f"a notice is put on a node → the agent has it, the slowest of {agent['n']}",
            "unit": "ms", "ours": round(agent["max"]), **{k: agent[k] for k in ("median", "p90", "p99")},
            "goal": GOAL_MS, "met": agent["max"] <= GOAL_MS,
        },
        {
            "id": "operator_reaction.own", "what": "the operator's own reaction time, p99", "unit": "ms",
            "ours": round(quantiles["p99"]), **quantiles, **none,
        },
        {
            "id": "operator_reaction.memory", "what": "resident memory of the operator after that", "unit": "MiB",
            "ours": busy["resident_mib"], "idle": idle["resident_mib"], **none,
        },
        {
            "id": "operator_reaction.idle", "what": "resident memory of the operator without a job", "unit": "MiB",
            "ours": idle["resident_mib"], **none,
        },
    ]  # fmt: skip


def plot(changes: list[Change]) -> None:
    """How many changes had arrived after how long; and each of them in order."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    put, taken = ([c for c in changes if c.kind == kind] for kind in ("put", "taken"))
    series = {
        "put: the operator has decided": [c.decided for c in put if c.decided is not None],
        "put: the agent has it": [c.agent for c in put],
        "taken back: the agent knows": [c.agent for c in taken],
    }
    for name, values in series.items():
        left.step([0, *sorted(values)], [n / len(values) for n in range(len(values) + 1)], where="post", label=name)
    left.set_ylabel("share of the changes")
    left.set_xlabel("ms from sending the change")
    left.set_xlim(left=0)
    left.legend(fontsize=8, loc="lower right")
    right.plot(range(1, len(put) + 1), [c.agent for c in put], ".", markersize=4, color="C1")
    right.plot(range(1, len(taken) + 1), [c.agent for c in taken], ".", markersize=4, color="C2")
    right.axhline(GOAL_MS, color="grey", linestyle="--")
    right.text(1, GOAL_MS, "goal", color="grey", va="bottom")
    right.set_ylim(bottom=0)
    right.set_xlabel("notice, in order (colours as on the left)")
    right.set_ylabel("ms until the agent has it")
    figure.tight_layout()
    figure.savefig(HERE / "results/reaction.png", dpi=110)
    plt.close(figure)
