"""kopf serves our own kind (G6): it lists and watches TrainingJobs and tells us of each; nothing else. It adds no finalizer and no annotation (D7)."""

import asyncio
import socket
import typing
from collections.abc import Callable
from typing import Any

import kopf

from holdfast_api import names


def registry(*, changed: Callable[[dict[str, Any]], None], gone: Callable[[str], None]) -> kopf.OperatorRegistry:
    """Event handlers only: handlers of other sorts would make kopf write into the object. `changed` and `gone` run in kopf's loop, which is ours."""
    found = kopf.OperatorRegistry()

    @kopf.on.login(registry=found)
    def log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=found, id="trainingjob")
    async def on_event(event: Any, body: Any, **_: Any) -> None:
        # The body is kopf's live view of the object; ours is a plain copy.
        item = dict(event["object"])
        if event["type"] == "DELETED":
            gone(item["metadata"]["uid"])
        else:
            changed(item)

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


class Stopped(Exception):
    """kopf has been told to stop: it takes SIGTERM and SIGINT for itself once it runs."""


async def run(reg: kopf.OperatorRegistry, watch_namespace: str, ready: asyncio.Event) -> None:
    """For ever; ends by cancellation or with Stopped."""
    await kopf.operator(
        registry=reg,
        settings=settings(),
        standalone=True,
        clusterwide=not watch_namespace,
        namespaces=[watch_namespace] if watch_namespace else [],
        ready_flag=ready,
        # Given, because kopf would make one of the user's name, and in a container that user has none.
        identity=typing.cast(Any, f"{names.MANAGED_BY}@{socket.gethostname()}"),
    )
    raise Stopped
