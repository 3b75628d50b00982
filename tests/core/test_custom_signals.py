"""Rows of the cluster owner's: read with the field named where one is wrong, and stronger than the built-in row of the same name."""

import json
from typing import Any

import pytest
from job_worlds import T0, a_job, seconds

from holdfast_operator.core import custom_signals
from holdfast_operator.core.custom_signals import BadSignals
from holdfast_operator.core.observed import NodeCondition, Taint
from holdfast_operator.core.signal_table import SignalRules
from holdfast_operator.crd.v1alpha1 import Confidence, NoticeStatus

OURS = [
    {"kind": "taint", "name": "example.com/going", "cause": "maintenance", "deadlineInValue": True, "deadlineSeconds": 90},
    {"kind": "condition", "name": "GpuFailing", "value": "ecc", "cause": "maintenance", "acting": False},
    {"kind": "taint", "name": "DeletionCandidateOfClusterAutoscaler", "cause": "scale-down", "deadlineSeconds": 300, "confidence": "Certain"},
]  # fmt: skip


def told(**node: Any) -> NoticeStatus | None:
    w = a_job().with_pods().training().change_node("n1", **node)
    w.signal_rules = SignalRules(custom_signals.parse(json.dumps(OURS)))
    w.round()
    return w.status.notices[0] if w.status.notices else None


def test_a_taint_of_ones_own_acts_and_its_value_may_hold_the_deadline() -> None:
    found = told(taints=(Taint("example.com/going", str(int((T0 + seconds(40)).timestamp()))),))
    assert found is not None
    assert (found.cause, found.acting, found.revocable, found.deadline) == (
        "maintenance",
        True,
        False,
        T0 + seconds(40),
    )
    found = told(taints=(Taint("example.com/going", "soon"),))
    assert found is not None
    assert found.deadline == T0 + seconds(90)


def test_a_condition_of_ones_own_stands_only_with_its_words() -> None:
    def failing(message: str) -> NoticeStatus | None:
        return told(conditions=(NodeCondition("GpuFailing", "True", "Xid", message, T0),))

    found = failing("ECC errors")
    assert found is not None
    assert (found.source, found.acting, found.revocable, found.confidence) == (
        "condition:GpuFailing", False, True, Confidence.POSSIBLE,
    )  # fmt: skip
    assert failing("something else") is None


def test_a_row_of_ones_own_takes_the_place_of_the_built_in_one() -> None:
    found = told(taints=(Taint("DeletionCandidateOfClusterAutoscaler", "1772366300"),))
    assert found is not None
    assert (found.acting, found.confidence, found.deadline) == (True, Confidence.CERTAIN, T0 + seconds(300))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "signals: not strict JSON"),
        ("{}", "a list of at most 64"),
        ("[1]", r"signals\[0\] is 1"),
        ('[{"kind": "taint", "name": "a", "cause": "spot"}, {"kind": "node"}]', r"signals\[1\].kind is 'node'; it must be one of taint"),
        ('[{"kind": "taint", "name": "a", "cause": "magic"}]', r"signals\[0\].cause is 'magic'"),
        ('[{"kind": "taint", "name": "a", "cause": "periodic"}]', r"signals\[0\].cause is 'periodic'"),
        ('[{"kind": "taint", "name": "", "cause": "spot"}]', r"signals\[0\].name is ''"),
        ('[{"kind": "taint", "name": "a", "cause": "spot", "acting": "yes"}]', r"signals\[0\].acting is 'yes'; it must be of type bool"),
        ('[{"kind": "taint", "name": "a", "cause": "spot", "deadlineSeconds": -1}]', r"deadlineSeconds is -1; it must be between"),
        ('[{"kind": "taint", "name": "a", "cause": "spot", "deadlineSeconds": true}]', r"deadlineSeconds is True"),
        ('[{"kind": "taint", "name": "a", "cause": "spot", "seconds": 1}]', r"signals\[0\].seconds is not known; the fields are"),
        ('[{"kind": "taint", "name": "a", "cause": "spot", "confidence": "Sure"}]', r"confidence is 'Sure'"),
    ],
)  # fmt: skip
def test_a_row_that_is_wrong_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(BadSignals, match=words):
        custom_signals.parse(text)


def test_none_are_none() -> None:
    assert custom_signals.parse("") == ()
    assert custom_signals.parse("[]") == ()
