"""The calls to the API server: one PATCH of the own node's status, and, where acknowledging is switched on, one list of its pods. Nothing else is granted."""

import json
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from holdfast_api import moments, names
from holdfast_notifier.errors import ApiServerError, WrongSettings

Object = dict[str, Any]
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_SECONDS = 10.0
QUICK_SECONDS = 2.0
"""An answer that took longer shows nothing of clocks."""
MAX_ANSWER_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and how to be let in."""

    url: str
    token_file: Path | None = None
    """Read again for every request: the kubelet renews it."""
    ca_file: Path | None = None

    def headers(self) -> dict[str, str]:
        if self.token_file is None:
            return {}
        try:
            return {"Authorization": f"Bearer {self.token_file.read_text().strip()}"}
        except OSError as e:
            raise ApiServerError(0, f"the token {self.token_file} cannot be read: {e.strerror}") from e


def in_cluster(environ: Mapping[str, str] = os.environ, account: Path = ACCOUNT) -> Access:
    """Raises WrongSettings outside a pod."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (account / "token").exists():
        raise WrongSettings("no API server: this is no pod with a service account; give --api-server and --token-file")
    return Access(
        f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}", account / "token", account / "ca.crt"
    )


class Kube:
    """Use as an async context manager; every call may raise ApiServerError and nothing else of the network."""

    def __init__(self, access: Access, node: str) -> None:
        self._access = access
        self._node = node
        self._session: aiohttp.ClientSession | None = None
        self.skew_seconds = 0.0
        """This machine's clock minus the API server's, by its newest answer."""

    async def __aenter__(self) -> Self:
        context: ssl.SSLContext | bool = True
        if self._access.ca_file is not None:
            context = ssl.create_default_context(cafile=str(self._access.ca_file))
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(ssl=context)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def node(self) -> Object:
        """The own node. An empty patch changes nothing and answers with the object, so that reading it needs no further permission."""
        return await self._patch({}, {})

    async def publish(self, condition: Object, *, dry_run: bool) -> Object:
        """The node afterwards. Conditions are merged by type: those of others stay."""
        return await self._patch({"status": {"conditions": [condition]}}, {"dryRun": "All"} if dry_run else {})

    async def jobs_pods_here(self) -> list[Object]:
        """Pods of training jobs on this node."""
        query = {"fieldSelector": f"spec.nodeName={self._node}", "labelSelector": names.LABEL_JOB_UID}
        found = await self._request("GET", "/api/v1/pods", None, query)
        return [p for p in found.get("items") or [] if isinstance(p, dict)]

    async def _patch(self, body: Object, query: dict[str, str]) -> Object:
        return await self._request("PATCH", f"/api/v1/nodes/{self._node}/status", body, query)

    async def _request(self, method: str, path: str, body: Object | None, query: dict[str, str]) -> Object:
        assert self._session is not None
        headers = self._access.headers() | {"Content-Type": "application/strategic-merge-patch+json"}
        data = json.dumps(body).encode() if body is not None else None
        began = time.time()
        try:
            async with self._session.request(
                method, self._access.url + path, data=data, params=query, headers=headers, allow_redirects=False
            ) as response:
                self._compare_clocks(response.headers.get("Date", ""), began, time.time())
                raw = await response.content.read(MAX_ANSWER_BYTES)
                while block := await response.content.read(MAX_ANSWER_BYTES):
                    raw += block
                    if len(raw) > MAX_ANSWER_BYTES:
                        raise ApiServerError(response.status, f"{method} {path}: too long an answer")
                if response.status not in (200, 201):
                    raise ApiServerError(response.status, f"{method} {path}: {_words(raw)}")
            found = json.loads(raw)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as e:
            raise ApiServerError(0, f"{method} {path}: {type(e).__name__}: {e}") from e
        if not isinstance(found, dict):
            raise ApiServerError(0, f"{method} {path} was not answered by an API server")
        return found

    def _compare_clocks(self, date: str, began: float, answered: float) -> None:
        """The answer was dated, in whole seconds, somewhere between the two; of a slow one nobody knows where."""
        there = moments.in_text(date)
        if there is not None and answered - began <= QUICK_SECONDS:
            self.skew_seconds = (began + answered) / 2 - (there.timestamp() + 0.5)


def _words(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["message"])[:400]
    except (ValueError, KeyError, TypeError):
        return raw[:200].decode(errors="replace")
