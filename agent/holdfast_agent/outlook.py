"""What this worker expects of its own part of an emergency save: its measurements (experience.py) applied to what its ranks hold now."""

from holdfast_agent.clock import monotonic
from holdfast_agent.shared import Shared
from holdfast_api.peers import Outlook


def outlook_of(shared: Shared) -> Outlook | None:
    """None as long as the size of the state is not known."""
    s = shared
    size = s.logical_bytes
    if not size or not s.crew.all(lambda r: r.plan is not None):
        return None
    heard = [r.passed_at for r in s.crew if r.passed_at is not None]
    return Outlook(
        boundary=min(r.boundary for r in s.crew),
        since_seconds=max(0.0, monotonic() - min(heard)) if heard else 0.0,
        step=s.experience.step(),
        copy=s.experience.copy(size),
        store=s.experience.store(size, based=bool(s.base_manifests)),
        node=s.experience.node(size) if s.node is not None else None,
        commit=s.experience.request(),
        beside=s.experience.beside(size, based=bool(s.base_manifests)),
        volume=s.settings.config.local_volume,
    )
