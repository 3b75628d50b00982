"""One active operator: a Lease of its own namespace, taken before anything is watched, and the end of the process when it is lost.

Two active operators would not corrupt anything (status is compare-and-swap, names are deterministic, A2); the Lease keeps them from working twice.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from holdfast_api import codec
from holdfast_operator.shell.kube import ApiError, Kube

log = logging.getLogger("holdfast.leader")
NAME = "holdfast-operator"
LEASE_SECONDS = 15
RENEW_EVERY = 3.0
GIVE_UP_AFTER = 10.0
"""Without a renewal for this long the process ends: well before another may take over."""


class LeaseLost(Exception):
    """The Lease could not be renewed in time, or belongs to another: this process must stop acting."""


@dataclass(slots=True)
class Lease:
    kube: Kube
    namespace: str
    identity: str
    _renewed: float = 0.0
    """Monotonic time at which the last request that succeeded was begun: another's patience counts from then at the latest."""
    _seen: tuple[str, float] = field(default=("", 0.0))
    """Resource version of somebody else's Lease and when (monotonic) we saw it first: clocks of machines are not compared."""

    async def acquire(self) -> None:
        """Waits until the Lease is ours."""
        while True:
            began = time.monotonic()
            try:
                if await self._try():
                    self._renewed = began
                    log.info("this process is the active operator")
                    return
            except ApiError as e:
                log.warning("lease: %s", e)
            await asyncio.sleep(RENEW_EVERY / 2)

    async def hold(self) -> None:
        """Renews for ever. Raises LeaseLost."""
        while True:
            await asyncio.sleep(min(RENEW_EVERY, max(0.0, self._left())))
            began = time.monotonic()
            try:
                async with asyncio.timeout(min(GIVE_UP_AFTER / 2, max(0.0, self._left()))):
                    if not await self._try():
                        raise LeaseLost(f"the Lease {NAME} has been taken by another process")
                self._renewed = began
            except (ApiError, TimeoutError) as e:
                log.warning("lease not renewed: %s", e or "no answer")
                if self._left() <= 0:
                    raise LeaseLost(f"the Lease {NAME} could not be renewed for {GIVE_UP_AFTER:.0f} s") from e

    def _left(self) -> float:
        """Seconds until this process must have ended, whether the API server refuses or hangs."""
        return self._renewed + GIVE_UP_AFTER - time.monotonic()

    async def release(self) -> None:
        """At a clean end: the next one need not wait for it to run out."""
        try:
            lease = await self.kube.get(f"{self._path()}/{NAME}")
            if (lease.get("spec") or {}).get("holderIdentity") == self.identity:
                lease["spec"]["holderIdentity"] = ""
                await self.kube.replace(f"{self._path()}/{NAME}", lease)
        except ApiError as e:
            log.warning("lease not released: %s", e)

    async def _try(self) -> bool:
        try:
            lease = await self.kube.get(f"{self._path()}/{NAME}")
        except ApiError as e:
            if e.status != 404:
                raise
            return await self._write(None)
        holder = (lease.get("spec") or {}).get("holderIdentity") or ""
        if holder not in ("", self.identity) and not self._has_run_out(lease):
            return False
        return await self._write(lease)

    def _has_run_out(self, lease: dict[str, Any]) -> bool:
        version = lease["metadata"]["resourceVersion"]
        if self._seen[0] != version:
            self._seen = (version, time.monotonic())
            return False
        return time.monotonic() - self._seen[1] > float(lease["spec"].get("leaseDurationSeconds") or LEASE_SECONDS)

    async def _write(self, lease: dict[str, Any] | None) -> bool:
        now = codec.format_time(datetime.now(UTC))
        spec = dict((lease or {}).get("spec") or {})
        if spec.get("holderIdentity") != self.identity:
            spec |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        spec |= {"holderIdentity": self.identity, "renewTime": now, "leaseDurationSeconds": LEASE_SECONDS}
        try:
            if lease is None:
                body = {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": NAME},
                    "spec": spec,
                }
                await self.kube.create(self._path(), body)
            else:
                await self.kube.replace(f"{self._path()}/{NAME}", {**lease, "spec": spec})
        except ApiError as e:
            if e.status == 409:
                return False
            raise
        return True

    def _path(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"
