"""`holdfast-notifier`: the process on one machine. Ends with 0 on SIGTERM, 1 when it cannot go on, 2 for wrong arguments.

On SIGTERM nothing is taken back: a machine that shuts down tells its pods so, and that is when its notice counts.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from holdfast_notifier import aws, azure, gcp, settings
from holdfast_notifier.aws import Aws
from holdfast_notifier.azure import Azure
from holdfast_notifier.errors import ApiServerError, NotifierError, WrongSettings
from holdfast_notifier.gcp import Gcp
from holdfast_notifier.kube import Access, Kube, in_cluster
from holdfast_notifier.metrics import Metrics
from holdfast_notifier.serving import serve
from holdfast_notifier.settings import Settings
from holdfast_notifier.watching import RETRY_SECONDS, Cloud, Watcher
from holdfast_notifier.web import Web

log = logging.getLogger("holdfast.notifier")
WAIT_SECONDS = 60
"""How long Google's metadata server holds a call in which nothing changes."""
PROVIDERS = {"aws": "aws", "gce": "gcp", "azure": "azure"}
"""Scheme of `spec.providerID` -> cloud."""
BASES = {"aws": aws.BASE, "gcp": gcp.BASE, "azure": azure.BASE}


def main(argv: Sequence[str] | None = None) -> int:
    told = settings.parse(sys.argv[1:] if argv is None else argv, os.environ)
    logging.basicConfig(
        level=told.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    try:
        return asyncio.run(_until_told(told))
    except NotifierError as e:
        log.error("the notifier ends: %s", e)
        return 1
    except KeyboardInterrupt:
        return 0


async def _until_told(told: Settings) -> int:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    work, stopping = asyncio.create_task(run(told)), asyncio.create_task(stop.wait())
    await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    return 0


async def run(told: Settings) -> None:
    """Returns only by cancellation or NotifierError."""
    metrics = Metrics()
    watcher: Watcher | None = None
    idle = False
    async with contextlib.AsyncExitStack() as stack:
        runner, port = await serve(
            lambda: idle or (watcher is not None and watcher.ready), metrics, told.host, told.port
        )
        stack.push_async_callback(runner.cleanup)
        log.info("serving on port %d", port)
        access = _access(told)
        kube = await stack.enter_async_context(Kube(access, told.node)) if access is not None else None
        node = await _patiently_read(kube) if kube is not None else {}
        name = _cloud_name(told, node)
        metrics.info.labels(told.node, name or "none").set(1)
        if not name:
            provider = str((node.get("spec") or {}).get("providerID", ""))
            log.warning(
                "spec.providerID of the node is %r: no cloud that is known; nothing is watched (--cloud names one)",
                provider,
            )
            idle = True
            await asyncio.Event().wait()
        web = await stack.enter_async_context(Web(told.metadata_url or BASES[name], told.timeout_seconds))
        watcher = Watcher(
            _cloud(name, web, told),
            kube,
            metrics,
            poll_seconds=told.poll_seconds,
            acknowledge=told.azure_acknowledge and name == "azure",
            dry_run=told.dry_run,
        )
        watcher.went_on(node)
        await watcher.run()


def _access(told: Settings) -> Access | None:
    """None: a dry run outside a cluster."""
    if told.api_server:
        return Access(told.api_server.rstrip("/"), told.token_file, told.ca_file)
    try:
        return in_cluster()
    except WrongSettings:
        if told.dry_run:
            return None
        raise


async def _patiently_read(kube: Kube) -> dict[str, Any]:
    """A start while the API server is away waits for it. What it refuses for good is said, and tried again: roles may be mended."""
    wait = RETRY_SECONDS[0]
    while True:
        try:
            return await kube.node()
        except ApiServerError as e:
            log.warning("the node cannot be read yet: %s", e)
            await asyncio.sleep(wait)
            wait = min(2 * wait, RETRY_SECONDS[1])


def _cloud_name(told: Settings, node: dict[str, Any]) -> str:
    """Empty: none that is known."""
    if told.cloud != "auto":
        return told.cloud
    provider = str((node.get("spec") or {}).get("providerID", ""))
    return PROVIDERS.get(provider.partition("://")[0], "")


def _cloud(name: str, web: Web, told: Settings) -> Cloud:
    match name:
        case "aws":
            return Aws(web, ahead_seconds=told.ahead_seconds)
        case "gcp":
            return Gcp(
                web,
                wait_seconds=WAIT_SECONDS,
                preemption_notice_seconds=told.gcp_preemption_notice_seconds,
                maintenance_notice_seconds=told.gcp_maintenance_notice_seconds,
                node_shutdown_seconds=told.node_shutdown_seconds,
            )
        case _:
            return Azure(web)


if __name__ == "__main__":
    sys.exit(main())
