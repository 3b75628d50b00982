"""Every panel of the dashboard shows something when a real Prometheus has scraped an operator and an agent that have lived through a preemption."""

import json
import math
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import start_http_server

from holdfast_agent.metrics import Metrics as AgentMetrics
from holdfast_operator.core.resume import PHASES
from holdfast_operator.crd.v1alpha1 import (
    CheckpointStatus,
    Counts,
    Phase,
    PhaseDuration,
    PreemptionStatus,
    TrainingJobStatus,
)
from holdfast_operator.shell.metrics import Metrics as OperatorMetrics

pytestmark = pytest.mark.cluster  # for the real Prometheus
TOP = Path(__file__).resolve().parents[2]
GRAFANA = {"$__rate_interval": "30s", "$__range": "1m", "$namespace": ".*"}
NOW = datetime.now(UTC)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def expressions() -> list[tuple[str, str]]:
    panels = json.loads((TOP / "dashboards/holdfast.json").read_text())["panels"]
    return [(p["title"], t["expr"]) for p in panels for t in p.get("targets", [])]


def job(resumed: bool) -> TrainingJobStatus:
    entry = PreemptionStatus(attempt=1, cause="spot", noticed_at=NOW, ended_at=NOW)
    if resumed:
        phases = tuple(PhaseDuration(name=name, milliseconds=500) for name in PHASES)
        told = {
            "resumed_at": NOW,
            "total_milliseconds": 4000,
            "phases": phases,
            "steps_lost": 3,
            "fell_back": ("1/2: bad",),
        }
        entry = entry.model_copy(update=told)
    checkpoint = CheckpointStatus(name="1/1", step=10, cause="periodic", time=NOW - timedelta(seconds=9))
    counts = Counts(failures=int(resumed))
    return TrainingJobStatus(phase=Phase.RUNNING, preemptions=(entry,), last_checkpoint=checkpoint, counts=counts)


def live(operator: OperatorMetrics, agent: AgentMetrics) -> None:
    """What a preemption with a fall-back and a failure leave behind."""
    operator.written("ns", "job", TrainingJobStatus(), job(False))
    operator.written("ns", "job", job(False), job(True))
    operator.set_jobs([("ns", "job", job(True))])
    operator.reaction.observe(0.02)
    agent.restored_bytes.labels("store").inc(1000)
    agent.rejected.inc()
    agent.saves.labels("spot", "committed").inc()
    agent.save_seconds.labels("flush").observe(1.5)
    agent.stall_seconds.labels("round").observe(0.01)
    agent.logical_bytes.inc(1000)
    agent.sent_bytes.inc(500)
    agent.step_seconds.set(0.3)
    agent.rank_seconds.labels("0", "update").set(0.1)


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Series with a number in them."""
        for name, value in GRAFANA.items():
            expression = expression.replace(name, value)
        address = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return [series for series in found if not math.isnan(float(series["value"][1]))]

    def wait(self, expression: str, what: str) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                if self.query(expression):
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"{what}: not within 30 s")


@pytest.fixture
def prometheus(toolchain: Path, tmp_path: Path) -> Iterator[tuple[Prometheus, OperatorMetrics, AgentMetrics]]:
    operator, agent = OperatorMetrics(), AgentMetrics(0)
    # Series of labels that are seen for the first time have no increase: an agent that has saved before.
    agent.saves.labels("spot", "committed"), agent.save_seconds.labels("flush")
    agent.stall_seconds.labels("round"), agent.restored_bytes.labels("store")
    servers, targets = [], []
    for registry, labels in ((operator.registry, {}), (agent.registry, {"namespace": "ns", "pod": "job-0"})):
        port = free_port()
        servers.append(start_http_server(port, addr="127.0.0.1", registry=registry))
        targets.append({"targets": [f"127.0.0.1:{port}"], "labels": labels})
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "holdfast", "honor_labels": True, "static_configs": targets}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    process = subprocess.Popen([
        str(toolchain / "prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        yield Prometheus(f"http://127.0.0.1:{port}"), operator, agent
    finally:
        process.terminate()
        process.wait(20)
        for server, thread in servers:
            server.shutdown()
            thread.join()


def test_every_panel_shows_the_first_preemption_of_its_cause(
    prometheus: tuple[Prometheus, OperatorMetrics, AgentMetrics],
) -> None:
    server, operator, agent = prometheus
    server.wait('holdfast_preemptions_total{cause="spot"} == 0', "the zero before the first preemption")
    server.wait("holdfast_agent_info", "the agent")
    live(operator, agent)
    server.wait('holdfast_preemptions_total{cause="spot"} == 1', "the preemption")
    server.wait("holdfast_agent_rejected_checkpoints_total == 1", "the agent's part")
    empty = [(title, text) for title, text in expressions() if not server.query(text)]
    assert empty == []
    (increase,) = server.query('increase(holdfast_preemptions_total{cause="spot"}[30s])')
    assert float(increase["value"][1]) > 0
