"""What runs on the host beside any kind of cluster: helm, kubectl, the S3 server, Prometheus, and torch for the CPU."""

from collections.abc import Mapping
from pathlib import Path

from hack.cluster import preflight
from hack.cluster.artefacts import catalogue
from hack.cluster.artefacts.torch_cpu import torch_cpu
from hack.cluster.build import build
from hack.cluster.cache import Cache, digest_of
from hack.cluster.progress import Listener

#: What making torch for the CPU needs.
TORCH_PACKAGES: Mapping[str, str] = {"gcc": "gcc", "binutils": "objdump"}


def toolchain(on_progress: Listener | None = None) -> Path:
    """A folder with helm, kubectl, versitygw, prometheus and promtool; builds what is missing, without root."""
    preflight.require_toolchain({})
    cache = Cache()
    parts = catalogue.for_toolchain()
    build(parts, cache, on_progress)
    where = {part.name: part.path(cache) for part in parts}
    links = {
        "kubectl": where["kube"] / "kube",
        "helm": where["helm"] / "helm",
        "versitygw": where["versitygw"] / "versitygw",
        "azurite-blob": where["azurite"] / "node_modules/.bin/azurite-blob",
        "prometheus": where["prometheus"] / "prometheus",
        "promtool": where["prometheus"] / "promtool",
    }
    with cache.making("toolchain", digest_of(map(str, links.values()))) as directory:
        if directory is not None:
            for name, program in links.items():
                (directory / name).symlink_to(program)
    return cache.path("toolchain", digest_of(map(str, links.values())))


def torch_directory(on_progress: Listener | None = None) -> Path:
    """A directory with torch for the CPU, for the search path of the host's Python; built if need be."""
    preflight.require_toolchain(TORCH_PACKAGES)
    cache = Cache()
    part = torch_cpu()
    build([part], cache, on_progress)
    return part.path(cache)
