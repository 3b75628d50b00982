"""`holdfast-operator`: the controller's process. Ends with 0 on SIGTERM, 1 when it has lost its Lease or cannot go on, 2 for wrong arguments."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from holdfast_operator.shell import settings as settings_module
from holdfast_operator.shell.app import Operator
from holdfast_operator.shell.kube import find_access
from holdfast_operator.shell.settings import Settings

log = logging.getLogger("holdfast")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {k: getattr(record, k) for k in ("job", "namespace", "pod") if hasattr(record, k)}
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def main(argv: Sequence[str] | None = None) -> int:
    settings = settings_module.parse(sys.argv[1:] if argv is None else argv, os.environ)
    _configure_logging(settings)
    try:
        access = find_access()
    except Exception as e:  # the client raises many kinds; all mean the same to whoever starts us
        log.error("no access to a Kubernetes API: %s; run in a cluster, or set KUBECONFIG", e)
        return 1
    try:
        return asyncio.run(_run(Operator(settings, access)))
    except KeyboardInterrupt:
        return 0


async def _run(operator: Operator) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    work = asyncio.create_task(operator.run())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not work.done():
        work.cancel()
    try:
        await work
    except asyncio.CancelledError:
        return 0
    except Exception as e:
        log.error("the operator ends: %s: %s", type(e).__name__, e, exc_info=log.isEnabledFor(logging.DEBUG))
        return 1
    return 1


def _configure_logging(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = "%(asctime)s %(levelname)s %(name)s %(message)s"
    handler.setFormatter(JsonFormatter() if settings.log_json else logging.Formatter(text))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))


if __name__ == "__main__":
    sys.exit(main())
