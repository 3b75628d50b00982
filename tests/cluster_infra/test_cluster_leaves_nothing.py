"""A cluster that was taken down is gone: the machine is compared before and after."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.cluster import cgroups, lifecycle
from hack.cluster.lifecycle import Request
from hack.cluster.machine import SYSCTLS
from hack.cluster.nodes import power_off
from hack.cluster.state import Store

pytestmark = pytest.mark.cluster

#: Beside the default cluster, so with other names and addresses.
NAME = "leaves"
NET = "10.251"


def lines(*argv: str) -> set[str]:
    return set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines())


def traces(state: Path) -> dict[str, set[str]]:
    """Everything a cluster could leave on the machine."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    groups = {str(path) for directory, _ in cgroups.hierarchies() for path in Path(directory).glob(f"{NAME}*")}
    limits = {f"{name}={Path('/proc/sys', name).read_text().strip()}" for name in SYSCTLS}
    return {
        "mounts": mounts,
        "links": {line.split(":")[1].strip() for line in lines("ip", "-o", "link")},
        "routes": {line for line in lines("ip", "route") if NET in line},
        "network namespaces": lines("ip", "netns"),
        "firewall rules": {line for line in lines("nft", "list", "ruleset") if NET in line},
        "loop devices": {line for line in lines("losetup", "-a") if str(state) in line},
        "cgroups": groups,
        "settings of the machine": limits,
        "processes": set(processes_of(state)),
        "files": {str(path) for path in state.parent.glob(f"{state.name}*")},
    }


def processes_of(state: Path) -> Iterator[str]:
    """Processes that name the state directory, or are in the cluster's cgroup; zombies have neither."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().replace("\0", " ")
            group = (process / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if (str(state) in command and "pytest" not in command) or f"/{NAME}/" in group:
            yield f"{process.name} {command}"


def test_up_runs_a_cluster_and_down_leaves_nothing_of_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    before = traces(state)
    request = Request(name=NAME, state=state, net=NET, node_count=1, images=False)
    try:
        store = lifecycle.up(request)
        during = traces(state)
        began = time.monotonic()
        lifecycle.up(request)
        assert time.monotonic() - began < 10, "a cluster that is up is not started again"
        assert {name for name, found in during.items() if found > before[name]} >= {
            "links", "routes", "loop devices", "cgroups", "processes", "files",
        }  # fmt: skip
    finally:
        lifecycle.down(Store(state))
    assert traces(state) == before
    assert not store.exists()


def test_a_cluster_that_lost_power_and_its_control_plane_leaves_nothing_either(tmp_path: Path) -> None:
    state = tmp_path / "state"
    before = traces(state)
    store = lifecycle.up(Request(name=NAME, state=state, net=NET, node_count=1, images=False))
    power_off(store, "n1")
    lifecycle.down(store)
    assert traces(state) == before
