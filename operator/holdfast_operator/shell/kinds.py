"""kopf serves our own kind (G6): it lists and watches TrainingJobs and tells us of each; nothing else. It adds no finalizer and no annotation (D7)."""

import asyncio
import contextlib
import copy
import socket
import threading
import typing
from collections.abc import Callable
from typing import Any

import kopf

from holdfast_api import names

STOP_SECONDS = 5.0


def registry(*, changed: Callable[[dict[str, Any]], None], gone: Callable[[str], None]) -> kopf.OperatorRegistry:
    """Event handlers only: handlers of other sorts would make kopf write into the object. Call it in the loop in which `changed` and `gone` are to run."""
    loop = asyncio.get_running_loop()
    found = kopf.OperatorRegistry()

    @kopf.on.login(registry=found)
    def log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=found, id="trainingjob")
    async def on_event(event: Any, body: Any, **_: Any) -> None:
        item = copy.deepcopy(dict(event["object"]))  # kopf keeps its own, in another thread
        if event["type"] == "DELETED":
            loop.call_soon_threadsafe(gone, item["metadata"]["uid"])
        else:
            loop.call_soon_threadsafe(changed, item)

    return found


def settings() -> kopf.OperatorSettings:
    """See docs/operator.md for why each is what it is."""
    s = kopf.OperatorSettings()
    s.posting.enabled = False
    s.scanning.disabled = True
    s.peering.standalone = True
    s.persistence.finalizer = f"{names.GROUP}/finalizer"
    s.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=names.GROUP)
    s.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=names.GROUP)
    s.networking.request_timeout = 30
    s.networking.connect_timeout = 5
    s.watching.server_timeout = 290
    s.watching.client_timeout = 300
    s.watching.inactivity_timeout = 70
    s.queueing.worker_limit = 100
    return s


async def run(reg: kopf.OperatorRegistry, watch_namespace: str) -> None:
    """For ever; ends by cancellation, or with RuntimeError if kopf ends by itself.

    kopf has a thread and an event loop of its own: in ours it would take the signals, and cancel every task that it did not start when it stops.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()
    stop = threading.Event()

    def tell(error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result(error)

    def serve() -> None:
        error: BaseException | None = None
        try:
            asyncio.run(_operator(reg, watch_namespace, stop))
        except BaseException as e:  # whatever ends kopf must end the process too
            error = e
        with contextlib.suppress(RuntimeError):  # our loop is closed already
            loop.call_soon_threadsafe(tell, error)

    threading.Thread(target=serve, name="kopf", daemon=True).start()
    try:
        error = await asyncio.shield(ended)
        raise RuntimeError("kopf has ended") from error
    finally:
        stop.set()
        if not ended.done():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended, STOP_SECONDS)


async def _operator(reg: kopf.OperatorRegistry, watch_namespace: str, stop: threading.Event) -> None:
    await kopf.operator(
        registry=reg,
        settings=settings(),
        standalone=True,
        clusterwide=not watch_namespace,
        namespaces=[watch_namespace] if watch_namespace else [],
        stop_flag=stop,
        # Given, because kopf would make one of the user's name, and in a container that user has none.
        identity=typing.cast(Any, f"{names.MANAGED_BY}@{socket.gethostname()}"),
    )
