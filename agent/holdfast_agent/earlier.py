"""The last words of agents whose pods are gone (H4): read from the store by the next lead after its claim, and forwarded to the operator in its own reports.

Nothing waits for it and nothing depends on it: it explains how the attempts before ended, to an operator that has not heard it from them.
"""

import asyncio
import logging
from collections.abc import Iterable

from holdfast_agent.clock import Deadline
from holdfast_agent.shared import Shared
from holdfast_api.messages import AgentReport, ClaimInfo, EarlierReport
from holdfast_store.errors import StoreError
from holdfast_store.job import JobStore

log = logging.getLogger(__name__)
ATTEMPTS = 3
"""Looked at before the own one at most: several may have ended before they could claim."""
DETAIL_CHARACTERS = 500
TRIES = 5
RETRY_SECONDS = 3.0


async def forward(shared: Shared) -> None:
    """One task of the lead's attempt; ends when the record holds what was found, or the store has not given it."""
    s = shared
    while s.record.claim is None or s.store is None:
        await s.changes.until(lambda: s.record.claim is not None and s.store is not None, Deadline.after(3600))
    numbers = attempts_before(s.record.claim)
    for _ in range(TRIES):
        try:
            found = await s.threads.call(_read, s.store, numbers)
            s.record.forward(newest_of_each_worker(found, most=len(s.order.members)))
            return
        except StoreError as e:
            log.warning("the reports of attempts %s are not read: %s", list(numbers), e)
            await asyncio.sleep(RETRY_SECONDS)


def attempts_before(claim: ClaimInfo) -> range:
    """Back to the attempt that is continued, newest first. Pure."""
    first = max(1, 0 if claim.parent_job_uid else claim.parent_attempt, claim.attempt - ATTEMPTS)
    return range(claim.attempt - 1, first - 1, -1)


def newest_of_each_worker(reports: Iterable[AgentReport], *, most: int) -> tuple[EarlierReport, ...]:
    """By worker, at most `most`: a job that has become smaller leaves workers behind of whom nobody asks. Pure."""
    newest: dict[int, AgentReport] = {}
    for report in reports:
        known = newest.get(report.worker)
        if known is None or (report.attempt, report.sequence) > (known.attempt, known.sequence):
            newest[report.worker] = report
    return tuple(_shortened(newest[worker]) for worker in sorted(newest)[:most])


def _shortened(r: AgentReport) -> EarlierReport:
    detail = r.exit_detail[-DETAIL_CHARACTERS:]
    return EarlierReport(
        r.attempt, r.worker, r.pod_uid, r.sequence, r.phase, r.boundary, dict(r.stages), r.exit, detail
    )  # fmt: skip


def _read(store: JobStore, attempts: Iterable[int]) -> list[AgentReport]:
    return [report for attempt in attempts for report in store.read_reports(attempt)]
