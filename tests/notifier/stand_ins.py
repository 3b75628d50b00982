"""Stand-ins of the metadata services of three clouds and of the one call to an API server, over real HTTP on a free port: they insist on what the real ones
insist on (session tokens, headers, versions), and do on order what those do when they are ill.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web

Object = dict[str, Any]
Fault = Callable[[web.Request], Any]


class StandIn:
    """`fault`, where set, is asked first; what it returns is the answer, None goes on as usual. `calls` lists "METHOD path"."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fault: Fault | None = None
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self, host: str = "127.0.0.1") -> AsyncIterator[str]:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._any)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, host, 0).start()
        self.url = f"http://{host}:{runner.addresses[0][1]}"
        try:
            yield self.url
        finally:
            await runner.cleanup()

    async def _any(self, request: web.Request) -> web.StreamResponse:
        self.calls.append(f"{request.method} {request.path}")
        if self.fault is not None:
            answer = self.fault(request)
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer is not None:
                assert isinstance(answer, web.StreamResponse)
                return answer
        response = await self.answer(request)
        if (
            "gzip" in request.headers.get("Accept-Encoding", "")
            and isinstance(response, web.Response)
            and response.body
        ):
            response.enable_compression(web.ContentCoding.gzip)  # as any server may to whoever says that he reads it
        return response

    async def answer(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError


class Imds(StandIn):
    """EC2's instance metadata, version 2. `said` is path -> text; everything else is 404."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, str] = {}
        self.lifetime = "21600"
        self._tokens: set[str] = set()
        self._given = 0

    def expire(self) -> None:
        self._tokens.clear()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/latest/api/token":
            if request.method != "PUT" or not request.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "").isdigit():
                return web.Response(status=400)
            self._given += 1
            token = f"AQAEA{self._given}=="
            self._tokens.add(token)
            return web.Response(text=token, headers={"X-aws-ec2-metadata-token-ttl-seconds": self.lifetime})
        if request.headers.get("X-aws-ec2-metadata-token") not in self._tokens:
            return web.Response(status=401, text="401 - Unauthorized")
        if request.path not in self.said:
            return web.Response(status=404, text="404 - Not Found")
        return web.Response(text=self.said[request.path])


class MetadataServer(StandIn):
    """Compute Engine's. `set` changes a value and ends the calls that wait for it."""

    def __init__(self) -> None:
        super().__init__()
        base = "/computeMetadata/v1/instance/"
        self.said = {base + "preempted": "FALSE", base + "maintenance-event": "NONE"}
        self._changes = dict.fromkeys(self.said, 0)
        self._changed = asyncio.Condition()
        self.waiting = 0

    async def set(self, name: str, value: str) -> None:
        path = f"/computeMetadata/v1/instance/{name}"
        async with self._changed:
            self.said[path] = value
            self._changes[path] += 1
            self._changed.notify_all()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Metadata-Flavor") != "Google" or "X-Forwarded-For" in request.headers:
            return web.Response(status=403, text="Missing Metadata-Flavor:Google header.")
        if request.path not in self.said:
            return web.Response(status=404, headers={"Metadata-Flavor": "Google"})
        if request.query.get("wait_for_change") == "true":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(float(request.query.get("timeout_sec", "3600"))), self._changed:
                    self.waiting += 1
                    try:
                        await self._changed.wait_for(
                            lambda: self._etag(request.path) != request.query.get("last_etag", "0")
                        )
                    finally:
                        self.waiting -= 1
        headers = {"Metadata-Flavor": "Google", "ETag": self._etag(request.path)}
        return web.Response(text=self.said[request.path], headers=headers)

    def _etag(self, path: str) -> str:
        return f"e{self._changes[path]:x}"


class ScheduledEvents(StandIn):
    """Azure's. `events` is what it announces; `started` what has been acknowledged."""

    def __init__(self, name: str = "aks-spot-12345678-vmss_3") -> None:
        super().__init__()
        self.name, self.events, self.started = name, list[Object](), list[str]()

    def announce(self, kind: str, *, at: str, event_id: str = "40B7BD88", resources: list[str] | None = None) -> None:
        self.events.append(
            {
                "EventId": event_id,
                "EventType": kind,
                "ResourceType": "VirtualMachine",
                "Resources": resources if resources is not None else [self.name],
                "EventStatus": "Scheduled",
                "NotBefore": at,
                "Description": "",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            }
        )

    def start(self) -> None:
        """The time is empty from then on."""
        for event in self.events:
            event |= {"EventStatus": "Started", "NotBefore": ""}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Metadata") != "true" or "X-Forwarded-For" in request.headers:
            return web.json_response({"error": "Bad request. Required metadata header not specified"}, status=400)
        if "api-version" not in request.query:
            return web.json_response({"error": "Bad request. api-version is invalid"}, status=400)
        if request.path == "/metadata/instance/compute/name":
            return web.Response(text=self.name) if self.name else web.Response(status=404)
        if request.path != "/metadata/scheduledevents":
            return web.Response(status=404)
        if request.method == "POST":
            wanted = [r["EventId"] for r in (await request.json())["StartRequests"]]
            if not set(wanted) <= {e["EventId"] for e in self.events}:
                return web.json_response({"error": "no such event"}, status=400)
            self.started += wanted
            return web.Response(status=200)
        return web.json_response({"DocumentIncarnation": len(self.events), "Events": self.events})


class ApiServer(StandIn):
    """What the notifier asks of Kubernetes: strategic merge of its node's status, with a bearer token; pods of the node."""

    def __init__(self, provider: str = "aws:///eu-west-1a/i-0123456789abcdef0") -> None:
        super().__init__()
        kubelets = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "kubelet is posting ready status",
        }
        self.node: Object = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "n1", "resourceVersion": "1"},
            "spec": {"providerID": provider},
            "status": {"conditions": [kubelets]},
        }
        self.pods: list[Object] = []
        self.token = "the-token"
        self.date = ""
        self.writes = 0

    def condition(self) -> Object | None:
        found = [c for c in self.node["status"]["conditions"] if c["type"] == "HoldfastDisruption"]
        return found[0] if found else None

    def announced(self) -> list[Object]:
        found = self.condition()
        return json.loads(found["message"])["notices"] if found is not None else []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        headers = {"Date": self.date} if self.date else {}
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"kind": "Status", "message": "Unauthorized", "code": 401}, status=401)
        if request.method == "GET" and request.path == "/api/v1/pods":
            assert request.query["fieldSelector"] == "spec.nodeName=n1"
            return web.json_response({"kind": "PodList", "items": self.pods}, headers=headers)
        if request.method != "PATCH" or request.path != "/api/v1/nodes/n1/status":
            return web.json_response({"kind": "Status", "message": "forbidden", "code": 403}, status=403)
        assert request.content_type == "application/strategic-merge-patch+json"
        merged = json.loads(json.dumps(self.node))
        for condition in (json.loads(await request.text()).get("status") or {}).get("conditions", []):
            others = [c for c in merged["status"]["conditions"] if c["type"] != condition["type"]]
            merged["status"]["conditions"] = [*others, condition]
        if request.query.get("dryRun") != "All" and merged != self.node:
            self.node = merged
            self.writes += 1
        return web.json_response(merged, headers=headers)


async def eventually(test: Callable[[], Any], what: str = "") -> None:
    """Waits until it is true; how long that takes is nobody's business, within reason."""
    async with asyncio.timeout(60):
        while not test():
            await asyncio.sleep(0.01)
