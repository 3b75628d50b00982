"""The dashboard and the alerts: every expression parses, and names only metrics that the code exposes."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from holdfast_agent.metrics import Metrics as AgentMetrics
from holdfast_notifier.metrics import Metrics as NotifierMetrics
from holdfast_operator.shell.metrics import Metrics as OperatorMetrics

TOP = Path(__file__).resolve().parents[2]
DASHBOARD = TOP / "dashboards/holdfast.json"
GRAFANA = {"$__rate_interval": "1m", "$__range": "1h", "$namespace": "default"}

# What Prometheus adds to the name of a counter or a histogram, and to the labels of everything that it scrapes.
SUFFIX = re.compile(r"_(total|bucket|sum|count)$")
ADDED = {"le", "namespace", "pod", "job"}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """(panel, expression)"""
    for panel in panels():
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def metric_names(text: str) -> set[str]:
    return {SUFFIX.sub("", name) for name in re.findall(r"\bholdfast_[a-z_]+", text)}


def labels_of(text: str) -> set[str]:
    """Labels that an expression selects or groups by."""
    grouped = [name.strip() for names in re.findall(r"\bby \(([^)]*)\)", text) for name in names.split(",")]
    selected = re.findall(r"[{,]\s*([a-z_]+)\s*(?:=|!)", text)
    return {*grouped, *selected}


def exposed() -> dict[str, set[str]]:
    """Metric -> its labels, as operator, agent and notifier register them."""
    programs = (OperatorMetrics(), AgentMetrics(0), NotifierMetrics())
    metrics = [m for program in programs for m in vars(program).values()]
    return {m._name: set(m._labelnames) for m in metrics if isinstance(m, MetricWrapperBase)}


def strangers(text: str) -> set[str]:
    """Names and labels of an expression that nothing exposes."""
    known = exposed()
    names = metric_names(text)
    labels = {label for name in names for label in known.get(name, set())} | ADDED
    return (names - set(known)) | (labels_of(text) - labels)


def test_the_charts_copy_is_the_dashboard() -> None:
    assert (TOP / "charts/holdfast/files/holdfast.json").read_text() == DASHBOARD.read_text(), "run scripts/generate"


def test_panels_have_ids_of_their_own_titles_units_and_a_text() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids)) > 10
    for panel in panels():
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


def test_every_panel_names_only_metrics_and_labels_that_the_code_exposes() -> None:
    assert {title: strangers(text) for title, text in expressions() if strangers(text)} == {}
    assert strangers("sum by (phase) (holdfast_jobs_x)") == {"holdfast_jobs_x", "phase"}


def test_every_alert_names_only_metrics_and_labels_that_the_code_exposes() -> None:
    text = (TOP / "charts/holdfast/templates/prometheusrule.yaml").read_text()
    found = re.findall(r"^ +expr: (.*(?:\n {12}.*)*)$", text, re.MULTILINE)
    assert len(found) == text.count("- alert:")
    for expression in found:
        bare = re.sub(r"{{.*?}}", "1", expression)
        assert metric_names(bare)
        assert strangers(bare) == set(), bare


def test_whole_and_phases_are_not_added_up() -> None:
    """The phases add up to `total`: an expression over both counts everything twice."""
    rules = (TOP / "charts/holdfast/templates/prometheusrule.yaml").read_text()
    for text in [*(text for _, text in expressions()), *re.findall(r".*_bucket.*", rules)]:
        if "holdfast_time_to_resume_seconds" in text:
            assert 'phase="total"' in text or 'phase!="total"' in text, text


def check_rules(toolchain: Path, folder: Path, groups: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": groups}))
    return subprocess.run(
        [str(toolchain / "promtool"), "check", "rules", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.cluster  # for promtool
def test_prometheus_parses_every_expression_of_the_dashboard(toolchain: Path, tmp_path: Path) -> None:
    rules = []
    for number, (_, text) in enumerate(expressions()):
        for name, value in GRAFANA.items():
            text = text.replace(name, value)
        assert "$" not in text
        rules.append({"record": f"panel:{number}", "expr": text})
    done = check_rules(toolchain, tmp_path, [{"name": "dashboard", "rules": rules}])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
    rules[0]["expr"] = "sum by (("
    assert check_rules(toolchain, tmp_path, [{"name": "dashboard", "rules": rules}]).returncode != 0


@pytest.mark.cluster
def test_prometheus_parses_every_alert(toolchain: Path, tmp_path: Path, render: Any) -> None:
    (rule,) = [o for o in render("metrics.prometheusRule.enabled=true") if o["kind"] == "PrometheusRule"]
    done = check_rules(toolchain, tmp_path, rule["spec"]["groups"])
    assert done.returncode == 0, done.stdout + done.stderr
    alerts = rule["spec"]["groups"][0]["rules"]
    assert f"{len(alerts)} rules found" in done.stdout
    for alert in alerts:
        assert set(alert["annotations"]) == {"summary", "description"}
        assert alert["labels"]["severity"] in ("warning", "critical")
