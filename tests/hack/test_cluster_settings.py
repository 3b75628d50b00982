"""Addresses, intervals and configuration files follow from the settings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hack.cluster import cgroups, controlplane, nodeconfig, pki
from hack.cluster.errors import ClusterError
from hack.cluster.paths import cache_directory, refuse_hidden, state_directory
from hack.cluster.settings import Settings
from hack.cluster.state import Store

SETTINGS = Settings(kube="/c/kube", archives=("/c/pause.tar",), templates="/c/templates", shared="/c/torch")
STORE = Store(Path("/c/state"))


def test_nodes_have_addresses_of_their_own() -> None:
    nodes = replace(SETTINGS, node_count=3).nodes
    assert list(nodes) == ["n1", "n2", "n3"]
    assert nodes["n2"].ip == "10.250.0.12"
    assert nodes["n2"].pods == "10.250.9.0/24"
    assert nodes["n2"].mac == "02:00:0a:fa:00:0c"
    assert all(len(node.link) <= 15 for node in nodes.values())


@pytest.mark.parametrize("name", ["", "toolongname", "a-b", "a b"])
def test_a_name_that_is_no_device_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        replace(SETTINGS, name=name)


def test_a_grace_shorter_than_the_heartbeats_is_refused() -> None:
    with pytest.raises(ValueError, match="grace 2"):
        replace(SETTINGS, grace_seconds=2)


@pytest.mark.parametrize(("grace", "lease", "status", "monitor"), [(50, 40, 10, 5), (12, 9, 2, 1), (5, 4, 1, 1)])
def test_heartbeats_come_several_times_in_a_grace(grace: int, lease: int, status: int, monitor: int) -> None:
    settings = replace(SETTINGS, grace_seconds=grace)
    periods = (settings.lease_seconds, settings.status_period_seconds, settings.monitor_period_seconds)
    assert periods == (lease, status, monitor)
    assert settings.lease_seconds < grace


def test_every_certificate_is_for_the_addresses_it_is_used_at() -> None:
    leaves = {leaf.file: leaf for leaf in pki.leaves(SETTINGS)}
    assert "IP:10.250.200.1" in leaves["apiserver"].names
    assert "DNS:kubernetes.default.svc" in leaves["apiserver"].names
    assert leaves["n1"].organization == "system:nodes"
    assert leaves["n1"].names == ("IP:10.250.0.11", "DNS:n1")


def test_etcd_asks_for_client_certificates_since_pods_can_reach_it() -> None:
    assert "--client-cert-auth" in controlplane.commands(STORE, SETTINGS)["etcd"]


def test_further_flags_reach_the_api_server() -> None:
    settings = replace(SETTINGS, apiserver_arguments=("--feature-gates=X=true",))
    assert controlplane.commands(STORE, settings)["kube-apiserver"][-1] == "--feature-gates=X=true"


def test_a_node_routes_to_the_pods_of_all_others() -> None:
    settings = replace(SETTINGS, node_count=3)
    environment = nodeconfig.init_environment(STORE, settings, settings.nodes["n2"], [("/sys/fs/cgroup/cpu", "cpu")])
    assert environment["ROUTES"] == "10.250.8.0/24=10.250.0.11 10.250.10.0/24=10.250.0.13"
    assert environment["CGROUPS"] == "/sys/fs/cgroup/cpu=cpu"
    assert environment["SHARED"] == "/c/torch"


def test_node_files_are_valid_and_complete() -> None:
    files = nodeconfig.files(STORE, SETTINGS, SETTINGS.nodes["n1"], [])
    kubelet = json.loads(files["kubelet.yaml"])
    assert kubelet["clusterDNS"] == ["10.250.0.1"]
    assert kubelet["nodeLeaseDurationSeconds"] == 9
    assert json.loads(files["cni/10-pods.conflist"])["plugins"][0]["ipam"]["dataDir"].startswith("/run/")
    assert json.loads(files["kube-proxy.yaml"])["mode"] == "nftables"


def test_values_with_spaces_survive_the_shell() -> None:
    assert nodeconfig.shell_variables({"A": "x y", "B": "it's"}) == "A='x y'\nB='it'\"'\"'s'\n"


def test_cgroup_hierarchies_are_read_from_mountinfo() -> None:
    text = (
        "30 29 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
        "31 29 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
        "32 29 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "33 29 0:29 / /tmp rw - tmpfs tmpfs rw\n"
    )
    assert cgroups.hierarchies(text) == [
        ("/sys/fs/cgroup/cpu", "cpu,cpuacct"),
        ("/sys/fs/cgroup/systemd", "name=systemd"),
    ]


@pytest.mark.parametrize("directory", ["/var/lib/x", "/run/x", "/mnt/x", "/proc/x"])
def test_a_directory_that_nodes_cannot_see_is_refused(directory: str) -> None:
    with pytest.raises(ClusterError, match="a node has its own"):
        refuse_hidden(Path(directory))


def test_the_cache_is_where_the_environment_says() -> None:
    assert cache_directory({"HOLDFAST_CACHE": "/big/disk"}) == Path("/big/disk")
    assert cache_directory({"XDG_CACHE_HOME": "/home/x/.cache"}) == Path("/home/x/.cache/holdfast")


def test_the_state_of_the_default_cluster_can_be_named_and_that_of_others_cannot() -> None:
    environment = {"HOLDFAST_CACHE": "/c", "HOLDFAST_CLUSTER_STATE": "/s"}
    assert state_directory(environment=environment) == Path("/s")
    assert state_directory("other", environment) == Path("/c/clusters/other")


def test_a_node_with_a_taint_is_not_ready() -> None:
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}, "spec": {}}
    assert controlplane.node_is_ready(ready)
    assert not controlplane.node_is_ready({**ready, "spec": {"taints": [{"key": "node.kubernetes.io/not-ready"}]}})
    assert controlplane.node_is_ready({**ready, "spec": {"taints": [{"key": "a-test-of-yesterday/spot"}]}})
    assert not controlplane.node_is_ready({"status": {"conditions": []}, "spec": {}})
