"""Which cluster the demo and the tests run on. `decide` is pure; `look` asks the machine."""

import enum
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hack.cluster import cgroups
from hack.cluster.errors import ClusterError


class Target(enum.Enum):
    """The kinds of cluster there are."""

    #: One that runs already and that KUBECONFIG names.
    CURRENT = "current"
    #: Nodes made of namespaces, by hack/cluster.
    NAMESPACES = "namespaces"
    #: Nodes made of containers, by kind and Docker.
    KIND = "kind"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that the decision looks at."""

    use_current: bool
    kubeconfig: str | None
    is_linux: bool
    is_root: bool
    has_cgroup_v1: bool
    has_kind: bool
    has_docker: bool


def decide(facts: Facts) -> Target:
    """The cluster to use, or an error that says in one line what is missing. Pure."""
    if facts.use_current:
        if not facts.kubeconfig:
            raise ClusterError(
                "HOLDFAST_USE_CURRENT_CLUSTER is set, but KUBECONFIG is not: name the cluster's file there"
            )
        if os.pathsep in facts.kubeconfig:
            raise ClusterError("KUBECONFIG names several files: name the one of the cluster to use")
        return Target.CURRENT
    if facts.is_linux and facts.is_root and facts.has_cgroup_v1:
        return Target.NAMESPACES
    if facts.has_kind and facts.has_docker:
        return Target.KIND
    raise ClusterError(f"no cluster can be made here: {_why_no_namespaces(facts)}; {_why_no_kind(facts)}")


def look(environment: Mapping[str, str] = os.environ) -> Facts:
    """Asks the machine."""
    on_linux = platform.system() == "Linux"
    return Facts(
        use_current=environment.get("HOLDFAST_USE_CURRENT_CLUSTER") == "1",
        kubeconfig=environment.get("KUBECONFIG"),
        is_linux=on_linux,
        is_root=os.geteuid() == 0,
        has_cgroup_v1=on_linux and Path("/proc/self/mountinfo").exists() and bool(cgroups.hierarchies()),
        has_kind=shutil.which("kind") is not None,
        has_docker=shutil.which("docker") is not None,
    )


def _why_no_namespaces(facts: Facts) -> str:
    if not facts.is_linux:
        return "its own nodes need Linux"
    if not facts.has_cgroup_v1:
        return "its own nodes need cgroup v1"
    return "its own nodes need root (sudo -E)"


def _why_no_kind(facts: Facts) -> str:
    absent = [name for name, there in (("kind", facts.has_kind), ("docker", facts.has_docker)) if not there]
    return f"or install {' and '.join(absent)}, or set HOLDFAST_USE_CURRENT_CLUSTER=1 and KUBECONFIG"
