"""The demo and the cluster tests where machines, images and bucket belong to somebody else."""

import contextlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hack.cluster.errors import ClusterError, Unsupported
from hack.demo import install, metrics, nodes, story
from hack.demo.kube import Kube, KubectlFailed
from hack.demo.metrics import Sum

PAGE = """\
# HELP holdfast_preemptions_total Preemptions.
# TYPE holdfast_preemptions_total counter
holdfast_preemptions_total{namespace="demo",job="a",cause="spot"} 2.0
holdfast_preemptions_total{namespace="demo",job="b, \\"c\\"",cause="spot"} 1.0
holdfast_preemptions_total{namespace="demo",job="a",cause="drain"} 1.0
holdfast_preemptions_total_created{cause="spot"} 1.7e+09
holdfast_steps_lost_total 7
holdfast_time_to_resume_seconds_sum{phase="total",cause="spot"} 3.5
holdfast_time_to_resume_seconds_sum{phase="flush",cause="spot"} 1.5
"""


def node(name: str, *taints: str, cordoned: bool = False, ready: bool = True) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"taints": [{"key": t, "effect": "NoSchedule"} for t in taints], "unschedulable": cordoned},
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}]},
    }


# Metrics


def test_sums_of_a_page_are_those_that_prometheus_is_asked_for() -> None:
    by_cause = Sum("holdfast_preemptions_total", by="cause")
    assert by_cause.promql == "sum by (cause) (holdfast_preemptions_total)"
    assert by_cause.of(PAGE) == [({"cause": "drain"}, 1.0), ({"cause": "spot"}, 3.0)]
    total = Sum("holdfast_time_to_resume_seconds_sum", where=(("phase", "total"),))
    assert total.promql == "sum(holdfast_time_to_resume_seconds_sum{phase='total'})"
    assert total.of(PAGE) == [({}, 3.5)]
    assert Sum("holdfast_steps_lost_total").of(PAGE) == [({}, 7.0)]
    assert Sum("holdfast_nothing").of(PAGE) == []


def test_pods_out_of_reach_are_scraped_through_the_api_server() -> None:
    pod = {
        "metadata": {"name": "p", "namespace": "team", "labels": {"app.kubernetes.io/managed-by": "holdfast"}},
        "status": {"podIP": "10.1.2.3", "phase": "Running"},
    }
    assert metrics.targets_of([pod])[0]["targets"] == ["10.1.2.3:8471"]
    (entry,) = metrics.targets_of([pod], "127.0.0.1:8001")
    assert entry["targets"] == ["127.0.0.1:8001"]
    assert entry["labels"]["__metrics_path__"] == "/api/v1/namespaces/team/pods/p:8471/proxy/metrics"


# Nodes


def test_what_was_added_to_a_node_is_taken_away_and_what_its_owner_put_there_stays() -> None:
    before = nodes.marks([node("a", "theirs"), node("b", cordoned=True), node("c")])
    now = [
        node("a", "theirs", "ours", cordoned=True),
        node("b", "node.kubernetes.io/unschedulable", cordoned=True),
        node("c"),
    ]
    assert nodes.repairs(now, before) == [("uncordon", "a"), ("taint", "node", "a", "ours:NoSchedule-")]
    assert not nodes.are_as_before(now, before)
    assert nodes.are_as_before([node("a", "theirs"), node("b", cordoned=True), node("c")], before)


def test_nodes_of_our_own_are_bare_again_whatever_was_there() -> None:
    assert nodes.repairs([node("n1", "left-by-a-test")], {}) == [("taint", "node", "n1", "left-by-a-test:NoSchedule-")]
    assert not nodes.are_as_before([node("n1", "node.kubernetes.io/unreachable")], {})
    assert not nodes.are_as_before([node("n1", ready=False)], {})


def test_a_node_that_its_owner_had_taken_out_need_not_become_ready() -> None:
    before = nodes.marks([node("n1", "node.kubernetes.io/unreachable")])
    assert nodes.are_as_before([node("n1", "node.kubernetes.io/unreachable", ready=False)], before)


# Images


@pytest.mark.parametrize(
    ("image", "values"),
    [
        ("localhost/holdfast-operator:dev", ["image.repository=localhost/holdfast-operator", "image.tag=dev"]),
        ("registry:5000/a/b:1", ["image.repository=registry:5000/a/b", "image.tag=1"]),
        ("registry:5000/a/b", ["image.repository=registry:5000/a/b", "image.tag=latest"]),
        ("a/b@sha256:0f", ["image.repository=a/b", "image.digest=sha256:0f"]),
    ],
)
def test_names_of_images_become_values_of_the_chart(image: str, values: list[str]) -> None:
    assert install.image_values(image) == values


def test_an_image_with_torch_needs_no_directory_of_the_node() -> None:
    job = install.training_job("a", "demo", "s3://b", torch_path="", image="registry.example/trainer:1")
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.example/trainer:1"
    assert "hostPath" not in json.dumps(pod)


# The story


class Recorder(Kube):
    """kubectl that only notes what it is told; the pods of the job are two."""

    calls: list[tuple[str, ...]]

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        RECORDED.append(arguments)
        if arguments[:2] == ("get", "pods"):
            pods = [
                {
                    "metadata": {"name": f"w{n}", "labels": {"holdfast.dev/worker": str(n)}},
                    "spec": {"nodeName": f"n{n}"},
                }
                for n in range(2)
            ]
            return json.dumps({"items": pods})
        if arguments[:2] == ("get", "nodes"):
            ours, real = node("n1", story.TAINT), node("n3", story.TAINT)
            ours["spec"]["taints"][0]["value"], real["spec"]["taints"][0]["value"] = "demo", "by-aws"
            return json.dumps({"items": [ours, node("n2", "theirs"), real]})
        if arguments[:2] == ("get", "namespace"):
            return json.dumps({"metadata": {"name": "demo"}})
        return ""


RECORDED: list[tuple[str, ...]] = []


class Theirs:
    """A cluster that was there already."""

    owns_machines = is_ours = False
    bin = Path("/bin")
    ended = False

    def down(self) -> None:
        self.ended = True


@pytest.fixture(autouse=True)
def _no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests themselves may have the machine's cluster."""
    monkeypatch.setattr(story.turn, "taken", lambda _: contextlib.nullcontext())


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> story.Story:
    RECORDED.clear()
    # helm says no to `status`, when there is no release, and takes everything else.
    (tmp_path / "helm").write_text(f"#!/bin/sh\necho $1 >> {tmp_path}/helm-calls\n[ $1 != status ]\n")
    (tmp_path / "helm").chmod(0o755)
    one = story.Story(damage=False, keep=False, steps=30, out=None)
    one.cluster, one.kube = Theirs(), Recorder(tmp_path, tmp_path)
    one.cluster.bin = tmp_path
    return one


def helm_calls(one: story.Story) -> list[str]:
    noted: Path = one.cluster.bin / "helm-calls"
    return noted.read_text().split() if noted.exists() else []


def test_in_place_of_a_power_cut_the_pod_on_that_node_is_deleted_without_grace_and_that_is_said(
    told: story.Story, capsys: pytest.CaptureFixture[str]
) -> None:
    told._end_of_node("n1")
    assert [c for c in RECORDED if c[0] == "delete"] == [
        ("delete", "pod", "w1", "-n", "demo", "--grace-period=0", "--force", "--ignore-not-found")
    ]
    assert "not ours to switch off" in capsys.readouterr().out


@pytest.mark.parametrize("brought", [True, False])
def test_what_the_demo_brought_is_taken_away_and_what_was_there_stays(
    told: story.Story, brought: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    told.before, told.brought_namespace = install.Before(release=not brought, namespace=not brought), brought
    told.leave()
    assert [c for c in RECORDED if c[0] == "taint"] == [("taint", "node", "n1", f"{story.TAINT}-")], (
        "n3's notice is real"
    )
    assert helm_calls(told) == ["uninstall"] * brought
    deleted = [c[2] for c in RECORDED if c[:2] == ("delete", "namespace")]
    assert deleted == ["demo", install.SYSTEM] * brought
    named = "the notice, the namespace, the release" if brought else "the notice"
    assert capsys.readouterr().out.strip().endswith(f"taken away from your cluster: {named}")
    assert told.cluster.ended


def test_a_namespace_of_the_owner_s_is_neither_used_nor_deleted(told: story.Story) -> None:
    with pytest.raises(story.DemoFailed, match="has a namespace 'demo' already"):
        told._install()
    told.leave()
    assert helm_calls(told) == []
    assert not [c for c in RECORDED if c[0] == "delete"]


def test_what_cannot_be_damaged_is_said_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends before there is a kubectl to clean up with."""

    class NoFiles(Theirs):
        @property
        def s3_data(self) -> Path:
            raise Unsupported("not ours to damage")

    theirs = NoFiles()
    monkeypatch.setattr(story.api, "ensure_cluster", lambda **_: theirs)
    monkeypatch.setattr("sys.argv", ["demo", "--damage"])
    assert story.main() == 1
    assert capsys.readouterr().err.strip() == "The demo cannot go on: not ours to damage"
    assert theirs.ended


class Figures:
    """Series of every cause, most of them zero; the resume is there at the second look only, as a scrape comes late."""

    looks = 0

    def read(self, wanted: Sum) -> metrics.Series:
        if not wanted.by:
            self.looks += 1
            return [({}, float(self.looks > 1))]
        return [({wanted.by: cause}, float(cause == "spot")) for cause in ("cordon", "drain", "spot")]


def test_figures_are_waited_for_and_zeros_of_other_causes_are_not_listed(
    told: story.Story, capsys: pytest.CaptureFixture[str]
) -> None:
    told.figures = Figures()
    told._show_metrics()
    assert told.failed == []
    assert "drain" not in capsys.readouterr().out


def test_a_namespace_that_held_an_earlier_release_s_key_stays(told: story.Story) -> None:
    install.remove_chart(told.kube, told.cluster.bin / "helm", install.Before(release=False, namespace=True))
    assert helm_calls(told) == ["uninstall"]
    assert RECORDED == []


def test_what_was_there_is_looked_up(told: story.Story) -> None:
    assert install.look(told.kube, told.cluster.bin / "helm") == install.Before(release=False, namespace=True)


def test_kept_means_that_nothing_is_taken_away(told: story.Story) -> None:
    told.keep = True
    told.leave()
    assert RECORDED == []


@pytest.mark.parametrize(
    "problem", [ClusterError("no cluster here"), Unsupported("not on kind"), KubectlFailed("refused")]
)
def test_what_stands_in_the_way_is_one_line_and_no_traceback(
    problem: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: Any) -> None:
        raise problem

    monkeypatch.setattr(story.api, "ensure_cluster", fails)
    monkeypatch.setattr("sys.argv", ["demo"])
    assert story.main() == 1
    assert capsys.readouterr().err.strip() == f"The demo cannot go on: {problem}"


# The cluster tests


@pytest.fixture
def conftest() -> ModuleType:
    path = Path(__file__).parents[1] / "cluster" / "conftest.py"
    spec = importlib.util.spec_from_file_location("cluster_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def called(conftest: ModuleType, *, ours: bool, name: str = "test_x", problem: Exception | None = None) -> None:
    item = SimpleNamespace(name=name, funcargs={"cluster": SimpleNamespace(owns_machines=ours)})
    hook = conftest.pytest_runtest_call(item)
    next(hook)
    if problem is not None:
        hook.throw(problem)


def test_a_test_that_needs_a_machine_is_skipped_with_the_reason_and_never_on_our_own(conftest: ModuleType) -> None:
    with pytest.raises(pytest.skip.Exception, match="not ours to switch off"):
        called(conftest, ours=False, problem=Unsupported("not ours to switch off"))
    with pytest.raises(Unsupported):
        called(conftest, ours=True, problem=Unsupported("not ours to switch off"))
    (needing,) = conftest.ON_OUR_IMAGES
    with pytest.raises(pytest.skip.Exception, match="only the nodes of hack/cluster"):
        called(conftest, ours=False, name=needing)
    called(conftest, ours=True, name=needing)


def test_tests_that_run_images_of_ours_exist(conftest: ModuleType) -> None:
    written = "".join(p.read_text() for p in (Path(__file__).parents[1] / "cluster").glob("test_*.py"))
    assert all(f"def {name}(" in written for name in conftest.ON_OUR_IMAGES)
