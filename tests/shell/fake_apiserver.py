"""A Kubernetes API server as far as the operator uses one: objects by path, resource versions, compare-and-swap, watches, graceful deletion of pods.

Faults to order: `refuse` answers requests of a path with an error, `too_old` ends watches with 410, `stall` keeps watches silent. Every request is
recorded, so that a test can compare what was used with what was granted.
"""

import asyncio
import copy
import json
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

Object = dict[str, Any]
KINDS = {
    "pods": ("v1", "Pod"),
    "nodes": ("v1", "Node"),
    "services": ("v1", "Service"),
    "secrets": ("v1", "Secret"),
    "events": ("v1", "Event"),
    "leases": ("coordination.k8s.io/v1", "Lease"),
    "networkpolicies": ("networking.k8s.io/v1", "NetworkPolicy"),
    "trainingjobs": ("holdfast.dev/v1alpha1", "TrainingJob"),
}
_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?\Z"
)


class FakeApiServer:
    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.version = 100
        self.requests: list[tuple[str, str, str, str]] = []
        """(verb, group, resource, namespace) of everything that was asked."""
        self.refuse: Callable[[str, str], tuple[int, str, str] | None] = lambda method, path: None
        self.tokens: dict[str, Object] = {}
        self.stall = False
        self._watches: list[tuple[str, str, asyncio.Queue[Object]]] = []
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        self.end_watches()
        assert self._runner is not None
        await self._runner.cleanup()

    # What tests do to the world

    def put(self, plural: str, item: Object, namespace: str = "") -> Object:
        """Creates or replaces, as a user or a controller would."""
        key = (plural, namespace, item["metadata"]["name"])
        old = self.objects.get(key)
        item = copy.deepcopy(item)
        item["apiVersion"], item["kind"] = KINDS[plural]
        meta = item["metadata"]
        if namespace:
            meta["namespace"] = namespace
        meta.setdefault("uid", old["metadata"]["uid"] if old else str(uuid.uuid4()))
        meta.setdefault("creationTimestamp", _now())
        meta.setdefault("generation", 1)
        return self._store(key, item, "MODIFIED" if old else "ADDED")

    def get(self, plural: str, name: str, namespace: str = "") -> Object | None:
        return self.objects.get((plural, namespace, name))

    def all(self, plural: str) -> list[Object]:
        return [o for (p, _, _), o in sorted(self.objects.items()) if p == plural]

    def change(self, plural: str, name: str, namespace: str, change: Callable[[Object], None]) -> Object:
        item = copy.deepcopy(self.objects[plural, namespace, name])
        change(item)
        return self._store((plural, namespace, name), item, "MODIFIED")

    def remove(self, plural: str, name: str, namespace: str = "", *, tell: bool = True) -> None:
        item = self.objects.pop((plural, namespace, name))
        self.version += 1
        if tell:
            item["metadata"]["resourceVersion"] = str(self.version)
            self._tell(plural, "DELETED", item)

    def end_watches(self, code: int = 0) -> None:
        """Every open watch ends: cleanly, or with this error."""
        for _, _, queue in list(self._watches):
            queue.put_nowait(
                {"type": "ERROR", "object": {"code": code, "reason": "Expired", "message": "too old"}} if code else {}
            )

    # Serving

    def _store(self, key: tuple[str, str, str], item: Object, kind: str) -> Object:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        self.objects[key] = item
        self._tell(key[0], kind, item)
        return item

    def _tell(self, plural: str, kind: str, item: Object) -> None:
        for wanted, selector, queue in self._watches:
            if wanted == plural and not self.stall and _selected(item, selector):
                queue.put_nowait({"type": kind, "object": copy.deepcopy(item)})

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        refusal = self.refuse(request.method, request.path)
        if refusal is not None:
            return _status(*refusal)
        if request.path == "/version":
            return web.json_response({"major": "1", "minor": "36"})
        if request.path in DISCOVERY:
            return web.json_response(DISCOVERY[request.path])
        match = _PATH.match(request.path)
        if match is None:
            return _status(404, "NotFound", request.path)
        group, namespace, plural = match["group"] or "", match["namespace"] or "", match["plural"]
        resource = f"{plural}/{match['sub']}" if match["sub"] else plural
        self.requests.append((_verb(request, match["name"]), group, resource, namespace))
        if plural == "tokenreviews":
            return self._review(await request.json())
        if request.method == "GET" and match["name"]:
            return self._one(plural, namespace, match["name"])
        if request.method == "GET":
            return await (
                self._watch(request, plural) if "watch" in request.query else self._list(request, plural, namespace)
            )
        if request.method == "POST":
            if request.query.get("dryRun") == "All":
                return web.json_response(await request.json(), status=201)
            return self._create(plural, namespace, await request.json())
        if request.method == "PUT":
            return self._replace(plural, namespace, match["name"], match["sub"], await request.json())
        return self._delete(plural, namespace, match["name"], await request.json())

    def _one(self, plural: str, namespace: str, name: str) -> web.Response:
        found = self.objects.get((plural, namespace, name))
        return web.json_response(found) if found else _status(404, "NotFound", f"{plural} {name} not found")

    async def _list(self, request: web.Request, plural: str, namespace: str) -> web.Response:
        selector = request.query.get("labelSelector", "")
        items = [
            o for o in self.all(plural) if _selected(o, selector) and namespace in ("", o["metadata"].get("namespace"))
        ]
        return web.json_response({"kind": "List", "items": items, "metadata": {"resourceVersion": str(self.version)}})

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        queue: asyncio.Queue[Object] = asyncio.Queue()
        entry = (plural, request.query.get("labelSelector", ""), queue)
        since = int(request.query.get("resourceVersion") or 0)
        for item in self.all(plural):
            if int(item["metadata"]["resourceVersion"]) > since and _selected(item, entry[1]) and not self.stall:
                queue.put_nowait({"type": "MODIFIED", "object": item})
        self._watches.append(entry)
        try:
            while event := await queue.get():
                await response.write(json.dumps(event).encode() + b"\n")
                if event["type"] == "ERROR":
                    break
        except ConnectionError:
            pass
        finally:
            self._watches.remove(entry)
        return response

    def _create(self, plural: str, namespace: str, item: Object) -> web.Response:
        meta = item["metadata"]
        if "generateName" in meta:
            meta["name"] = meta.pop("generateName") + uuid.uuid4().hex[:6]
        if (plural, namespace, meta["name"]) in self.objects:
            return _status(409, "AlreadyExists", f"{plural} {meta['name']} already exists")
        return web.json_response(self.put(plural, item, namespace), status=201)

    def _replace(self, plural: str, namespace: str, name: str, sub: str | None, item: Object) -> web.Response:
        old = self.objects.get((plural, namespace, name))
        if old is None:
            return _status(404, "NotFound", name)
        given = item["metadata"].get("resourceVersion")
        if given and given != old["metadata"]["resourceVersion"]:
            return _status(409, "Conflict", "the object has been modified")
        new = {**copy.deepcopy(old), "status": item["status"]} if sub == "status" else item
        return web.json_response(self._store((plural, namespace, name), new, "MODIFIED"))

    def _delete(self, plural: str, namespace: str, name: str, options: Object) -> web.Response:
        old = self.objects.get((plural, namespace, name))
        if old is None:
            return _status(404, "NotFound", name)
        uid = (options.get("preconditions") or {}).get("uid")
        if uid not in (None, old["metadata"]["uid"]):
            return _status(409, "Conflict", "the uid does not match")
        if plural == "pods" and old.get("spec", {}).get("nodeName"):
            grace = old["spec"].get("terminationGracePeriodSeconds", 30)
            due = datetime.now(UTC) + timedelta(seconds=grace)
            item = copy.deepcopy(old)
            item["metadata"] |= {
                "deletionTimestamp": due.isoformat(timespec="seconds"),
                "deletionGracePeriodSeconds": grace,
            }
            return web.json_response(self._store((plural, namespace, name), item, "MODIFIED"))
        self.remove(plural, name, namespace)
        return web.json_response(old)

    def _review(self, review: Object) -> web.Response:
        found = self.tokens.get(review["spec"]["token"], {})
        fits = found and found.get("audience") in review["spec"]["audiences"]
        status = (
            {"authenticated": True, "audiences": [found["audience"]], "user": found["user"]}
            if fits
            else {"authenticated": False}
        )
        return web.json_response({**review, "status": status}, status=201)


def _verb(request: web.Request, name: str | None) -> str:
    if request.method == "GET":
        return "get" if name else ("watch" if "watch" in request.query else "list")
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method]


def _selected(item: Object, selector: str) -> bool:
    labels = item["metadata"].get("labels") or {}
    for term in selector.split(",") if selector else []:
        key, _, value = term.partition("=")
        if key not in labels or (value and labels[key] != value):
            return False
    return True


def _resource(plural: str, kind: str, namespaced: bool) -> Object:
    verbs = ["get", "list", "watch", "create", "patch", "update", "delete"]
    return {"name": plural, "singularName": kind.lower(), "namespaced": namespaced, "kind": kind, "verbs": verbs}


def _group(name: str, version: str) -> Object:
    found = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [found], "preferredVersion": found}


CORE = [_resource("namespaces", "Namespace", False), _resource("events", "Event", True), _resource("pods", "Pod", True)]
JOBS = [_resource("trainingjobs", "TrainingJob", True), _resource("trainingjobs/status", "TrainingJob", True)]
CRDS = [_resource("customresourcedefinitions", "CustomResourceDefinition", False)]
DISCOVERY: dict[str, Object] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": CORE},
    "/apis": {
        "kind": "APIGroupList",
        "groups": [_group("holdfast.dev", "v1alpha1"), _group("apiextensions.k8s.io", "v1")],
    },
    "/apis/holdfast.dev/v1alpha1": {
        "kind": "APIResourceList",
        "groupVersion": "holdfast.dev/v1alpha1",
        "resources": JOBS,
    },
    "/apis/apiextensions.k8s.io/v1": {
        "kind": "APIResourceList",
        "groupVersion": "apiextensions.k8s.io/v1",
        "resources": CRDS,
    },
}


def _status(code: int, reason: str, message: str) -> web.Response:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }
    return web.json_response(body, status=code)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
