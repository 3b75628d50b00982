"""The dashboard and the alerts: every expression parses, and names only metrics that the code exposes."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

TOP = Path(__file__).resolve().parents[2]
DASHBOARD = TOP / "dashboards/holdfast.json"
GRAFANA = {"$__rate_interval": "1m", "$__range": "1h", "$namespace": "default"}

# What Prometheus adds to the name of a counter or a histogram.
SUFFIX = re.compile(r"_(total|bucket|sum|count|created)$")


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


def exposed() -> set[str]:
    """Names given to prometheus_client anywhere in operator and agent."""
    sources = [*TOP.glob("operator/**/*.py"), *TOP.glob("agent/**/*.py")]
    made = re.compile(
        r"(?:Counter|Gauge|Histogram|GaugeMetricFamily|CounterMetricFamily|HistogramMetricFamily)\(\s*\"(holdfast_[a-z_]+)\""
    )
    return {SUFFIX.sub("", name) for path in sources for name in made.findall(path.read_text())}


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


def test_every_panel_names_only_metrics_that_the_code_exposes() -> None:
    known = exposed()
    unknown = {(title, name) for title, text in expressions() for name in metric_names(text) - known}
    assert unknown == set()


def test_every_alert_names_only_metrics_that_the_code_exposes() -> None:
    text = (TOP / "charts/holdfast/templates/prometheusrule.yaml").read_text()
    assert metric_names(text)
    assert metric_names(text) - exposed() == set()


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
    assert "5 rules found" in done.stdout
    for alert in rule["spec"]["groups"][0]["rules"]:
        assert set(alert["annotations"]) == {"summary", "description"}
        assert alert["labels"]["severity"] in ("warning", "critical")
