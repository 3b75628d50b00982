"""What a machine lacks is said in one line each, all at once, with the remedy."""

from dataclasses import replace

import pytest

from hack.cluster import preflight
from hack.cluster.errors import ClusterError
from hack.cluster.paths import REPOSITORY
from hack.cluster.preflight import GIGABYTES_NEEDED, GO_NEEDED, Facts, missing, missing_for_programs
from hack.cluster.python import MINOR

GOOD = Facts(
    system="Linux",
    is_root=True,
    has_cgroup_v1=True,
    go_version=(1, 26),
    has_python=True,
    has_apt=True,
    free_gigabytes=50.0,
    absent_packages=frozenset(),
)


def said(facts: Facts) -> list[str]:
    return [str(problem) for problem in missing(facts)]


def test_a_good_machine_lacks_nothing() -> None:
    assert said(GOOD) == []


@pytest.mark.parametrize(
    ("change", "what", "remedy"),
    [
        ({"system": "Darwin"}, "this is not Linux", "kind"),
        ({"is_root": False}, "not root", "sudo"),
        ({"has_cgroup_v1": False}, "no cgroup v1", "kind"),
        ({"go_version": None}, "no Go", "install Go 1.26"),
        ({"go_version": (1, 22)}, "Go 1.22", "install Go 1.26"),
        ({"has_python": False}, "no python3.11", "install python3.11"),
        ({"free_gigabytes": 3.2}, "3 GB free", "HOLDFAST_CACHE"),
        ({"has_apt": False, "absent_packages": frozenset({"runc"})}, "missing packages: runc", "runc"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(change: dict[str, object], what: str, remedy: str) -> None:
    (line,) = said(replace(GOOD, **change))  # type: ignore[arg-type]
    assert line.startswith(what)
    assert remedy in line.split(": ", 1)[1]
    assert "\n" not in line


def test_everything_is_said_at_once() -> None:
    assert len(said(replace(GOOD, is_root=False, go_version=None, free_gigabytes=0.0))) == 3


def test_packages_that_apt_can_install_are_no_problem() -> None:
    assert said(replace(GOOD, absent_packages=frozenset({"runc", "buildah"}))) == []


def test_programs_alone_need_neither_root_nor_cgroups() -> None:
    facts = replace(GOOD, is_root=False, has_cgroup_v1=False)
    assert missing_for_programs(facts) == []
    assert [str(problem) for problem in missing_for_programs(replace(facts, go_version=None))] == [
        "no Go: install Go 1.26 or newer and put it on the search path"
    ]


def test_packages_for_programs_are_installed_where_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []
    monkeypatch.setattr(preflight, "look", lambda _: replace(GOOD, absent_packages=frozenset({"gcc", "binutils"})))
    monkeypatch.setattr(preflight, "install", lambda packages, _: installed.extend(packages))
    preflight.require_toolchain({})
    assert installed == ["binutils", "gcc"]
    monkeypatch.setattr(preflight, "look", lambda _: replace(GOOD, is_root=False, absent_packages=frozenset({"gcc"})))
    with pytest.raises(ClusterError, match="apt-get install --no-install-recommends gcc"):
        preflight.require_toolchain({})


def test_the_readme_names_all_that_is_asked_for() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    (sentence,) = [line for line in readme.splitlines() if "needs a Linux machine" in line]
    python, go = (".".join(map(str, version)) for version in (MINOR, GO_NEEDED))
    for needed in ("root", "cgroup v1", f"Python {python}", f"Go {go}", f"{GIGABYTES_NEEDED} GB"):
        assert needed in sentence
