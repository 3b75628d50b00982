"""What no part has foreseen: a loop that nobody awaits says it, with the traceback in the log, and tries again; it never ends in silence.

BaseException, because a library in Rust that panics raises one that is no Exception.
"""

import asyncio
import logging

from holdfast_api.messages import Blocked, BlockedReason

log = logging.getLogger(__name__)
_NOT_OURS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)


def unexpected(error: BaseException, doing: str) -> Blocked:
    """Logs the error and gives what the report is to say. What is meant for the task or the process is raised again."""
    if isinstance(error, _NOT_OURS):
        raise error
    log.error("unexpected while %s", doing, exc_info=error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Blocked(
        BlockedReason.STORAGE_MISCONFIGURED,
        f"while {doing}: {what}"[:3000]
        + "; check spec.checkpoint.storage (uri, endpoint, region); the agent's log has the traceback; it is tried again every few seconds",
    )
