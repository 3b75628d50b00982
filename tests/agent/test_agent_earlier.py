"""H4: the last report of an agent whose pod is gone reaches the operator through the next lead."""

import json
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from conftest import eventually
from lone import Lone
from test_agent_adversity import operator  # noqa: F401  a fixture

from holdfast_agent import earlier
from holdfast_agent.reports import termination_message
from holdfast_api import codec
from holdfast_api.messages import AgentPhase, AgentReport, ClaimInfo, EarlierReport, Exit

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def a_report(worker: int, attempt: int = 1, sequence: int = 1, **fields) -> AgentReport:
    return AgentReport("uid-1", worker, f"pod-{worker}", T0, sequence, attempt, AgentPhase.SEALED, **fields)


@pytest.mark.parametrize(
    ("claim", "attempts"),
    [
        (ClaimInfo(1, "i", T0), []),
        (ClaimInfo(2, "i", T0), [1]),
        (ClaimInfo(9, "i", T0, parent_attempt=8), [8]),
        (ClaimInfo(9, "i", T0, parent_attempt=7), [8, 7]),
        (ClaimInfo(9, "i", T0, parent_attempt=2), [8, 7, 6]),
        (ClaimInfo(3, "i", T0, parent_attempt=40, parent_job_uid="another"), [2, 1]),
    ],
)
def test_reports_are_read_back_to_the_attempt_that_is_continued(claim, attempts):
    assert list(earlier.attempts_before(claim)) == attempts


def test_one_report_a_worker_the_newest_with_its_detail_cut():
    reports = [
        a_report(1, 4, 9, boundary=5),
        a_report(0, 3, 7),
        a_report(1, 5, 1, exit=Exit.TRAINER_FAILED, exit_detail="a" * 9000 + "the end"),
        a_report(2, 5),
    ]
    found = earlier.newest_of_each_worker(reports, most=2)
    assert [(e.worker, e.attempt, e.sequence, e.pod_uid, e.exit) for e in found] == [
        (0, 3, 7, "pod-0", None),
        (1, 5, 1, "pod-1", Exit.TRAINER_FAILED),
    ]
    assert len(found[1].exit_detail) == earlier.DETAIL_CHARACTERS
    assert found[1].exit_detail.endswith("the end")


def test_what_was_forwarded_is_dropped_when_a_report_with_it_was_taken_and_not_before():
    one = EarlierReport(1, 0, "pod", 5, AgentPhase.SEALED)
    record = Lone.a_record()
    before = record.report()
    record.forward((one,))
    record.taken(before)
    assert record.report().earlier == (one,)
    record.taken(record.report())
    assert record.report().earlier == ()
    record.forward((one,))
    record.begin(record.attempt + 1)
    assert record.report().earlier == ()


def test_it_is_not_in_the_termination_message():
    data = termination_message(a_report(0, earlier=(EarlierReport(1, 0, "pod", 5, AgentPhase.SEALED),)))
    assert codec.from_json(AgentReport, data).earlier == ()


def test_the_next_lead_forwards_how_the_workers_before_it_ended_until_the_operator_has_it(gang, operator):  # noqa: F811
    operator.answer = 503
    g = gang(operator_url=f"http://127.0.0.1:{operator.server_port}").start().begin()
    g.wait_for_commit(10)
    g.pods[1].kill(signal.SIGTERM)
    assert g.pods[1].wait() == 72
    g.pods[0].kill()
    g.pods[0].wait()
    gone = {w: pod.uid for w, pod in g.pods.items()}
    for worker in (0, 1):
        g.new_pod(worker)
    operator.heard.clear()
    g.begin()
    eventually(lambda: [r for _, r in operator.heard if r.earlier], "the lead forwards while it is refused")
    operator.answer = 204
    eventually(lambda: operator.heard[-1][1].earlier == () and [r for _, r in operator.heard if r.earlier], "it stops")
    g.wait_for_boundary(g.commits()[-1][1] + 10)
    eventually(lambda: not [p for p in g.pods.values() if p.report().earlier], "taken once, dropped")
    forwarded = next(r for _, r in operator.heard if r.earlier)
    assert (forwarded.worker, forwarded.attempt) == (0, 2)
    assert {e.worker: e.pod_uid for e in forwarded.earlier} == gone
    assert {e.attempt for e in forwarded.earlier} == {1}
    ended = next(e for e in forwarded.earlier if e.worker == 1)
    assert (ended.exit, ended.phase) == (Exit.PREEMPTED_SEALED, AgentPhase.SEALED)
    assert {"noticed", "sealed"} <= ended.stages.keys()
    stored = json.loads(next(g.bucket.glob("ns/job-*/attempts/0000000002.reports/0.json")).read_bytes())
    assert stored["earlier"] == []
