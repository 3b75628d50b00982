"""Runs inside training pods, as `sitecustomize`: prints when the agent has taken a notice in, with the time and what it knows from then on.

No code of Holdfast is changed or named. The agent answers `POST /v1/notice` with its report once the order has been carried to where it acts, so the
moment at which that answer is made is the moment at which the agent has the notice; the notices in it are those that the agent has (docs/wire.md).
"""

import json
import sys
import time
from typing import Any

MARK = "benchmark-tap "


def install() -> None:
    from aiohttp import web

    begin = web.Application.__init__

    async def tell(request: web.Request, response: web.StreamResponse) -> None:
        at = time.time()
        if request.path == "/v1/notice" and response.status == 200 and isinstance(response, web.Response):
            report = json.loads(response.body if isinstance(response.body, bytes) else b"{}")
            line = {"at": at, "worker": report["worker"], "notices": report["notices"]}
            sys.stderr.write(f"{MARK}{json.dumps(line)}\n")
            sys.stderr.flush()

    def init(self: web.Application, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.on_response_prepare.append(tell)

    web.Application.__init__ = init  # type: ignore[method-assign]


# The ranks see this file too; they are left alone.
if any(argument.endswith("/holdfast-agent") for argument in sys.orig_argv):
    install()
