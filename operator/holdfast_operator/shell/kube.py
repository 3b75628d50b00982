"""The Kubernetes API as JSON: get, list, create, replace, delete, watch, with time limits on everything.

Configuration comes from the official client (in-cluster or kubeconfig); transfers go over one aiohttp session. Objects stay plain dicts: the operator reads
a few fields of many pods, and turning each into typed models costs more than everything else it does.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from kubernetes import client as official_client
from kubernetes import config as official_config

from holdfast_api import moments

Object = dict[str, Any]
TOKEN_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
REQUEST_SECONDS = 30.0
QUICK_SECONDS = 2.0
"""An answer that took longer shows nothing of clocks."""
CONNECT_SECONDS = 5.0
WATCH_SECONDS = 290
WATCH_SILENCE_SECONDS = 70.0
"""Bookmarks come every 60 s: a watch that is silent for longer has stalled (fault scenario 37)."""
MAX_LINE_BYTES = 8 << 20


class ApiError(Exception):
    """The API server refused, or could not be reached (status 0). `message` is its own, cut."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message[:2000]}")
        self.status, self.reason, self.message = status, reason, message[:4000]

    @property
    def passing(self) -> bool:
        """Worth trying again as it is."""
        return self.status in (0, 429) or self.status >= 500

    @property
    def denied(self) -> bool:
        """By somebody's admission webhook or policy, whatever number it chose: the object need not be wrong."""
        return "denied the request" in self.message or "denied request" in self.message

    @property
    def namespace_ends(self) -> bool:
        """Nothing can be made any more, and nothing need be."""
        return self.status == 403 and "because it is being terminated" in self.message


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and how to be let in."""

    host: str
    ssl_context: ssl.SSLContext | bool
    token: str = ""
    token_file: Path | None = None
    """Read again for every request: the kubelet rotates it."""

    def headers(self) -> dict[str, str]:
        token = self.token_file.read_text().strip() if self.token_file else self.token
        return {"Authorization": f"Bearer {token}"} if token else {}


def find_access() -> Access:
    """In-cluster if there is a service account, else the kubeconfig. Raises kubernetes.config.ConfigException."""
    configuration = official_client.Configuration()
    if TOKEN_FILE.exists():
        official_config.load_incluster_config(client_configuration=configuration)
        token, token_file = "", TOKEN_FILE
    else:
        official_config.load_kube_config(client_configuration=configuration)
        token, token_file = configuration.api_key.get("authorization", "").removeprefix("Bearer "), None
    context: ssl.SSLContext | bool = True
    if configuration.host.startswith("https"):
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return Access(configuration.host.rstrip("/"), context, token, token_file)


class Kube:
    """One session. Use as an async context manager; every method may raise ApiError and nothing else of the network."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._session: aiohttp.ClientSession | None = None
        self.skew_seconds = 0.0
        """This machine's clock minus the API server's, by its newest answer; exact to about a second."""

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, connect=CONNECT_SECONDS)
        connector = aiohttp.TCPConnector(ssl=self._access.ssl_context, limit=100)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str) -> Object:
        return await self._request("GET", path)

    async def create(self, path: str, body: Object, *, dry_run: bool = False) -> Object:
        """`dry_run`: everything but storing it, admission included."""
        return await self._request("POST", path, body, query={"dryRun": "All"} if dry_run else None)

    async def replace(self, path: str, body: Object) -> Object:
        """With the resourceVersion in `body`: compare-and-swap, 409 if somebody was faster."""
        return await self._request("PUT", path, body)

    async def delete(self, path: str, uid: str = "") -> None:
        """Graceful. Gone already, or another object of the name: fine. Without `uid` whatever has the name goes."""
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", **({"preconditions": {"uid": uid}} if uid else {})}
        try:
            await self._request("DELETE", path, body)
        except ApiError as e:
            if e.status not in (404, 409):
                raise

    async def list(self, path: str, query: dict[str, str]) -> tuple[list[Object], str]:
        """All items, page by page, and the resourceVersion to watch from."""
        items: list[Object] = []
        position = ""
        while True:
            page = await self._request(
                "GET", path, query={**query, "limit": "500", **({"continue": position} if position else {})}
            )
            items.extend(page.get("items") or [])
            position = page["metadata"].get("continue", "")
            if not position:
                return items, page["metadata"]["resourceVersion"]

    async def watch(self, path: str, query: dict[str, str], version: str) -> AsyncIterator[tuple[str, Object]]:
        """(type, object) until the server ends the watch. Raises ApiError(410) when `version` is too old, ApiError(0) when it stalls."""
        assert self._session is not None
        params = {
            **query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=WATCH_SILENCE_SECONDS)
        try:
            async with self._session.get(
                self._access.host + path, params=params, headers=self._access.headers(), timeout=timeout
            ) as response:
                if response.status != 200:
                    raise _error(response.status, await response.text())
                async for line in _lines(response.content):
                    yield _event(line)
        except (aiohttp.ClientError, TimeoutError, OSError) as e:
            raise ApiError(0, "Unreachable", f"{type(e).__name__}: {e}") from e

    async def _request(
        self, method: str, path: str, body: Object | None = None, query: dict[str, str] | None = None
    ) -> Object:
        assert self._session is not None
        began = time.time()
        try:
            async with self._session.request(
                method, self._access.host + path, json=body, params=query, headers=self._access.headers()
            ) as response:
                self._compare_clocks(response.headers.get("Date", ""), began, time.time())
                text = await response.text()
                if response.status >= 400:
                    raise _error(response.status, text)
                found = json.loads(text)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as e:
            raise ApiError(0, "Unreachable", f"{type(e).__name__}: {e}") from e
        if not isinstance(found, dict):
            raise ApiError(0, "NotAnObject", f"{method} {path} was not answered by an API server")
        return found

    def _compare_clocks(self, date: str, began: float, answered: float) -> None:
        """The answer was dated, in whole seconds, somewhere between the two; of a slow one nobody knows where."""
        there = moments.in_text(date)
        if there is not None and answered - began <= QUICK_SECONDS:
            self.skew_seconds = (began + answered) / 2 - (there.timestamp() + 0.5)


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """aiohttp's own line reader refuses long lines; an object may have a megabyte."""
    buffer = bytearray()
    async for block in stream.iter_any():
        buffer += block
        if len(buffer) > MAX_LINE_BYTES:
            raise ApiError(0, "TooLong", "a watch event of more than 8 MiB")
        *lines, rest = bytes(buffer).split(b"\n")
        buffer = bytearray(rest)
        for line in lines:
            if line:
                yield line


def _event(line: bytes) -> tuple[str, Object]:
    event = json.loads(line)
    if event["type"] == "ERROR":
        status = event["object"]
        raise ApiError(int(status.get("code", 0)), status.get("reason", ""), status.get("message", ""))
    return event["type"], event["object"]


def _error(status: int, text: str) -> ApiError:
    try:
        found = json.loads(text)
        return ApiError(status, str(found.get("reason", "")), str(found.get("message", "")))
    except (ValueError, AttributeError):
        return ApiError(status, "", text[:500])


async def retry_wait(tries: int) -> None:
    """0.5, 1, 2, … at most 15 s."""
    await asyncio.sleep(min(15.0, 0.5 * 2.0 ** min(tries, 6)))
