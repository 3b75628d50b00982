"""Nodes: their files and disk, power on and off, their services, and commands inside."""

import contextlib
import json
import os
import signal
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hack.cluster import cgroups, network, nodeconfig
from hack.cluster.errors import ClusterError
from hack.cluster.paths import HERE
from hack.cluster.processes import Recorded, children, end, run
from hack.cluster.settings import NODE_SERVICES, Settings
from hack.cluster.state import Store


def prepare(store: Store, settings: Settings, name: str, disk_template: Path | None = None) -> None:
    """Writes a node's directory; a disk that is there stays as it is."""
    directory = store.node_directory(name)
    for part in ("cni", "ctl", "log"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    if not _disk(store, name).exists():
        _make_disk(settings, _disk(store, name), disk_template)
    if not (directory / "machine-id").exists():
        (directory / "machine-id").write_text(uuid.uuid4().hex + "\n")
    contents = nodeconfig.files(store, settings, settings.nodes[name], cgroups.hierarchies())
    for file, text in contents.items():
        (directory / file).write_text(text)


def power_on(store: Store, settings: Settings, name: str) -> None:
    """Starts the node's first process in fresh namespaces and plugs its cable in; harmless when it is on."""
    known = store.read().processes.get(name)
    if known is not None and known.alive():
        return
    wait_unmounted(_disk(store, name))
    cgroups.create(settings.name, name)
    joins = "; ".join(f"echo $$ > {group}/cgroup.procs" for group in cgroups.of_node(settings.name, name))
    # The recorded process is unshare itself: when it is killed, the node's first process gets SIGKILL, and with it all others.
    unshare = "unshare -m -p -n -u -i -C --fork --kill-child=KILL --propagation private"
    command = f'{joins}; exec {unshare} "$0" "$1"'
    process = store.spawn(name, ["bash", "-c", command, HERE / "node-init", store.node_directory(name)])
    _wait_for_own_network(store, name, process.pid)
    network.plug_in(settings, settings.nodes[name], process.pid)


def power_off(store: Store, name: str) -> None:
    """Cuts the power: every process of the node dies at once, its memory file systems vanish, its disk stays."""
    process = store.read().processes.get(name)
    if process is None or not process.alive():
        return
    first = processes_inside(process.pid)
    end(process, signal.SIGKILL)
    # A node's first process is gone only after every other process of its PID namespace is.
    deadline = time.monotonic() + 30
    while any(inside.alive() for inside in first) and time.monotonic() < deadline:
        time.sleep(0.02)


def hold_services(store: Store, name: str) -> None:
    """Lets the container runtime start alone: the rest would fail until the API server answers."""
    for service in NODE_SERVICES[1:]:
        _stop_file(store, name, service).touch()


def release_services(store: Store, name: str) -> None:
    for service in NODE_SERVICES[1:]:
        _stop_file(store, name, service).unlink(missing_ok=True)


def stop_service(store: Store, name: str, service: str) -> None:
    """Kills a service and holds it back."""
    _stop_file(store, name, _known(service)).touch()
    kill_service(store, name, service)


def start_service(store: Store, name: str, service: str) -> None:
    _stop_file(store, name, _known(service)).unlink(missing_ok=True)


def kill_service(store: Store, name: str, service: str) -> None:
    """SIGKILL; the node starts it again at once, unless it is held back."""
    # It may be between two starts: then there is nothing to kill.
    run(*enter(store, name), "bash", "-c", f"[ ! -e /run/{_known(service)}.pid ] || kill -9 $(cat /run/{service}.pid)")


def restart_kubelet(store: Store, name: str, changes: Mapping[str, Any]) -> None:
    """Its settings as `prepare` writes them, with these in the place of their names; a kubelet reads them when it starts."""
    file = store.node_directory(name) / nodeconfig.KUBELET
    settings = store.read().settings
    file.write_text(json.dumps({**nodeconfig.kubelet(store, settings, settings.nodes[name]), **changes}, indent=1))
    kill_service(store, name, "kubelet")


def enter(store: Store, name: str) -> list[str]:
    """The command line prefix that runs the rest inside the node."""
    process = store.read().processes.get(name)
    if process is None or not process.alive():
        raise ClusterError(f"node {name} is off")
    pid = str(process.pid)
    return ["nsenter", "-t", pid, "-m", "-n", "-u", "-i", "-C", f"--pid=/proc/{pid}/ns/pid_for_children"]


def is_on(store: Store, name: str) -> bool:
    process = store.read().processes.get(name)
    return process is not None and process.alive()


def wait_unmounted(image: Path, patience_seconds: float = 20.0) -> None:
    """A disk whose node has lost power is free only when the kernel has let go of its loop device."""
    deadline = time.monotonic() + patience_seconds
    while run("losetup", "-j", image).strip():
        if time.monotonic() > deadline:
            raise ClusterError(f"{image} is still mounted")
        time.sleep(0.02)


def processes_inside(pid: int) -> list[Recorded]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return children(pid)
    return []


def _disk(store: Store, name: str) -> Path:
    return store.node_directory(name) / "var.img"


def _make_disk(settings: Settings, image: Path, template: Path | None) -> None:
    """A file system of its own: of a limited size, and gone in one unlink (a container's files are many to remove)."""
    fresh = image.with_suffix(".new")
    if template is not None:
        run("cp", "--sparse=always", template, fresh)
    else:
        run("truncate", "-s", f"{settings.disk_gigabytes}G", fresh)
        # No journal: the disk need not survive a crash of the machine, and a power cut of the node is none.
        options = ("-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", "-m", "0")
        run("mkfs.ext4", *options, fresh)
    fresh.replace(image)


def _wait_for_own_network(store: Store, name: str, pid: int) -> None:
    deadline = time.monotonic() + 10
    host = os.readlink("/proc/self/ns/net")
    while True:
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/{pid}/ns/net") != host:
                return
        if time.monotonic() > deadline or not is_on(store, name):
            raise ClusterError(f"node {name} did not start: see {store.log(name)}")
        time.sleep(0.01)


def _stop_file(store: Store, name: str, service: str) -> Path:
    return nodeconfig.control_directory(store, name) / f"{service}.stop"


def _known(service: str) -> str:
    if service not in NODE_SERVICES:
        raise ClusterError(f"no service {service!r} on a node: there are {', '.join(NODE_SERVICES)}")
    return service
