"""Brings images to nodes, without a registry, and keeps a node's disk with the images on it for the next cluster.

An image of Holdfast goes as a stream that holds only the layers the node does not have: after a change of the sources that
is one small layer, so the new image is there in a second.
"""

import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from hack.cluster import nodes
from hack.cluster.artefacts import oci
from hack.cluster.artefacts.oci import Image
from hack.cluster.cache import digest_of
from hack.cluster.errors import ClusterError
from hack.cluster.nodeconfig import control_directory
from hack.cluster.processes import run, succeeds
from hack.cluster.settings import Settings
from hack.cluster.state import Store

_CTR = ("ctr", "-n", "k8s.io")


def wait_runtime(store: Store, node: str, patience_seconds: float = 30.0) -> None:
    deadline = time.monotonic() + patience_seconds
    while not succeeds(*nodes.enter(store, node), "ctr", "version"):
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{node}: containerd does not answer; see {store.node_directory(node)}/log/containerd.log"
            )
        time.sleep(0.05)


def import_archive(store: Store, node: str, archive: Path) -> None:
    """Imports a docker-archive unless the node's disk has it."""
    if _is_marked(store, node, archive.stem, str(archive)):
        return
    run(*nodes.enter(store, node), *_CTR, "images", "import", archive)
    _mark(store, node, archive.stem, str(archive))


def import_image(store: Store, node: str, image: Image, layout: Path) -> bool:
    """Imports an image from an OCI layout unless the node has it; says whether anything was sent."""
    name = image.reference.split("/")[-1].split(":")[0]
    if _is_marked(store, node, name, image.digest):
        return False
    known = set(run(*nodes.enter(store, node), *_CTR, "content", "ls", "-q").split())
    importer = subprocess.Popen(
        [*nodes.enter(store, node), *_CTR, "images", "import", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert importer.stdin is not None
    assert importer.stderr is not None
    try:
        with tarfile.open(fileobj=importer.stdin, mode="w|") as stream:
            oci.write_stream(stream, image, layout, known)
        importer.stdin.close()
    except BrokenPipeError:
        pass  # its own words below say why it stopped reading
    said = importer.stderr.read().decode(errors="replace").strip()
    importer.stderr.close()
    if importer.wait():
        raise ClusterError(f"{node}: {image.reference} was not imported: {said[-300:]}")
    _mark(store, node, name, image.digest)
    return True


def template_path(settings: Settings, dependencies: str) -> Path:
    """The disk that fits these images, whether it is there or not."""
    runtime = run("containerd", "--version")
    key = digest_of((runtime, str(settings.disk_gigabytes), *settings.archives, dependencies))
    return Path(settings.templates) / f"{key}.img"


def make_template(store: Store, settings: Settings, template: Path, project: Sequence[Image], layout: Path) -> None:
    """Imports the images on the first node, cuts its power, and keeps its disk for every later node and cluster."""
    node = next(iter(settings.nodes))
    nodes.prepare(store, settings, node)
    nodes.hold_services(store, node)
    nodes.power_on(store, settings, node)
    import_all(store, settings, node, project, layout)
    run(*nodes.enter(store, node), "sync", "-f", "/var")
    nodes.power_off(store, node)
    store.forget(node)
    disk = store.node_directory(node) / "var.img"
    nodes.wait_unmounted(disk)
    template.parent.mkdir(parents=True, exist_ok=True)
    part = template.with_suffix(f".{os.getpid()}")
    run("cp", "--sparse=always", disk, part)
    shutil.copytree(_marks(store, node), template.with_suffix(".marks"), dirs_exist_ok=True)
    part.replace(template)
    _drop_old_templates(template)


def take_marks(store: Store, node: str, template: Path) -> None:
    """A disk copied from a template has its images: so say the marks kept beside it."""
    shutil.copytree(template.with_suffix(".marks"), _marks(store, node), dirs_exist_ok=True)


def import_all(store: Store, settings: Settings, node: str, project: Sequence[Image], layout: Path) -> None:
    """Every image of the cluster that the node does not have."""
    wait_runtime(store, node)
    for archive in settings.archives:
        import_archive(store, node, Path(archive))
    for image in project:
        import_image(store, node, image, layout)


def _drop_old_templates(newest: Path, keep: int = 2) -> None:
    disks = sorted(newest.parent.glob("*.img"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in disks[keep:]:
        old.unlink()
        shutil.rmtree(old.with_suffix(".marks"), ignore_errors=True)


def _marks(store: Store, node: str) -> Path:
    directory = control_directory(store, node) / "images"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _is_marked(store: Store, node: str, name: str, content: str) -> bool:
    mark = _marks(store, node) / name
    return mark.exists() and mark.read_text() == content


def _mark(store: Store, node: str, name: str, content: str) -> None:
    (_marks(store, node) / name).write_text(content)
