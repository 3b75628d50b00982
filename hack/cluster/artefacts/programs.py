"""Programs built from source by the Go toolchain, at fixed versions and checked against the public checksum database."""

import re
import shutil
from pathlib import Path

from hack.cluster.artefacts import image_archive
from hack.cluster.artefacts.artefact import Artefact, Workshop
from hack.cluster.nodeconfig import PAUSE_IMAGE
from hack.cluster.paths import HERE

KUBE_SOURCE = HERE / "kube"
PAUSE_SOURCE = HERE / "pause"

VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
HELM = "helm.sh/helm/v4/cmd/helm@v4.2.4"

AZURITE = "azurite@3.37.0"

#: Without symbol tables and debug information: 149 MB for eight programs.
_SMALL = "-s -w"
_STATIC = {"CGO_ENABLED": "0"}


def kubernetes_version(go_mod: str) -> str:
    """The version the module file asks for, so that it is written in one place. Pure."""
    found = re.search(r"^\s*k8s\.io/kubernetes (v[0-9.]+)$", go_mod, re.MULTILINE)
    if found is None:
        raise ValueError("go.mod: no line `k8s.io/kubernetes vX.Y.Z`")
    return found.group(1)


def kube() -> Artefact:
    version = kubernetes_version((KUBE_SOURCE / "go.mod").read_text())
    return Artefact(
        name="kube",
        what=f"Kubernetes {version.removeprefix('v')}, etcd and CoreDNS from source",
        usual_seconds=420,
        made_from=(KUBE_SOURCE, version_flags(version)),
        make=_make_kube,
    )


def version_flags(version: str) -> str:
    """Linker flags. Without gitVersion the server says v0.0.0-master+$Format:...$, which no version check can read."""
    major, minor, _ = version.removeprefix("v").split(".")
    values = {
        "gitVersion": version,
        "gitMajor": major,
        "gitMinor": minor,
        "gitCommit": "module",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
    }
    stamped = [f"-X k8s.io/component-base/version.{name}={value}" for name, value in values.items()]
    return " ".join((_SMALL, *stamped))


def _make_kube(workshop: Workshop, directory: Path) -> None:
    flags = version_flags(kubernetes_version((KUBE_SOURCE / "go.mod").read_text()))
    build = ("go", "build", "-trimpath", "-ldflags", flags, "-o", directory / "kube", ".")
    workshop.run(*build, cwd=KUBE_SOURCE, environment=_STATIC)


def pause() -> Artefact:
    return Artefact(
        name="pause",
        what="the pause image",
        usual_seconds=12,
        made_from=(PAUSE_SOURCE, PAUSE_IMAGE),
        make=_make_pause,
    )


def _make_pause(workshop: Workshop, directory: Path) -> None:
    tree = workshop.scratch / "root"
    tree.mkdir()
    build = ("go", "build", "-trimpath", "-ldflags", _SMALL, "-o", tree / "pause", ".")
    workshop.run(*build, cwd=PAUSE_SOURCE, environment=_STATIC)
    config = image_archive.ImageConfig(entrypoint=["/pause"], user="65535:65535")
    image_archive.write(directory / "pause.tar", PAUSE_IMAGE, tree, config)


def versitygw() -> Artefact:
    return _installed("versitygw", VERSITYGW, "the S3 server versitygw from source", 120)


def helm() -> Artefact:
    return _installed("helm", HELM, "Helm from source", 150)


def _installed(name: str, package: str, what: str, usual_seconds: int) -> Artefact:
    def make(workshop: Workshop, directory: Path) -> None:
        install = ("go", "install", "-trimpath", "-ldflags", _SMALL, package)
        workshop.run(*install, cwd=workshop.scratch, environment={**_STATIC, "GOBIN": str(directory)})

    return Artefact(name=name, what=what, usual_seconds=usual_seconds, made_from=(package, _SMALL), make=make)


def azurite() -> Artefact:
    """Microsoft's emulator of Azure Blob Storage, for the store's tests. Where there is no npm nothing is installed, and those tests are skipped."""
    npm = shutil.which("npm")

    def make(workshop: Workshop, directory: Path) -> None:
        if npm is None:
            (directory / "not-installed").write_text("there was no npm on the search path\n")
            return
        install = (npm, "install", "--prefix", directory, "--no-audit", "--no-fund", "--ignore-scripts", AZURITE)
        workshop.run(*install, cwd=workshop.scratch)

    what = "Azurite, an emulator of Azure storage, from npm"
    made_from = (AZURITE, "npm" if npm else "no npm")
    return Artefact(name="azurite", what=what, usual_seconds=30, made_from=made_from, make=make, mostly_waits=True)


def prometheus() -> Artefact:
    """Debian's build of Prometheus, unpacked and not installed: so no service of it ever starts on the machine."""
    return Artefact(
        name="prometheus",
        what="Prometheus from Debian",
        usual_seconds=15,
        made_from=("debian", _os_release()),
        make=_make_prometheus,
        mostly_waits=True,
    )


def _make_prometheus(workshop: Workshop, directory: Path) -> None:
    wanted = ("prometheus", "promtool")
    installed = [shutil.which(program) for program in wanted]
    if all(installed):
        for program, path in zip(wanted, installed, strict=True):
            (directory / program).symlink_to(str(path))
        return
    workshop.run("apt-get", "download", "prometheus", cwd=workshop.scratch)
    (package,) = workshop.scratch.glob("prometheus_*.deb")
    workshop.run("dpkg-deb", "--extract", package, workshop.scratch / "unpacked")
    for program in wanted:
        shutil.copy2(workshop.scratch / "unpacked/usr/bin" / program, directory / program)


def _os_release() -> str:
    release = Path("/etc/os-release")
    return release.read_text() if release.exists() else "unknown"
