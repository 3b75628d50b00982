"""/healthz (the process runs), /readyz (the cloud answers, and what it says is published), /metrics; one port, read-only."""

from collections.abc import Callable

from aiohttp import web

from holdfast_notifier.metrics import Metrics


async def serve(ready: Callable[[], bool], metrics: Metrics, host: str | None, port: int) -> tuple[web.AppRunner, int]:
    """The server and its port (port 0: any free one)."""

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        return web.Response(text="ready\n") if ready() else web.Response(text="not ready\n", status=503)

    async def page(request: web.Request) -> web.Response:
        return web.Response(body=metrics.page(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner, int(runner.addresses[0][1])
