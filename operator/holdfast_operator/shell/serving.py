"""The HTTP servers of the operator: reports, metrics, health. Each on a port of its own, so that network policies can tell them apart."""

import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from holdfast_operator.shell.metrics import Metrics

STUCK_SECONDS = 180.0
"""Every job has a round at least each 30 s; silence this long means the loop is stuck and the process should be restarted."""


async def serve(app: web.Application, port: int, host: str | None = None) -> tuple[web.AppRunner, int]:
    """Starts a server and returns it with its port (port 0: any free one)."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    addresses = runner.addresses
    return runner, int(addresses[0][1]) if addresses else port


def metrics_app(metrics: Metrics, refresh: Callable[[], None]) -> web.Application:
    async def get(request: web.Request) -> web.Response:
        refresh()
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/metrics", get)
    return app


def health_app(
    active: Callable[[], bool], last_round: Callable[[], float], has_jobs: Callable[[], bool]
) -> web.Application:
    """/healthz: alive, with the age of the last round; /readyz: the active operator (a standby must get no reports)."""

    async def healthz(request: web.Request) -> web.Response:
        age = time.monotonic() - last_round()
        stuck = active() and has_jobs() and age > STUCK_SECONDS
        body = {"active": active(), "last_round_age_seconds": round(age, 3)}
        return web.json_response(body, status=500 if stuck else 200)

    async def readyz(request: web.Request) -> web.Response:
        return web.json_response({"active": active()}, status=200 if active() else 503)

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app
