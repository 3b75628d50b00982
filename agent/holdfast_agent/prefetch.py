"""Before the claim: what would be continued is fetched while Python imports torch, the bucket is probed, the old attempt is being sealed (design 4, A3).

The lead looks and tells the members, rather than each member looking for itself: one walk through the store instead of one per worker, one place where pins,
verdicts and rejections are applied, and all members fetch the same checkpoint. Nothing depends on the message: it claims nothing, writes nothing in the
store, and a member that misses it fetches after the claim as ever. A commit that appears meanwhile (the old attempt's emergency save) is told as well;
what two checkpoints share by content is not fetched again (contents.py).
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from holdfast_agent.clock import Deadline
from holdfast_agent.errors import AgentError
from holdfast_agent.shared import Shared
from holdfast_api import peers
from holdfast_api.manifest import ParentRef
from holdfast_store.errors import StoreError
from holdfast_store.resolve import Candidate

log = logging.getLogger(__name__)
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 8.0
"""Between two looks: a look is a few requests, and a handover may take minutes."""
TELL_SECONDS = 5.0


class Scout:
    """The lead's."""

    def __init__(self, shared: Shared, look: Callable[[], Awaitable[Candidate | None]]) -> None:
        self._shared = shared
        self._look = look
        self._telling: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def ahead(self) -> AsyncIterator[None]:
        """Looks and tells while the body asks what else has to be known, and waits for the permission to claim."""
        looking = asyncio.ensure_future(self._keep_looking())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def tell(self, found: Candidate | None) -> None:
        """Sent to every member at once; nobody waits for it."""
        if found is None:
            return
        task = asyncio.ensure_future(self._tell(found))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _keep_looking(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                self.tell(
                    await self._look()
                )  # again, also if it is the same: a member may have joined or failed meanwhile
            except StoreError as e:
                log.info("nothing is fetched ahead: %s", e)  # whoever claims will say so where it counts
            except Exception as e:
                log.warning("nothing is fetched ahead: %s: %s", type(e).__name__, e)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _tell(self, found: Candidate) -> None:
        r = found.record
        message = peers.Prefetch(self._shared.attempt, ParentRef(r.job_uid, r.attempt, r.save), found.text)
        answers = await self._shared.mesh.ask_all(message, until=Deadline.after(TELL_SECONDS))
        for worker, answer in answers.items():
            if isinstance(answer, AgentError):
                log.debug("worker %d fetches nothing ahead: %s", worker, answer)
