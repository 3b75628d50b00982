"""What an agent has to say about itself: the mutable state behind `AgentReport`, in one place, written by the event loop's thread only."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from holdfast_agent.clock import machines_now, now
from holdfast_agent.interval import Choice
from holdfast_agent.phases import Facts, phase_of
from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import (
    AgentPhase,
    AgentReport,
    Blocked,
    CheckpointInfo,
    ClaimInfo,
    EarlierReport,
    Exit,
    FlushEstimate,
    HangReport,
    LocalTrouble,
    Notice,
    PlanReport,
    RankPace,
    Rejection,
    Stage,
    UnfinishedCopy,
)

log = logging.getLogger(__name__)
MOST_DAMAGED = 64
KEPT = 20
"""Checkpoints, requests and deletions named in a report."""
KEPT_PLANS = 5


@dataclass(slots=True)
class Record:
    """One attempt's; `begin` makes the next one's from it."""

    job_uid: str
    worker: int
    pod_uid: str
    on_change: Callable[[], None] = lambda: None
    expects: Callable[[], FlushEstimate | None] = lambda: None
    """What an emergency save would take now (outlook.py)."""
    attempt: int = 0
    resolved: bool = False
    loaded: bool = False
    evacuating: bool = False
    sealed: bool = False
    finished: bool = False
    failed: bool = False
    boundary: int = 0
    step_seconds: float = 0.0
    claim: ClaimInfo | None = None
    restored: CheckpointInfo | None = None
    fresh: bool = False
    checkpoints: list[CheckpointInfo] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    expired: list[CheckpointRef] = field(default_factory=list)
    kept: list[CheckpointRef] = field(default_factory=list)
    notices: dict[tuple[int, str], Notice] = field(default_factory=dict)
    stages: dict[str, datetime] = field(default_factory=dict)
    fetched_from: dict[str, int] = field(default_factory=dict)
    done_requests: list[str] = field(default_factory=list)
    blocked: Blocked | None = None
    blocked_since: datetime | None = None
    exit: Exit | None = None
    exit_detail: str = ""
    superseded_by: int = 0
    earlier: tuple[EarlierReport, ...] = ()
    """To be forwarded (H4); empty again once the operator has it."""
    storage_note: str = ""
    arena: str = ""
    joined: int = 0
    """Of the pod, in any life of its agent (A2)."""
    stray: tuple[CheckpointRef, ...] = ()
    saving: Blocked | None = None
    plans: list[PlanReport] = field(default_factory=list)
    interval: Choice | None = None
    """How often the lead saves, with `every: auto`."""
    local: LocalTrouble | None = None
    on_node: CheckpointRef | None = None
    """The newest save whose local part lies whole on the node and that is not known to be committed (E6)."""
    on_node_boundary: int = 0
    rescued: tuple[CheckpointRef, tuple[int, ...]] | None = None
    """Other workers' parts that lie here, of the newest save of which there are any."""
    unfinished: tuple[UnfinishedCopy, ...] = ()
    damaged: dict[str, str] | None = None
    """None: nobody has looked."""
    hang: HangReport | None = None
    pace: tuple[RankPace, ...] = ()
    sequence: int = 0

    def begin(self, attempt: int) -> None:
        """A new attempt: only what belongs to the pod stays."""
        fresh = Record(self.job_uid, self.worker, self.pod_uid)
        for name in Record.__slots__:
            if name not in ("on_change", "sequence", "storage_note", "blocked", "blocked_since", "joined", "local"):
                setattr(self, name, getattr(fresh, name))
        self.attempt = attempt
        self.joined = max(self.joined, attempt)
        self.changed()

    def changed(self) -> None:
        self.on_change()

    def stage(self, stage: Stage, at: datetime | None = None) -> None:
        """Each at most once per attempt; the first time counts."""
        if stage.value not in self.stages:
            self.stages[stage.value] = at or now()
            self.changed()

    def block(self, blocked: Blocked | None) -> None:
        """Each reason is logged once, also for those who have no operator that shows it."""
        if blocked != self.blocked:
            if blocked is not None:
                log.warning("blocked (%s): %s", blocked.reason.value, blocked.message)
            same = blocked is not None and self.blocked is not None and blocked.reason is self.blocked.reason
            self.blocked_since = self.blocked_since if same else now() if blocked is not None else None
            self.blocked = blocked
            self.changed()

    def cannot_save(self, why: Blocked) -> None:
        """The store did not take a save. Over with the next commit."""
        if why != self.saving:
            self.saving = why
            self.changed()

    def lies_on_node(self, ref: CheckpointRef, boundary: int) -> None:
        if self.on_node is None or ref > self.on_node:
            self.on_node, self.on_node_boundary = ref, boundary
            self.changed()

    def takes(self, ref: CheckpointRef, worker: int) -> None:
        """That worker's part of the save lies here too."""
        before = self.rescued[1] if self.rescued is not None and self.rescued[0] == ref else ()
        self.rescued = ref, tuple(sorted({*before, worker}))
        self.changed()

    def off_node(self, up_to: CheckpointRef) -> None:
        """Committed, given up, or older than a commit."""
        if self.on_node is not None and self.on_node <= up_to:
            self.on_node, self.on_node_boundary = None, 0
            self.changed()

    def finishes(self, copies: tuple[UnfinishedCopy, ...]) -> None:
        if copies != self.unfinished:
            self.unfinished = copies
            self.changed()

    def keeps_locally(self, trouble: LocalTrouble | None) -> None:
        """Whether the node takes images."""
        if trouble != self.local:
            self.local = trouble
            self.changed()

    def reject(self, rejection: Rejection) -> None:
        which = (rejection.job_uid, rejection.attempt, rejection.save)
        if not any((r.job_uid, r.attempt, r.save) == which for r in self.rejections):
            self.rejections.append(rejection)
            self.changed()

    def committed(self, info: CheckpointInfo) -> None:
        if all(c.ref != info.ref for c in self.checkpoints):
            self.checkpoints.append(info)
            del self.checkpoints[:-KEPT]
            self.saving = None
            self.changed()

    def saves_every(self, interval: Choice) -> None:
        if interval != self.interval:
            self.interval = interval
            self.changed()

    def planned(self, plan: PlanReport) -> None:
        """A new choice, or what became of the newest one."""
        if self.plans and (self.plans[-1].round, self.plans[-1].at) == (plan.round, plan.at):
            self.plans.pop()
        self.plans.append(plan)
        del self.plans[:-KEPT_PLANS]
        self.changed()

    def request_done(self, request_id: str) -> None:
        if request_id not in self.done_requests:
            self.done_requests.append(request_id)
            del self.done_requests[:-KEPT]
            self.changed()

    def found_damaged(self, found: dict[CheckpointRef, str]) -> None:
        """What scrubs have written down (verdict `intact`); the newest, as many as a report holds."""
        told = {str(ref): found[ref][:500] for ref in sorted(found)[-MOST_DAMAGED:]}
        if told != self.damaged:
            self.damaged = told
            self.changed()

    def hangs(self, report: HangReport | None) -> None:
        if report != self.hang:
            self.hang = report
            self.changed()

    def found_stray(self, refs: tuple[CheckpointRef, ...]) -> None:
        if refs != self.stray:
            self.stray = refs
            self.changed()

    def forward(self, earlier: tuple[EarlierReport, ...]) -> None:
        if earlier:
            self.earlier = earlier
            self.changed()

    def taken(self, report: AgentReport) -> None:
        """The operator has this report."""
        if report.attempt == self.attempt and report.earlier == self.earlier:
            self.earlier = ()

    @property
    def phase(self) -> AgentPhase:
        return phase_of(
            Facts(
                attempt=self.attempt,
                resolved=self.resolved,
                loaded=self.loaded,
                evacuating=self.evacuating,
                sealed=self.sealed,
                finished=self.finished,
                failed=self.failed,
                blocked=self.blocked is not None,
            )
        )

    def report(self) -> AgentReport:
        self.sequence = max(self.sequence + 1, time.time_ns() // 1000)
        return AgentReport(
            job_uid=self.job_uid,
            worker=self.worker,
            pod_uid=self.pod_uid,
            sent_at=machines_now(),
            sequence=self.sequence,
            attempt=self.attempt,
            phase=self.phase,
            boundary=self.boundary,
            step_seconds=self.step_seconds,
            claim=self.claim,
            restored=self.restored,
            fresh=self.fresh,
            checkpoints=tuple(self.checkpoints),
            rejections=tuple(self.rejections),
            expired=tuple(self.expired[-KEPT:]),
            kept=tuple(self.kept[-KEPT:]),
            notices=tuple(self.notices.values()),
            stages=dict(self.stages),
            bytes_fetched=sum(self.fetched_from.values()),
            fetched_from=dict(self.fetched_from),
            done_requests=tuple(self.done_requests),
            blocked=self.blocked,
            blocked_since=self.blocked_since,
            exit=self.exit,
            exit_detail=self.exit_detail,
            superseded_by=self.superseded_by,
            storage_note=self.storage_note,
            arena=self.arena,
            joined=self.joined,
            stray=self.stray,
            damaged=self.damaged,
            saving=self.saving,
            plans=tuple(self.plans),
            local=self.local,
            earlier=self.earlier,
            unfinished=self.unfinished,
            flush=self.expects(),
            on_node=self.on_node,
            on_node_boundary=self.on_node_boundary,
            holds_of=self.rescued[1] if self.rescued is not None and self.rescued[0] == self.on_node else (),
            hang=self.hang,
            pace=self.pace,
            interval_seconds=round(self.interval.seconds) if self.interval is not None else 0,
            interval_reason=self.interval.words if self.interval is not None else "",
        )
