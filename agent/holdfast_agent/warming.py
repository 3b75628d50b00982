"""Connections to the store are opened before they are needed: while the ranks run to their boundary, not when the first chunk waits (design.md, section 3).

A connection over TLS costs two or three round trips, and a server that lets through a few new ones at a time costs more. One small question on each, at
the same time, opens them; nobody waits for the answers.
"""

import logging
from concurrent.futures import ThreadPoolExecutor

from holdfast_agent.clock import monotonic
from holdfast_agent.pace import FIRST_REQUESTS
from holdfast_api import layout
from holdfast_store.errors import StoreError
from holdfast_store.job import JobStore

log = logging.getLogger(__name__)
MOST_CONNECTIONS = 32
AGAIN_AFTER_SECONDS = 30.0
"""Idle connections stay open longer than that."""
_LOCAL = ("file://", "memory://")


class Warming:
    """Of one attempt. Called on the event loop's thread; never raises, never waits."""

    def __init__(self) -> None:
        self._at = float("-inf")

    def begin(self, store: JobStore | None, attempt: int, pool: ThreadPoolExecutor, *, requests: int) -> int:
        """How many connections are asked for: as many as uploads were last found good at once, unless it was done a moment ago."""
        if store is None or store.bucket.uri.startswith(_LOCAL) or monotonic() - self._at < AGAIN_AFTER_SECONDS:
            return 0
        self._at = monotonic()
        count = min(MOST_CONNECTIONS, max(FIRST_REQUESTS, requests))
        once = store.until(0.0)
        for _ in range(count):
            try:
                pool.submit(_ask, once, attempt)
            except RuntimeError:  # the agent ends
                return 0
        return count


def _ask(store: JobStore, attempt: int) -> None:
    try:
        store.bucket.head(store.prefix + layout.claim_key(attempt))
    except StoreError as e:
        log.debug("a connection could not be warmed: %s", e)  # whoever needs it will hear the same
