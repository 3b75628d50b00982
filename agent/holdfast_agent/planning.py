"""An evacuation's choices, one after the other: what is known makes a situation, plan.py chooses, and what became of it is told (report, metrics, log).

One for each round that evacuates, in its coordinator. Called on the event loop's thread.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from holdfast_agent import notices, plan, rescuers, spans, tiers
from holdfast_agent.clock import Deadline, monotonic, now
from holdfast_agent.plan import Choice, Option, Plan, Situation
from holdfast_agent.shared import Shared
from holdfast_api.messages import Cause, PlanOption, PlanReport
from holdfast_api.peers import GateVotes, Outlook, Span

log = logging.getLogger(__name__)


def fallback_of(clean: Iterable[Iterable[int]], newer_than: int) -> int | None:
    """The newest boundary that every worker holds clean and that is not committed yet (E3). Pure."""
    sets = [frozenset(c) for c in clean]
    common = frozenset.intersection(*sets) if sets else frozenset()
    return max((b for b in common if b > newer_than), default=None)


def arrival_of(outlooks: Sequence[Outlook | None], target: int, waited_seconds: float) -> Span:
    """Until every rank has captured `target`: the rest of the steps that the slowest worker still has to go, then the copy. Pure and total."""
    return spans.together(_arrival(o, target, waited_seconds) for o in outlooks)


def _arrival(o: Outlook | None, target: int, waited_seconds: float) -> Span:
    if o is None:
        return spans.UNKNOWN
    to_go = min(max(0, target - o.boundary), 1000)
    steps = spans.longer(o.step, to_go)
    return spans.then(spans.less(steps, o.since_seconds + waited_seconds) if to_go else spans.NONE, o.copy)


def situation_of(
    outlooks: Sequence[Outlook | None],
    loss: tiers.Loss,
    *,
    remaining_seconds: float,
    live_boundary: int,
    committed_boundary: int,
    clean_boundary: int,
    arrival: Span,
    clean_under_way_seconds: float = 0.0,
    on_node_boundary: int = 0,
    rescue: Span | None = None,
) -> Situation:
    """Of all workers together. `on_node_boundary`: what this evacuation has left on the nodes already. `rescue`: as `rescuers.assign` says.

    An agent that does not say what it expects may be of any speed. Pure and total."""
    store = _unless_refuted(
        spans.together(o.store if o is not None else spans.UNKNOWN for o in outlooks), outlooks, clean_under_way_seconds
    )
    nodes = [o.node if o is not None else None for o in outlooks]
    return Situation(
        remaining_seconds=remaining_seconds,
        live_boundary=live_boundary,
        committed_boundary=committed_boundary,
        clean_boundary=clean_boundary,
        arrival=arrival,
        store=store,
        clean_store=_rest(outlooks, clean_under_way_seconds) if clean_under_way_seconds > 0 else None,
        commit=spans.together(o.commit for o in outlooks if o is not None),
        node=None if None in nodes or not nodes else spans.together(n for n in nodes if n is not None),
        node_survives=live_boundary > on_node_boundary
        and all(o is not None and o.finishes and tiers.survives(tiers.tier_of(o.volume), loss) for o in outlooks),
        rescue=rescue if live_boundary > on_node_boundary else None,
    )


def _unless_refuted(store: Span, outlooks: Sequence[Outlook | None], under_way_seconds: float) -> Span:
    """A save beside training that lasts longer than was sure shows that this store is not what was believed, for a new one neither."""
    whole = spans.together(o.beside for o in outlooks if o is not None and o.beside is not None)
    if under_way_seconds <= whole.sure:
        return store
    return spans.tidy(Span(under_way_seconds / 4, 2 * under_way_seconds, (1 + spans.OUTLASTS) * under_way_seconds))


def _rest(outlooks: Sequence[Outlook | None], under_way_seconds: float) -> Span:
    """Of a save that was begun beside training."""
    whole = (o.beside if o is not None and o.beside is not None else spans.UNKNOWN for o in outlooks)
    return spans.less(spans.together(whole), under_way_seconds)


class Planning:
    """What is known grows by `heard` and `captured`; `now` chooses."""

    def __init__(
        self,
        shared: Shared,
        number: int,
        cause: Cause,
        deadline: Deadline,
        under_way_seconds: Callable[[int], float] = lambda boundary: 0.0,
    ) -> None:
        """`under_way_seconds`: for how long a save of that boundary has been running beside training."""
        self._shared = shared
        self._under_way_seconds = under_way_seconds
        self._number = number
        self._cause = cause
        self._deadline = deadline
        self._outlooks: tuple[Outlook | None, ...] = ()
        self._first_ranks: tuple[int, ...] = ()
        """Of the workers whose the outlooks are, as far as they have voted; -1 for one without a vote."""
        self._heard_at: float | None = None
        self._target = 0
        self._clean = 0
        self._captured = False
        self._released_at: float | None = None
        self._began_at = 0.0
        self._arrived_at: float | None = None
        self._report: PlanReport | None = None
        self.on_node = 0
        """The newest boundary that this evacuation has left whole on the nodes alone; 0 for none. It is no checkpoint (E6)."""

    # ---- what is known

    def heard(self, votes: Sequence[GateVotes], target: int) -> None:
        """All that answered; `target` is 0 if the ranks will not all get to one boundary (E3)."""
        s = self._shared
        missing = len(s.order.members) - len(votes)
        self._outlooks = (*(v.outlook for v in votes), *(None for _ in range(missing)))
        self._first_ranks = tuple(min(map(int, (*v.votes, *v.done_at)), default=-1) for v in votes)
        self._heard_at = monotonic()
        self._target = target
        self._released_at = None
        self._clean = 0 if missing else fallback_of((v.clean for v in votes), s.last_boundary) or 0

    def renewed(self, votes: Sequence[GateVotes]) -> None:
        """What the same workers expect now, of whom nobody has moved: a flush that has run meanwhile has shown how fast the store is."""
        now = tuple(v.outlook for v in votes)
        if len(now) != len(self._outlooks):
            return
        # How far the ranks are stands as it was heard: time at a gate says nothing of a step.
        self._outlooks = tuple(
            dataclasses.replace(new, boundary=old.boundary, since_seconds=old.since_seconds)
            if new is not None and old is not None
            else old
            for new, old in zip(now, self._outlooks, strict=True)
        )

    def released(self) -> None:
        """The ranks run to the target from now on. Until then a rank may stand at its gate, and the time that passes says nothing of its steps."""
        self._released_at = self._released_at if self._released_at is not None else monotonic()

    def captured(self, boundary: int) -> None:
        """Every rank holds it."""
        self._target, self._captured, self._arrived_at = boundary, True, monotonic()

    @property
    def goes_for(self) -> int:
        """The boundary that all ranks would get to; 0 for none."""
        return self._target

    @property
    def has_captured(self) -> bool:
        return self._captured

    @property
    def is_late(self) -> bool:
        """What was begun last could not be done any more."""
        left = self._deadline.remaining - plan.EXIT_MARGIN_SECONDS - plan.COMMIT_MARGIN_SECONDS
        return left < plan.WORTH_STARTING_SECONDS

    @property
    def holds_everything(self) -> bool:
        """Where the ranks are, or would have got to, is committed."""
        return 0 < self._target <= self._shared.last_boundary

    # ---- what follows

    @property
    def rescue(self) -> rescuers.Rescue | None:
        """Who would take whose part; only where everybody has answered."""
        s = self._shared
        worker_of = {s.order.ranks_of(m.worker).start: m.worker for m in s.order.members}
        workers = (worker_of.get(rank, -1) for rank in self._first_ranks)
        told = dict(zip(workers, self._outlooks, strict=False))
        if set(told) != {m.worker for m in s.order.members} or len(self._outlooks) != len(told):
            return None
        merged = notices.merge(
            s.record.notices.values(),
            default_seconds=s.settings.config.notice_seconds,
            grace_seconds=s.settings.config.grace_seconds,
        )
        return rescuers.assign(told, merged.doomed)

    def now(self, *, committed: int | None = None) -> Plan:
        """`committed`: as if this boundary were."""
        committed = self._shared.last_boundary if committed is None else committed
        if self._heard_at is None:
            # Nobody has been asked yet: only the time decides whether it is worth it.
            return plan.choose(Situation(self._deadline.remaining, committed + 1, committed))
        waited = monotonic() - self._released_at if self._released_at is not None else 0.0
        arrival = spans.NONE if self._captured else arrival_of(self._outlooks, self._target, waited)
        under_way = self._under_way_seconds(self._clean)
        situation = situation_of(
            self._outlooks,
            tiers.worst(self._shared.record.notices.values(), self._cause),
            remaining_seconds=self._deadline.remaining,
            live_boundary=self._target,
            committed_boundary=committed,
            clean_boundary=self._clean,
            arrival=arrival,
            clean_under_way_seconds=under_way,
            on_node_boundary=self.on_node,
            rescue=found.seconds if (found := self.rescue) is not None else None,
        )
        return plan.choose(situation)

    def gives_way(self, running: Option, found: Plan) -> bool:
        """`running`: the clean slot's option as it was chosen, which has been carried out since. `found`: what would be chosen now."""
        if found.choice not in (Choice.LIVE, Choice.STORE_ONLY):
            return False
        same = next((o for o in found.options if (o.choice, o.boundary) == (Choice.CLEAN, running.boundary)), running)
        # Of a save that was joined is known how long it has been under way.
        seconds = same.seconds if same.joins else spans.less(same.seconds, monotonic() - self._began_at)
        available = found.chosen.available_seconds
        now = dataclasses.replace(
            running, seconds=seconds, available_seconds=available, chance=spans.chance(seconds, available)
        )
        return plan.gives_way(now, found.chosen)

    def takers(self, running: Option) -> Mapping[int, int]:
        """Doomed worker -> survivor, once the live state's upload, chosen as `running` and under way since, had better have a second way; else empty."""
        found = self.rescue
        if found is None:
            return {}
        left = self._deadline.remaining - plan.EXIT_MARGIN_SECONDS
        same = next(
            (o for o in self.now().options if (o.choice, o.boundary) == (running.choice, running.boundary)), running
        )
        began = max(self._began_at, self._arrived_at or 0.0)
        seconds = spans.less(same.seconds, monotonic() - began)
        chance = spans.chance(seconds, left - plan.COMMIT_MARGIN_SECONDS)
        now = dataclasses.replace(running, seconds=seconds, chance=chance)
        return found.takers if plan.needs_rescue(now, found.seconds, left) else {}

    def begins(self, chosen: Plan) -> None:
        """Told once for a choice; the same one again, because the ranks have arrived, changes nothing."""
        option = chosen.chosen
        before = self._report
        if before is not None and not before.outcome:
            if (before.choice, before.boundary) == (option.choice.value, option.boundary):
                return
            self.ended("fell-back")
        log.info("round %d, %.1f s before the deadline: %s", self._number, self._deadline.remaining, chosen.words)
        self._began_at = monotonic()
        self._report = PlanReport(
            round=self._number,
            choice=option.choice.value,
            boundary=option.boundary,
            at=now(),
            deadline=self._deadline.at,
            likely_seconds=_rounded(option.seconds.likely),
            slack_seconds=_rounded(option.slack_seconds),
            chance=round(option.chance, 3),
            why=chosen.words,
            options=tuple(
                PlanOption(
                    o.choice.value,
                    o.boundary,
                    _rounded(o.seconds.likely),
                    _rounded(o.seconds.sure),
                    _rounded(o.slack_seconds),
                    round(o.chance, 3),
                )
                for o in chosen.options
                if o.choice is not Choice.NOTHING
            ),
        )
        self._shared.record.planned(self._report)
        if option.choice is Choice.NOTHING:
            self.ended("nothing")

    def ended(self, outcome: str) -> None:
        """What became of the choice that was begun last; the first word counts."""
        report = self._report
        if report is None or report.outcome:
            return
        took = monotonic() - self._began_at
        left = self._deadline.remaining - plan.EXIT_MARGIN_SECONDS - plan.COMMIT_MARGIN_SECONDS
        self._report = dataclasses.replace(
            report, outcome=outcome, took_seconds=_rounded(took), left_seconds=_rounded(left)
        )
        self._shared.record.planned(self._report)
        metrics = self._shared.metrics
        metrics.plans.labels(report.choice, outcome).inc()
        if report.choice != Choice.NOTHING.value:
            metrics.plan_slack.labels(report.choice).observe(left)
            metrics.plan_error.labels(report.choice).observe(took - report.likely_seconds)
            log.info(
                "round %d: %s at boundary %d is %s after %.1f s, where %.1f s were expected; %.1f s were left",
                self._number, report.choice, report.boundary, outcome, took, report.likely_seconds, left,
            )  # fmt: skip

    @property
    def timings(self) -> dict[str, float]:
        """For the commit record, in seconds."""
        report = self._report
        if report is None:
            return {}
        found = {"planned": report.likely_seconds, "slack": report.slack_seconds}
        if self._arrived_at is not None:
            found["arrival"] = _rounded(max(0.0, self._arrived_at - (self._heard_at or self._arrived_at)))
        return found


def _rounded(seconds: float) -> float:
    return round(min(max(seconds, -spans.LONG_SECONDS), spans.LONG_SECONDS), 3)
