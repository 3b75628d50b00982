"""Which cluster is used is decided from facts alone."""

from dataclasses import replace

import pytest

from hack.cluster.errors import ClusterError
from hack.target import Facts, Target, decide

NOTHING = Facts(
    use_current=False,
    kubeconfig=None,
    is_linux=True,
    is_root=False,
    has_cgroup_v1=True,
    has_kind=False,
    has_docker=False,
)


@pytest.mark.parametrize(
    ("case", "change", "chosen"),
    [
        ("root on Linux gets nodes made of namespaces", {"is_root": True}, Target.NAMESPACES),
        ("also where kind is at hand", {"is_root": True, "has_kind": True, "has_docker": True}, Target.NAMESPACES),
        ("without root kind is used", {"has_kind": True, "has_docker": True}, Target.KIND),
        (
            "without cgroup v1 kind is used, root or not",
            {"is_root": True, "has_cgroup_v1": False, "has_kind": True, "has_docker": True},
            Target.KIND,
        ),
        (
            "a cluster that is named wins over everything",
            {"use_current": True, "kubeconfig": "/x", "is_root": True},
            Target.CURRENT,
        ),
        ("a kubeconfig alone is not a wish", {"kubeconfig": "/x", "is_root": True}, Target.NAMESPACES),
    ],
)
def test_decision(case: str, change: dict[str, object], chosen: Target) -> None:
    assert decide(replace(NOTHING, **change)) is chosen, case  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ["root (sudo -E)", "install kind and docker"]),
        ({"has_kind": True}, ["install docker"]),
        ({"is_linux": False}, ["need Linux"]),
        ({"is_root": True, "has_cgroup_v1": False}, ["need cgroup v1"]),
        ({"use_current": True}, ["KUBECONFIG is not"]),
    ],
)
def test_what_is_missing_is_said_in_one_line(change: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ClusterError) as problem:
        decide(replace(NOTHING, **change))  # type: ignore[arg-type]
    assert "\n" not in str(problem.value)
    for word in words:
        assert word in str(problem.value)
