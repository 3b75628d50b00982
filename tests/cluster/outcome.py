"""What must have become of jobs that were interrupted: an exact end, one entry in status and one observed time to resume for each interruption."""

import json
from collections import Counter
from typing import Any

from hack.demo import curves
from hack.demo.kube import wait_for
from tests.cluster.lab import Job, Lab

STEPS = "60"
"""Of the runs that are compared. SLEEP makes one as long as a test needs."""


class Outcome:
    """Counts from when it is made, which is before the jobs are."""

    def __init__(self, lab: Lab, reference: curves.Run) -> None:
        self._lab, self._reference = lab, reference
        self._before = lab.operator.resumes()
        self._last = {self._before.life: self._before}

    def of(self, job: Job) -> dict[str, Any]:
        """The one interruption of the only job that was interrupted, once that has ended as it must."""
        self.each(job)
        return self.only(job)

    def only(self, job: Job) -> dict[str, Any]:
        """Its only interruption."""
        found: list[dict[str, Any]] = job.status()["preemptions"]
        assert len(found) == 1, json.dumps(found, indent=1)
        return found[0]

    def each(self, *jobs: Job) -> None:
        """All jobs that were interrupted meanwhile."""
        causes: Counter[str] = Counter()
        for job in jobs:
            status = job.wait_succeeded()
            self._exact(job)
            for entry in status["preemptions"]:
                assert sum(p["milliseconds"] for p in entry["phases"]) == entry["totalMilliseconds"], json.dumps(entry)
                causes[entry["cause"]] += 1
        self.observed(causes)

    def uninterrupted(self, job: Job) -> None:
        """Nothing has happened to it, whatever happened around it."""
        status = job.wait_succeeded()
        assert not status.get("preemptions"), json.dumps(status["preemptions"])
        assert status["attempt"]["number"] == 1
        self._exact(job)

    def observed(self, causes: Counter[str]) -> None:
        """The operator has measured each resume once (I9): none twice, and none lost with one of its lives."""
        try:
            wait_for("as many observations", lambda: self._since() == causes, timeout=10)
        except TimeoutError:
            assert self._since() == causes, "times to resume on the operator's page, and interruptions in status"

    def note(self) -> None:
        """Reads what the operator has observed so far, for one that is about to lose it: as a Prometheus that scrapes does."""
        now = self._lab.operator.resumes()
        self._last[now.life] = now

    def _since(self) -> Counter[str]:
        self.note()
        return sum((seen.since(self._before) for seen in self._last.values()), Counter())

    def _exact(self, job: Job) -> None:
        """Its losses and weights are those of an uninterrupted run of the same seed."""
        ours, theirs = job.run(), self._reference
        assert ours.digest == theirs.digest
        assert ours.digest
        assert not ours.contradictions
        assert {s: v for s, v in theirs.losses.items() if s in ours.losses} == ours.losses
