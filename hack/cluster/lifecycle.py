"""`up`, `down` and `status`: the procedures, one named call per step."""

import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hack.cluster import cgroups, controlplane, images, machine, network, nodes, pki, preflight
from hack.cluster.artefacts import catalogue, project_images
from hack.cluster.artefacts.artefact import Artefact
from hack.cluster.artefacts.oci import Image
from hack.cluster.build import build
from hack.cluster.cache import Cache
from hack.cluster.errors import ClusterError
from hack.cluster.paths import DEFAULT_NAME, refuse_hidden, state_directory
from hack.cluster.processes import end
from hack.cluster.progress import Listener
from hack.cluster.settings import Settings
from hack.cluster.state import SERVICE_PREFIX, Store, locked


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person asks `up` for."""

    name: str = DEFAULT_NAME
    state: Path | None = None
    node_count: int = 2
    grace_seconds: int = 12
    net: str = "10.250"
    #: With Holdfast's own images, and torch under /mnt/shared on every node.
    images: bool = True
    apiserver_arguments: tuple[str, ...] = ()

    @property
    def directory(self) -> Path:
        return (self.state or state_directory(self.name)).resolve()


def up(request: Request, listener: Listener | None = None) -> Store:
    """Brings a cluster up, building what is missing; a cluster that runs is mended and stays."""
    say = listener or _say_with_time()
    refuse_hidden(request.directory)
    require_machine(say)
    cache = Cache()
    wanted = catalogue.for_cluster(images=request.images)
    build(wanted, cache, listener)
    store = Store(request.directory)
    with _alone(cache, request.name):
        if _runs(store, say):
            _mend(store)
            _check_asked(store, request, say)
        else:
            _start(store, request, cache, wanted, say)
        if request.images:
            _bring_images(store, _project(wanted, cache), cache, say)
    return store


def down(store: Store, *, keep_logs: bool = False, listener: Listener | None = None) -> None:
    """Stops everything and leaves nothing; harmless when there is no cluster."""
    say = listener or _say_with_time()
    if not store.exists():
        say(f"no cluster in {store.directory}")
        return
    with _alone(Cache(), store.read().settings.name):
        _take_down(store, say, keep_logs)


def require_machine(listener: Listener | None = None) -> None:
    """Raises ClusterError with everything that this machine lacks; what apt can install is installed."""
    preflight.require({**preflight.CLUSTER_PACKAGES, **preflight.BUILD_PACKAGES}, listener or _say_with_time())


def load_images(store: Store, listener: Listener | None = None) -> None:
    """Builds Holdfast's images if their sources changed, and brings them to the running nodes."""
    say = listener or _say_with_time()
    require_machine(say)
    cache = Cache()
    wanted: list[Artefact] = [project_images.project_images()]
    build(wanted, cache, listener)
    _bring_images(store, _project(wanted, cache), cache, say)


def status(store: Store) -> list[str]:
    """What runs, in lines for a person."""
    if not store.exists():
        return [f"no cluster in {store.directory}"]
    state = store.read()
    lines = [f"cluster {state.settings.name} in {store.directory}, {state.settings.api_url}"]
    for name, process in sorted(state.processes.items()):
        lines.append(f"  {name:<26} {'runs, pid ' + str(process.pid) if process.alive() else 'is off'}")
    with contextlib.suppress(Exception):
        for node in json.loads(controlplane.get(store, state.settings, "/api/v1/nodes"))["items"]:
            ready = "Ready" if controlplane.node_is_ready(node) else "not Ready or tainted"
            lines.append(f"  node {node['metadata']['name']}: {ready}")
    return [*lines, export_line(store)]


def export_line(store: Store) -> str:
    return f"export KUBECONFIG={store.kubeconfig} PATH={store.bin}:$PATH"


def _start(store: Store, request: Request, cache: Cache, wanted: list[Artefact], say: Listener) -> None:
    """From nothing to a usable cluster; what a failed or stopped start left is removed."""
    settings = _settings(request, cache, wanted)
    network.refuse_taken(settings)
    store.create(settings)
    try:
        _start_parts(store, settings, _project(wanted, cache), cache, say)
    except BaseException as problem:
        stopped = not isinstance(problem, Exception)
        say(f"{'stopped' if stopped else 'failed'}: taking it down again, logs stay in {store.directory}/log")
        _take_down(store, say, keep_logs=True)
        raise
    say(f"{settings.node_count} nodes Ready")


def _start_parts(store: Store, settings: Settings, project: list[Image], cache: Cache, say: Listener) -> None:
    machine.raise_limits(settings.name)
    network.create_bridge(settings)
    controlplane.link_programs(store, settings)
    _link_tools(store, cache)
    pki.make(store, settings)
    controlplane.write_files(store, settings)
    controlplane.start(store, settings, "etcd", "kube-apiserver")
    template = images.template_path(settings, project_images.dependencies_key() if project else "none")
    layout = project_images.layout(cache)
    if not template.exists():
        say("importing images, once")
        images.make_template(store, settings, template, project, layout)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda node: _boot(store, settings, node, template), settings.nodes))
        network.route_to_services(settings)
        imports = [pool.submit(images.import_all, store, settings, node, project, layout) for node in settings.nodes]
        controlplane.wait_ready(store, settings)
        say("API server ready")
        # Not before /readyz says ok: the bootstrap roles are not there earlier, and these two would end.
        controlplane.start(store, settings, "kube-controller-manager", "kube-scheduler")
        for node in settings.nodes:
            nodes.release_services(store, node)
        controlplane.create_roles(store)
        controlplane.start(store, settings, "coredns")
        for job in imports:
            job.result()
    controlplane.wait_nodes(store, settings)


def _boot(store: Store, settings: Settings, node: str, template: Path) -> None:
    if not (store.node_directory(node) / "var.img").exists():
        images.take_marks(store, node, template)
    nodes.prepare(store, settings, node, template)
    nodes.hold_services(store, node)
    nodes.power_on(store, settings, node)


def _take_down(store: Store, say: Listener, keep_logs: bool = False) -> None:
    """Works from the state file alone, also after a start that failed half way."""
    state = store.read()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda node: nodes.power_off(store, node), state.settings.nodes))
    for name in [name for name in state.processes if name.startswith(SERVICE_PREFIX)]:
        end(state.processes[name])
    for name in controlplane.CONTROL_PLANE:
        if name in state.processes:
            end(state.processes[name], signal.SIGKILL)  # none of it is needed again
    network.remove_devices(state.settings)
    cgroups.remove_cluster(state.settings.name)
    machine.put_back(state.settings.name)
    _remove_directory(store.directory, keep=("log",) if keep_logs else ())
    say("down: nothing of the cluster is left")


def _settings(request: Request, cache: Cache, wanted: list[Artefact]) -> Settings:
    paths = {artefact.name: artefact.path(cache) for artefact in wanted}
    return Settings(
        name=request.name,
        node_count=request.node_count,
        grace_seconds=request.grace_seconds,
        net=request.net,
        kube=str(paths["kube"] / "kube"),
        archives=(str(paths["pause"] / "pause.tar"), str(paths["base"] / "base.tar")),
        shared=str(paths["torch"]) if "torch" in paths else None,
        apiserver_arguments=request.apiserver_arguments,
        templates=str(cache.directory / "templates"),
    )


def _runs(store: Store, say: Listener) -> bool:
    """Whether a cluster is there to be used; one that lost a part of its control plane is taken away."""
    if not store.exists():
        return False
    state = store.read()
    gone = [name for name in state.missing_processes() if name not in state.settings.nodes]
    started = all(name in state.processes for name in (*controlplane.CONTROL_PLANE, *state.settings.nodes))
    if started and not gone:
        return True
    say(f"{', '.join(gone) or 'a part'} is missing: starting again from nothing")
    _take_down(store, say)
    return False


def _mend(store: Store) -> None:
    """Puts right what a test that was stopped half way may have left: power off, cable out, services held back."""
    settings = store.read().settings
    for name, node in settings.nodes.items():
        if not nodes.is_on(store, name):
            nodes.prepare(store, settings, name)
            nodes.power_on(store, settings, name)
        network.mend(settings, node)
        nodes.release_services(store, name)
    controlplane.wait_nodes(store, settings)


def _check_asked(store: Store, request: Request, say: Listener) -> None:
    has = store.read().settings
    if (has.node_count, has.grace_seconds) != (request.node_count, request.grace_seconds):
        say(
            f"already up, with {has.node_count} nodes and a grace of {has.grace_seconds} s; for another, first take it down"
        )


def _bring_images(store: Store, project: list[Image], cache: Cache, say: Listener) -> None:
    layout = project_images.layout(cache)

    def bring(node: str) -> int:
        return sum(images.import_image(store, node, image, layout) for image in project)

    running = [node for node in store.read().settings.nodes if nodes.is_on(store, node)]
    with ThreadPoolExecutor() as pool:
        sent = sum(pool.map(bring, running))
    if sent:
        say(f"images of Holdfast: {sent} brought to {len(running)} nodes")


def _project(wanted: list[Artefact], cache: Cache) -> list[Image]:
    found = [artefact for artefact in wanted if artefact.name == "images"]
    return project_images.built_images(found[0], cache) if found else []


def _link_tools(store: Store, cache: Cache) -> None:
    """helm beside kubectl, for those who put the cluster's programs on their search path."""
    for artefact in catalogue.for_toolchain():
        if artefact.name == "helm" and artefact.is_built(cache):
            (store.bin / "helm").symlink_to(artefact.path(cache) / "helm")


def _remove_directory(directory: Path, keep: tuple[str, ...]) -> None:
    for entry in directory.iterdir():
        if entry.name in keep:
            continue
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    if not keep:
        directory.rmdir()


@contextlib.contextmanager
def _alone(cache: Cache, name: str) -> Iterator[None]:
    """Two programs that want the same cluster do not start it twice."""
    with locked(cache.directory / "locks" / f"cluster-{name}", patience_seconds=600):
        yield


def _say_with_time() -> Listener:
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {line}", file=sys.stderr, flush=True)

    return say


def require_store(state: Path | None) -> Store:
    """The store of a cluster that is up."""
    store = Store(state or state_directory())
    if not store.exists():
        raise ClusterError(f"no cluster in {store.directory}: start one with hack/cluster/up")
    return store
