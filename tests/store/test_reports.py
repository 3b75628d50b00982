"""H4: the last report of each agent stays readable after its pod is gone."""

import dataclasses

import pytest
from worlds import NOW, World

from holdfast_api.errors import BadName
from holdfast_api.messages import AgentPhase, AgentReport


def a_report(worker: int, attempt: int = 1, sequence: int = 1) -> AgentReport:
    return AgentReport("uid-1", worker, f"pod-{worker}", NOW, sequence, attempt, AgentPhase.TRAINING)


def test_the_last_report_of_each_worker_is_read_back_by_attempt(world: World) -> None:
    for worker in (0, 11, 2):
        world.store.write_report(a_report(worker))
    world.store.write_report(a_report(2, sequence=2))
    world.store.write_report(a_report(0, attempt=2))
    assert world.store.read_reports(1) == [a_report(0), a_report(2, sequence=2), a_report(11)]
    assert world.store.read_reports(3) == []
    assert world.store.claims() == {}


def test_a_report_that_cannot_be_read_is_left_out(world: World) -> None:
    world.store.write_report(a_report(0))
    world.store.bucket.put(f"{world.store.prefix}attempts/0000000001.reports/1.json", b"half a rep")
    assert world.store.read_reports(1) == [a_report(0)]


def test_a_report_of_no_attempt_has_no_place(world: World) -> None:
    with pytest.raises(BadName):
        world.store.write_report(dataclasses.replace(a_report(0), attempt=0))
