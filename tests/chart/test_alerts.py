"""Each alert fires for what it is there for, and is quiet otherwise: run by promtool on made-up series."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.cluster  # for helm and promtool; no cluster is touched

AGE = 'holdfast_checkpoint_age_seconds{namespace="team-a", job="gpt"}'
NAN = 'holdfast_checkpoint_not_finite{namespace="team-a", job="gpt"}'
ODD = 'holdfast_checkpoint_suspect{namespace="team-a", job="gpt"}'
SLOW = 'holdfast_straggler{namespace="team-a", job="gpt"}'
LEFT = 'holdfast_state_on_nodes{namespace="team-a", job="gpt"}'
BLIND = 'holdfast_notifier_last_look_timestamp_seconds{instance="a"}'
WELL = {"holdfast_leader": "1x120"}


def resumes(*, within_60: str, within_600: str) -> dict[str, str]:
    """The buckets of a histogram of times to resume."""
    name = 'holdfast_time_to_resume_seconds_bucket{phase="total", cause="spot", le="%s"}'
    return {name % "60": within_60, name % "600": within_600, name % "+Inf": within_600}


# alert -> (series that make it fire, series that do not, words of its text)
CASES: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "HoldfastOperatorDown": ({"holdfast_leader": "0x120"}, WELL, "No Holdfast operator is active"),
    "HoldfastCheckpointStale": ({AGE: "3700+60x120"}, {AGE: "0+10x120"}, "Job team-a/gpt has no new checkpoint"),
    "HoldfastCheckpointNotFinite": ({NAN: "0x55 1x65"}, {NAN: "0x120"}, "job team-a/gpt have become NaN"),
    "HoldfastReplicasDiffer": ({ODD: "0x55 1x65"}, {ODD: "0x120"}, "Ranks of job team-a/gpt"),
    "HoldfastStateOnNodes": ({LEFT: "0x50 1x70"}, {LEFT: "0x120"}, "newest state of job team-a/gpt lies on nodes only"),
    "HoldfastHang": ({"holdfast_hangs_total": "0x50 1x70"}, {"holdfast_hangs_total": "1x120"}, "A job hung"),
    "HoldfastStraggler": ({SLOW: "0x40 1x80"}, {SLOW: "0x58 1x62"}, "One rank of job team-a/gpt"),
    "HoldfastNotifierBlind": (
        {BLIND: "0x120", 'holdfast_notifier_info{node="n1", cloud="aws", instance="a"}': "1x120"},
        {
            BLIND: "0+60x120",
            'holdfast_notifier_info{node="n1", cloud="aws", instance="a"}': "1x120",
            BLIND.replace('"a"', '"b"'): "0x120",
            'holdfast_notifier_info{node="n2", cloud="none", instance="b"}': "1x120",
        },
        "about node n1 is not heard",
    ),
    "HoldfastCheckpointRefused": (
        {"holdfast_fallbacks_total": "0x55 1x65"},
        {"holdfast_fallbacks_total": "1x120"},
        "an older one was taken",
    ),
    "HoldfastResumeSlow": (
        resumes(within_60="0x120", within_600="0x30 4x90"),
        resumes(within_60="0x30 4x90", within_600="0x30 4x90"),
        "slow to resume after spot",
    ),
    "HoldfastJobsFailed": (
        {'holdfast_jobs{phase="Failed"}': "0x55 1x65"},
        {'holdfast_jobs{phase="Failed"}': "1x120"},
        "A TrainingJob has failed",
    ),
}  # fmt: skip


def alerts(toolchain: Path, folder: Path, groups: list[dict[str, Any]], series: dict[str, str], alert: str) -> str:
    """What promtool finds firing after an hour, in its own words: the test expects nothing, so every alert is a difference."""
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in {**WELL, **series}.items()],
        "alert_rule_test": [{"eval_time": "1h", "alertname": alert, "exp_alerts": []}],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    command = [str(toolchain / "promtool"), "test", "rules", "test.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done.stderr
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.fixture(scope="module")
def groups(render: Any) -> list[dict[str, Any]]:
    (rule,) = [o for o in render("metrics.prometheusRule.enabled=true") if o["kind"] == "PrometheusRule"]
    found: list[dict[str, Any]] = rule["spec"]["groups"]
    return found


def test_every_alert_has_a_case(groups: list[dict[str, Any]]) -> None:
    assert {rule["alert"] for group in groups for rule in group["rules"]} == set(CASES)


@pytest.mark.parametrize("alert", CASES)
def test_the_alert_fires_for_its_reason_and_for_nothing_else(
    toolchain: Path, tmp_path: Path, groups: list[dict[str, Any]], alert: str
) -> None:
    bad, good, words = CASES[alert]
    assert words in alerts(toolchain, tmp_path, groups, bad, alert)
    assert alerts(toolchain, tmp_path, groups, good, alert) == ""
