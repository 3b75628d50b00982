"""A cluster that was there already: what it must be told, what runs beside it, and that nothing of it is touched."""

import json
from pathlib import Path

import pytest

from hack import services
from hack.cluster import api
from hack.cluster.current import CurrentCluster
from hack.cluster.errors import ClusterError, Unsupported
from hack.cluster.processes import start_time
from hack.target import Facts, Target, decide

NAMED = {
    "KUBECONFIG": "/etc/theirs",
    "HOLDFAST_OPERATOR_IMAGE": "registry.example/operator:1",
    "HOLDFAST_TRAINER_IMAGE": "registry.example/trainer:1",
    "AWS_ENDPOINT_URL": "https://s3.example",
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
}

#: Listens on the port it is told, as `kubectl proxy` and Prometheus do.
LISTENS = """#!/usr/bin/env python3
import http.server, sys
[at] = [a.split("=", 1)[1] for a in sys.argv if a.startswith(("--port=", "--web.listen-address="))]
class Ok(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(at.rpartition(":")[2])), Ok).serve_forever()
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CurrentCluster:
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    for name in ("kubectl", "prometheus"):
        (tmp_path / name).write_text(LISTENS)
        (tmp_path / name).chmod(0o755)
    return CurrentCluster(tmp_path, NAMED)


@pytest.mark.parametrize("name", sorted(NAMED.keys() - {"KUBECONFIG"}))
def test_what_is_not_set_is_named_in_one_line(name: str) -> None:
    with pytest.raises(ClusterError, match=name) as problem:
        CurrentCluster.require({**NAMED, name: ""})
    assert "\n" not in str(problem.value)


def test_it_is_said_before_a_program_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_USE_CURRENT_CLUSTER", "1")
    monkeypatch.setenv("KUBECONFIG", "/etc/theirs")
    monkeypatch.delenv("HOLDFAST_OPERATOR_IMAGE", raising=False)
    with pytest.raises(ClusterError, match="HOLDFAST_OPERATOR_IMAGE"):
        api.wanted()


def test_only_programs_are_built_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**NAMED, "HOLDFAST_USE_CURRENT_CLUSTER": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(api.preflight, "require_toolchain", lambda *_: None)
    assert {part.name for part in api.wanted()} == {"kube", "helm", "versitygw", "prometheus", "azurite"}


def test_images_and_torch_are_the_owners(cluster: CurrentCluster, tmp_path: Path) -> None:
    assert cluster.operator_image == "registry.example/operator:1"
    assert cluster.torch_path_in_pod == "", "torch is in the image, and no directory of the nodes is mounted"
    assert CurrentCluster(tmp_path, {**NAMED, "HOLDFAST_TORCH_PATH": "/opt/torch"}).torch_path_in_pod == "/opt/torch"


def test_machines_and_the_bucket_s_files_are_not_ours(cluster: CurrentCluster) -> None:
    assert not cluster.owns_machines
    assert not cluster.is_ours
    with pytest.raises(Unsupported, match="not ours to switch off"):
        cluster.node("n1")
    with pytest.raises(Unsupported, match="not ours to look at"):
        _ = cluster.s3_data


def test_the_bucket_can_be_named() -> None:
    assert services.from_environment("training", NAMED).bucket == "training"
    assert services.from_environment("training", {**NAMED, "HOLDFAST_BUCKET": "mine"}).bucket == "mine"


def test_prometheus_and_a_proxy_run_on_this_machine_and_end_with_it(cluster: CurrentCluster, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(json.dumps({}))
    try:
        assert cluster.prometheus(tmp_path / "config").startswith("http://127.0.0.1:")
        proxy = cluster.api_proxy
        assert proxy is not None
        assert proxy.startswith("127.0.0.1:")
        assert cluster.api_proxy == proxy, "the one that runs is used again"
        processes = json.loads((cluster.state / "state.json").read_text())["processes"].values()
    finally:
        cluster.down()
    assert len(processes) == 2
    assert [start_time(p["pid"]) for p in processes] == [None, None]
    cluster.down()


def test_one_file_is_wanted() -> None:
    facts = Facts(
        use_current=True, kubeconfig="/a:/b", is_linux=True, is_root=True, has_cgroup_v1=True, has_kind=False, has_docker=False
    )  # fmt: skip
    with pytest.raises(ClusterError, match="several files"):
        decide(facts)
    assert decide(Facts(**{**vars(facts), "kubeconfig": "/a"})) is Target.CURRENT
