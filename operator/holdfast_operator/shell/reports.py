"""The report server: `POST /v1/reports` from agents (H1). Refuses early and bounded; what it accepts goes into the report book."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from aiohttp import web

from holdfast_api import codec
from holdfast_api.errors import ContractError
from holdfast_api.messages import AgentReport
from holdfast_operator.core.observed import PodSeen
from holdfast_operator.shell.kube import ApiError
from holdfast_operator.shell.reportbook import ReportBook
from holdfast_operator.shell.tokens import Caller, Tokens

log = logging.getLogger("holdfast.reports")
MAX_BODY_BYTES = 1 << 20

FindPod = Callable[[str], tuple[str, str, PodSeen] | None]
"""Pod uid -> (namespace, job uid, pod) of a pod that the operator made; None for any other."""


class ReportServer:
    """`accepted` is called in the event loop for each report that says something new, with the job's uid."""

    def __init__(self, tokens: Tokens, book: ReportBook, find_pod: FindPod, accepted: Callable[[str], None]) -> None:
        self._tokens, self._book, self._find_pod, self._accepted = tokens, book, find_pod, accepted

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/reports", self._post)
        return app

    async def _post(self, request: web.Request) -> web.Response:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not token or len(token) > 16_384:
            return web.Response(status=401, text="send the projected token as Authorization: Bearer")
        try:
            caller = await self._tokens.caller(token)
        except ApiError as e:
            log.warning("tokens cannot be reviewed: %s", e)
            return web.Response(status=503, text="tokens cannot be reviewed now")
        if caller is None:
            return web.Response(status=401, text="the token is not valid for this audience, or not bound to a pod")
        try:
            report = codec.from_json(AgentReport, await request.read(), max_bytes=MAX_BODY_BYTES)
        except ContractError as e:
            return web.Response(status=400, text=str(e)[:500])
        refusal = self._refusal(caller, report)
        if refusal:
            log.warning("report refused: %s", refusal, extra={"pod": caller.pod_name, "namespace": caller.namespace})
            return web.Response(status=403, text=refusal)
        if self._book.add(report, datetime.now(UTC)):
            self._accepted(report.job_uid)
        return web.Response(status=204)

    def _refusal(self, caller: Caller, report: AgentReport) -> str:
        """Why this pod may not say this; empty if it may: a pod speaks for itself and its own worker only."""
        if caller.pod_uid != report.pod_uid:
            return "the report speaks for another pod than its token"
        found = self._find_pod(report.pod_uid)
        if found is None:
            return "the pod is not one of a TrainingJob, or not known yet; send it again"
        namespace, job_uid, pod = found
        if (namespace, pod.name) != (caller.namespace, caller.pod_name):
            return "the token belongs to another pod"
        if (job_uid, pod.worker) != (report.job_uid, report.worker):
            return "the report speaks for another job or worker than its pod"
        return ""
