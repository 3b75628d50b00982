"""What the parts of one attempt share. Made new for every attempt; the pod's things in it (arena, store, threads) live as long as the agent.

No behaviour of its own beyond small questions: saves.py, rounds.py, claims.py and the others act on it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from holdfast_agent import reuse
from holdfast_agent.arena import Arena
from holdfast_agent.clock import now
from holdfast_agent.costs import Measured
from holdfast_agent.crew import Changes, Crew
from holdfast_agent.experience import Experience
from holdfast_agent.giving import Giving
from holdfast_agent.metrics import Metrics
from holdfast_agent.peers import Mesh
from holdfast_agent.record import Record
from holdfast_agent.settings import Settings
from holdfast_agent.threads import Threads
from holdfast_agent.unfinished import Unfinished
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import CommitRecord, ParentRef, RankManifest
from holdfast_api.messages import AttemptOrder, CheckpointInfo, Exit
from holdfast_store.job import JobStore
from holdfast_store.lineage import Stretch
from holdfast_store.local import LocalTier


@dataclass(slots=True)
class Shared:
    settings: Settings
    order: AttemptOrder
    """Replaced when the operator says the same attempt again, with `may_claim` or another restore order."""
    record: Record
    metrics: Metrics
    threads: Threads
    arena: Arena
    node: LocalTier | None
    crew: Crew
    changes: Changes
    end: Callable[[Exit, str], None]
    """Ends the agent; the first call counts."""
    fail: Callable[[str], None]
    """Ends this attempt in this worker; the agent stays for the next one, if somebody is there to order it."""
    supersede: Callable[[int], None]
    """A claim with a greater number, or another life of this one, was found (A4, A5)."""
    mesh: Mesh = field(init=False)
    """Set right after the peers' handler exists."""
    store: JobStore | None = None
    """None until the bucket could be opened."""
    base: CommitRecord | None = None
    """Newest committed checkpoint on the lineage, of this job's own uid (B4)."""
    base_manifests: dict[int, RankManifest] = field(default_factory=dict)
    """Of the base, for this worker's ranks."""
    last: CheckpointInfo | None = None
    """What would be resumed from now."""
    distrusted: set[str] = field(default_factory=set)
    """Chunks that once failed verification here: written anew (B5)."""
    offered: set[ParentRef | None] = field(default_factory=set)
    """What the lead has said is to be restored; more than one if a worker has found the first bad."""
    history: tuple[Stretch, ...] = ()
    """Of the lineage, as far back as the base's chunks lie; empty until it has been read."""
    made_at: dict[CheckpointRef, datetime] = field(default_factory=dict)
    """Checkpoints of which it is known when they were made."""
    highest_save: int = 0
    incarnation: str | None = None
    """Of the claim (A4), once the lead has told it."""
    sealed_new: bool = False
    """The evacuation left nothing behind: what the ranks held is committed."""
    committing: bool = False
    unfinished: Unfinished | None = None
    """What was left on this node by the attempt before; the agent's."""
    measured: Measured = field(default_factory=Measured)
    """What periodic saves cost (`every: auto`)."""
    takes_bytes: int = 0
    """Room for another worker's part, as it was looked at last (rescue.py)."""
    giving: Giving = field(default_factory=Giving)
    """What other workers may read from this one's slots."""
    experience: Experience = field(default_factory=Experience)
    """How long things take here; the agent's, over all its attempts."""

    @property
    def attempt(self) -> int:
        return self.order.attempt

    @property
    def ranks(self) -> range:
        """Of this worker, in this attempt: in one of fewer workers the same pod has others."""
        return self.order.ranks_of(self.settings.config.worker)

    @property
    def place(self) -> int:
        """Of this worker among the members, whose numbers have gaps where a job goes on with fewer: its ranks follow from it."""
        return self.ranks.start // len(self.ranks)

    @property
    def is_lead(self) -> bool:
        return self.settings.config.worker == min(m.worker for m in self.order.members)

    @property
    def last_boundary(self) -> int:
        """Boundary of the newest commit that this attempt continues or has made; 0 for none."""
        return self.last.boundary if self.last is not None else 0

    @property
    def logical_bytes(self) -> int:
        return sum(r.plan.image_bytes for r in self.crew if r.plan is not None)

    def next_save(self) -> int:
        """Never used again, not even after an abandoned save (B1)."""
        self.highest_save += 1
        return self.highest_save

    def base_has(self, base: CheckpointRef | None, save: CheckpointRef, *, emergency: bool) -> dict[str, CheckpointRef]:
        """Digest -> where, of the base's chunks of this worker's ranks that `save` may refer to (B4, B5). Age does not count in an emergency."""
        if base is None or self.base is None or self.base.ref != base:
            return {}
        manifests = self.base_manifests.values()
        old: frozenset[CheckpointRef] = frozenset()
        if not emergency:
            places = {c.at for m in manifests for c in m.chunks}
            old = reuse.too_old(places, save, history=self.history, made_at=self.made_at, now=now())
        restored = self.record.restored.ref if self.record.restored is not None else None
        doubted = restored is not None and reuse.is_doubted(self.offered, restored, self.order.restore.excluded)
        return reuse.referable(manifests, attempt=self.attempt, distrusted=self.distrusted, doubted=doubted, old=old)
