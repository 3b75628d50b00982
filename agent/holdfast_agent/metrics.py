"""What the agent measures, in Prometheus's text form at /metrics. docs/agent.md lists every name; names and labels are added, never changed."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_SIGNED_SECONDS = (-100, -30, -10, -3, -1, -0.3, -0.1, 0, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """One registry per agent, so that two agents in one process (tests) do not share numbers."""

    def __init__(self, worker: int) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.info = Gauge("holdfast_agent_info", "Always 1; the labels say who this is.", ["worker"], registry=r)
        self.info.labels(str(worker)).set(1)
        self.attempt = Gauge("holdfast_agent_attempt", "Attempt that this agent has joined.", registry=r)
        self.boundary = Gauge(
            "holdfast_agent_boundary", "Newest boundary that all local ranks have passed.", registry=r
        )
        self.step_seconds = Gauge(
            "holdfast_agent_step_seconds", "Moving average of the time between boundaries.", registry=r
        )
        self.hangs = Counter(
            "holdfast_agent_hangs", "Attempts that this agent, as the lead, ended because nothing went on.", registry=r
        )
        self.rank_seconds = Gauge(
            "holdfast_agent_rank_seconds",
            "What one iteration takes each local rank, as moving averages: step (the same for all where they wait for each other), busy (computing on the "
            "processor), update (in the update window), data (waiting for a batch).",
            ["rank", "part"],
            registry=r,
        )
        self.stall_seconds = Histogram(
            "holdfast_agent_stall_seconds",
            "Time a rank stood still for one capture.",
            ["kind"],
            buckets=_SECONDS,
            registry=r,
        )
        self.arena_slots = Gauge(
            "holdfast_agent_arena_slots", "Slots per rank: 2, or 1 where memory is short.", registry=r
        )
        self.arena_bytes = Gauge("holdfast_agent_arena_bytes", "Size of all slots of this worker.", registry=r)
        self.logical_bytes = Counter(
            "holdfast_agent_checkpoint_logical_bytes", "Bytes of images in committed saves.", registry=r
        )
        self.sent_bytes = Counter(
            "holdfast_agent_checkpoint_sent_bytes", "Bytes sent to the store for them.", registry=r
        )
        self.stored_bytes = Counter(
            "holdfast_agent_checkpoint_stored_bytes",
            "Bytes of the chunks that lie under them: what they cost beside their bases.",
            registry=r,
        )
        self.local_failures = Counter(
            "holdfast_agent_local_failures", "Saves that are not on the node, by reason.", ["reason"], registry=r
        )
        self.store_requests = Gauge(
            "holdfast_agent_store_requests", "Uploads at once that were last found good.", registry=r
        )
        self.store_refusals = Counter(
            "holdfast_agent_store_refusals",
            "Uploads that the store refused for now or did not answer in time; each was tried again while there was time.",
            registry=r,
        )
        self.saves = Counter(
            "holdfast_agent_saves", "Saves by cause and how they ended.", ["cause", "outcome"], registry=r
        )
        self.replicas_differ = Counter(
            "holdfast_agent_replicas_differ",
            "Checkpoints committed as suspect: ranks that hold copies of one state did not hold the same bytes.",
            registry=r,
        )
        self.save_seconds = Histogram(
            "holdfast_agent_save_seconds", "Duration of a save's stages.", ["stage"], buckets=_SECONDS, registry=r
        )
        self.interval = Gauge(
            "holdfast_agent_save_interval_seconds",
            "Between the begins of two periodic saves, as chosen with every: auto; 0 where it is not.",
            registry=r,
        )
        self.rescued_bytes = Counter(
            "holdfast_agent_rescued_bytes", "Bytes of other workers' parts that were taken in.", registry=r
        )
        self.unfinished = Counter(
            "holdfast_agent_unfinished",
            "Parts of saves found on the node that had not been committed, by what became of them.",
            ["outcome"],
            registry=r,
        )
        self.plans = Counter(
            "holdfast_agent_plans", "Choices of the planner and what became of them.", ["choice", "outcome"], registry=r
        )
        self.plan_slack = Histogram(
            "holdfast_agent_plan_slack_seconds",
            "Time left until the last moment for a commit record, when a choice had been carried out.",
            ["choice"],
            buckets=_SIGNED_SECONDS,
            registry=r,
        )
        self.plan_error = Histogram(
            "holdfast_agent_plan_error_seconds",
            "How much longer (or, below 0, shorter) a choice took than was expected.",
            ["choice"],
            buckets=_SIGNED_SECONDS,
            registry=r,
        )
        self.last_checkpoint = Gauge(
            "holdfast_agent_last_checkpoint_timestamp_seconds",
            "When the newest checkpoint was committed, in Unix seconds.",
            registry=r,
        )
        self.last_boundary = Gauge(
            "holdfast_agent_last_checkpoint_boundary", "Boundary of the newest committed checkpoint.", registry=r
        )
        self.restored_bytes = Counter(
            "holdfast_agent_restored_bytes", "Bytes restored, by source.", ["source"], registry=r
        )
        self.restore_seconds = Histogram(
            "holdfast_agent_restore_seconds",
            "Duration of a restore's phases; verifying is part of fetching.",
            ["phase"],
            buckets=_SECONDS,
            registry=r,
        )
        self.rejected = Counter(
            "holdfast_agent_rejected_checkpoints", "Checkpoints that were tried and refused.", registry=r
        )
        self.clock_skew = Gauge(
            "holdfast_agent_clock_skew_seconds",
            "This machine's clock minus the operator's, as of the newest order; exact to about a second.",
            registry=r,
        )
        self.reports_failed = Counter(
            "holdfast_agent_reports_failed", "Reports that did not arrive, by destination.", ["to"], registry=r
        )

    def page(self) -> bytes:
        return generate_latest(self.registry)
