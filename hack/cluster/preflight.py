"""What this machine lacks for a cluster, said in one line each, with the remedy. `missing` is pure; `look` asks the machine."""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hack.cluster import cgroups
from hack.cluster.errors import ClusterError
from hack.cluster.paths import cache_directory, refuse_hidden
from hack.cluster.progress import Listener
from hack.cluster.python import MINOR, WANTED

#: A program (or file) of each Debian package a running cluster needs.
CLUSTER_PACKAGES: Mapping[str, str] = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/ptp",
    "iptables": "iptables",
    "nftables": "nft",
    "iproute2": "ip",
    "util-linux": "unshare",
    "e2fsprogs": "mkfs.ext4",
    "openssl": "openssl",
}
#: And those that building its parts needs.
BUILD_PACKAGES: Mapping[str, str] = {
    "debootstrap": "debootstrap",
    "buildah": "buildah",
    "gcc": "gcc",
    "binutils": "objdump",
}
#: Sources, compilers' caches, images and torch; measured at 15.
GIGABYTES_NEEDED = 20
GO_NEEDED = (1, 26)

_SYSTEM_PATHS = "/usr/local/sbin:/usr/sbin:/sbin"
_POLICY = Path("/usr/sbin/policy-rc.d")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was found on the machine."""

    system: str
    is_root: bool
    has_cgroup_v1: bool
    go_version: tuple[int, int] | None
    has_python: bool
    has_apt: bool
    free_gigabytes: float
    absent_packages: frozenset[str]


@dataclass(frozen=True)
class Problem:
    """One thing that is missing and what helps."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


def missing(facts: Facts) -> list[Problem]:
    """Everything that stands in the way of a cluster, so that it can be mended in one go. Pure."""
    checks = [
        (facts.system == "Linux", "this is not Linux", "use a Linux machine, or kind with Docker"),
        (facts.is_root, "not root", "run it with sudo -E: nodes are made of namespaces and mounts"),
        (
            facts.has_cgroup_v1,
            "no cgroup v1 hierarchy",
            "use kind with Docker here: this cluster is only known to run on v1",
        ),
        (facts.free_gigabytes >= GIGABYTES_NEEDED, *_about_space(facts)),
        *_toolchain_checks(facts),
    ]
    return [Problem(what, remedy) for fine, what, remedy in checks if not fine]


def missing_for_programs(facts: Facts) -> list[Problem]:
    """The part of it that matters when only programs are built. Pure."""
    return [Problem(what, remedy) for fine, what, remedy in _toolchain_checks(facts) if not fine]


def _toolchain_checks(facts: Facts) -> list[tuple[bool, str, str]]:
    wanted_go = ".".join(map(str, GO_NEEDED))
    packages = " ".join(sorted(facts.absent_packages))
    can_install = facts.is_root and facts.has_apt
    return [
        (
            facts.go_version is not None and facts.go_version >= GO_NEEDED,
            "no Go" if facts.go_version is None else f"Go {'.'.join(map(str, facts.go_version))}",
            f"install Go {wanted_go} or newer and put it on the search path",
        ),
        (facts.has_python, f"no {WANTED}", f"install {WANTED}: torch is shared with pods that have this version"),
        (
            not facts.absent_packages or can_install,
            f"missing packages: {packages}",
            f"apt-get install --no-install-recommends {packages}",
        ),
    ]


def _about_space(facts: Facts) -> tuple[str, str]:
    remedy = f"free {GIGABYTES_NEEDED} GB, or point HOLDFAST_CACHE to another disk"
    return f"{facts.free_gigabytes:.0f} GB free for the cache", remedy


def look(packages: Mapping[str, str], cache: Path | None = None) -> Facts:
    """Asks the machine."""
    return Facts(
        system=platform.system(),
        is_root=os.geteuid() == 0,
        has_cgroup_v1=Path("/proc/self/mountinfo").exists() and bool(cgroups.hierarchies()),
        go_version=_go_version(),
        has_python=_has_python(),
        has_apt=shutil.which("apt-get") is not None,
        free_gigabytes=_free_gigabytes(cache or cache_directory()),
        absent_packages=frozenset(name for name, program in packages.items() if not _is_there(program)),
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def require(packages: Mapping[str, str], listener: Listener) -> None:
    """Raises with everything that is missing; what apt can install and we may install is installed."""
    _complete_search_path()
    refuse_hidden(cache_directory())
    facts = look(packages)
    problems = missing(facts)
    if problems:
        raise ClusterError("; ".join(map(str, problems)))
    if facts.absent_packages:
        install(sorted(facts.absent_packages), listener)


def require_toolchain(packages: Mapping[str, str], listener: Listener = _say) -> None:
    """The same for programs alone, which need neither root nor cgroups."""
    _complete_search_path()
    facts = look(packages)
    problems = missing_for_programs(facts)
    if problems:
        raise ClusterError("; ".join(map(str, problems)))
    if facts.absent_packages:
        install(sorted(facts.absent_packages), listener)


def install(packages: list[str], listener: Listener) -> None:
    listener(f"installing Debian packages: {' '.join(packages)}")
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_services_started():
        update = subprocess.run(["apt-get", "update"], capture_output=True, text=True, check=False)
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        said = (done.stderr.strip() or update.stderr.strip()).splitlines()[-1:]
        raise ClusterError(f"{' '.join(command)} ended with {done.returncode}: {' '.join(said)}")


@contextlib.contextmanager
def _no_services_started() -> Iterator[None]:
    """Debian starts a package's service when it is installed (containerd has one) unless this file says no."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


def _complete_search_path() -> None:
    """sudo and cron may leave out the directories of administrators' programs."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{_SYSTEM_PATHS}"


def _is_there(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else shutil.which(program) is not None


def _go_version() -> tuple[int, int] | None:
    if shutil.which("go") is None:
        return None
    said = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    numbers = said.strip().removeprefix("go").split(".")
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 and numbers[0].isdigit() else None


def _has_python() -> bool:
    return sys.version_info[:2] == MINOR or shutil.which(WANTED) is not None


def _free_gigabytes(directory: Path) -> float:
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free / 1e9
