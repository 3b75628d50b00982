"""Who an agent is (H1): TokenReview with our audience; the token names the pod that it was made for."""

import asyncio
import hashlib
import time
from dataclasses import dataclass

from holdfast_api import names
from holdfast_operator.shell.kube import Kube

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
GOOD_SECONDS = 60.0
BAD_SECONDS = 5.0
MAX_CACHED = 20_000
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"


@dataclass(frozen=True, slots=True)
class Caller:
    namespace: str
    pod_name: str
    pod_uid: str


class Tokens:
    """Reviews tokens, remembering answers by digest for a short time: an agent reports several times a second while it evacuates."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._known: dict[bytes, tuple[float, Caller | None]] = {}
        self._pending: dict[bytes, asyncio.Task[Caller | None]] = {}

    async def caller(self, token: str) -> Caller | None:
        """None for a token that is not for us, has expired, or is bound to no pod. Raises ApiError when the API server cannot be asked."""
        digest = hashlib.sha256(token.encode()).digest()
        found = self._known.get(digest)
        if found is not None and found[0] > time.monotonic():
            return found[1]
        task = self._pending.get(digest)
        if task is None:
            task = asyncio.create_task(self._review(token))
            self._pending[digest] = task
            task.add_done_callback(lambda _: self._pending.pop(digest, None))
        caller = await asyncio.shield(task)
        if len(self._known) >= MAX_CACHED:
            self._known.clear()
        self._known[digest] = (time.monotonic() + (GOOD_SECONDS if caller else BAD_SECONDS), caller)
        return caller

    async def _review(self, token: str) -> Caller | None:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [names.TOKEN_AUDIENCE]},
        }
        status = (await self._kube.create(PATH, body)).get("status") or {}
        if not status.get("authenticated") or names.TOKEN_AUDIENCE not in (status.get("audiences") or []):
            return None
        user = status.get("user") or {}
        extra = user.get("extra") or {}
        # system:serviceaccount:<namespace>:<name>
        parts = str(user.get("username", "")).split(":")
        pod_name, pod_uid = (extra.get(_POD_NAME) or [""])[0], (extra.get(_POD_UID) or [""])[0]
        if len(parts) != 4 or parts[:2] != ["system", "serviceaccount"] or not pod_name or not pod_uid:
            return None
        return Caller(parts[2], pod_name, pod_uid)
