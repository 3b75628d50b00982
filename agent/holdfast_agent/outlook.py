"""What this worker expects of its own part of an emergency save: its measurements (experience.py) applied to what its ranks hold now.

A flush that runs is a measurement too, and the newest: what it has sent so far tells more of the store than any earlier save.
"""

from holdfast_agent import spans
from holdfast_agent.clock import monotonic, now
from holdfast_agent.plan import CONFIDENT
from holdfast_agent.progress import Progress
from holdfast_agent.shared import Shared
from holdfast_api.messages import FlushEstimate
from holdfast_api.peers import Outlook


def outlook_of(shared: Shared, running: Progress | None = None) -> Outlook | None:
    """None as long as the size of the state is not known. `running`: the flush that is under way."""
    s = shared
    size = s.logical_bytes
    if not size or not s.crew.all(lambda r: r.plan is not None):
        return None
    heard = [r.passed_at for r in s.crew if r.passed_at is not None]
    at, based = now().timestamp(), bool(s.base_manifests)
    known = s.experience.estimates
    if running is not None and not running.held_back:
        known = known.under_way(*running.measured, emergency=running.full_speed, at=at)
    full_speed = running is not None and running.full_speed
    limit = s.settings.config.background_bytes_per_second
    return Outlook(
        boundary=min(r.boundary for r in s.crew),
        since_seconds=max(0.0, monotonic() - min(heard)) if heard else 0.0,
        step=known.step_span(at),
        copy=known.copy_span(size, at),
        store=known.store_span(size, at, based=based),
        node=known.node_span(size, at) if s.node is not None else None,
        commit=known.request_span(at),
        beside=known.store_span(size, at, based=based)
        if full_speed
        else known.beside_span(size, at, based=based, limit=limit),
        volume=s.settings.config.local_volume,
        finishes=True,
        part_bytes=size,
        takes_bytes=s.takes_bytes,
        take=known.take_span(size, at),
    )


def expected(shared: Shared) -> FlushEstimate | None:
    """The same in plain numbers, for the operator (condition FlushFits)."""
    outlook, known = outlook_of(shared), shared.experience.estimates
    size = shared.logical_bytes
    if outlook is None or not size:
        return None
    whole = spans.then(outlook.step, outlook.copy, outlook.store, outlook.commit)
    return FlushEstimate(
        bytes=size,
        sent_bytes=round(size * known.sent_share(based=bool(shared.base_manifests))),
        step_seconds=_short(outlook.step.likely),
        copy_seconds=_short(outlook.copy.likely),
        store_seconds=_short(outlook.store.likely),
        commit_seconds=_short(outlook.commit.likely),
        sure_seconds=_short(spans.within(whole, CONFIDENT)),
        node_seconds=_short(outlook.node.likely) if outlook.node is not None else None,
        measured=known.measured,
    )


def _short(seconds: float) -> float:
    """Three digits: what is reported ten times a minute need not say more."""
    return float(f"{seconds:.3g}")
