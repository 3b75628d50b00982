"""Our own list and watch (G6): a cache of one kind that stays true whatever the watch does, and a call for everything that changed.

A watch may end, stall, miss, or be told 410; each time the list is read again and compared, so a missed change is found at the latest then.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from holdfast_operator.shell.kube import ApiError, Kube, retry_wait

T = TypeVar("T")
Object = dict[str, Any]
log = logging.getLogger("holdfast.watch")

RESYNC_SECONDS = 300.0


class Cache(Generic[T]):
    """Objects of one kind by uid. `convert` returns None for what does not concern us; `changed` gets every object that appeared, changed or went."""

    def __init__(
        self,
        kube: Kube,
        path: str,
        *,
        query: dict[str, str] | None = None,
        convert: Callable[[Object], T | None],
        changed: Callable[[Object, T], None],
    ) -> None:
        self._kube, self._path, self._query = kube, path, query or {}
        self._convert, self._changed = convert, changed
        self._items: dict[str, tuple[Object, T]] = {}
        self.synced = asyncio.Event()
        """Set after the first complete list: before it nothing may be concluded from an absence."""

    def holds(self, uid: str) -> bool:
        return uid in self._items

    def values(self) -> list[tuple[Object, T]]:
        return list(self._items.values())

    async def run(self) -> None:
        """For ever; ends only by cancellation."""
        tries = 0
        while True:
            try:
                version = await self._relist()
                tries = 0
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RESYNC_SECONDS):
                        while True:
                            version = await self._follow(version)
            except ApiError as e:
                if e.status != 410:
                    log.warning("watch of %s: %s", self._path, e)
                    await retry_wait(tries)
                    tries += 1

    def put(self, item: Object) -> None:
        """A newer object, from a watch or as the answer to our own write: the next decision must not wait for the watch to bring it."""
        uid = item["metadata"]["uid"]
        old = self._items.get(uid)
        if old is not None and _version(item) <= _version(old[0]):
            return
        value = self._convert(item)
        if value is None:
            return
        self._items[uid] = (item, value)
        if old is None or old[1] != value:
            self._changed(item, value)

    def remove(self, item: Object) -> None:
        old = self._items.pop(item["metadata"]["uid"], None)
        if old is not None:
            self._changed(*old)

    async def _relist(self) -> str:
        items, version = await self._kube.list(self._path, self._query)
        present = {i["metadata"]["uid"] for i in items}
        # What we were told of after this list was made is newer than the list: it stays.
        for old, _ in self.values():
            if old["metadata"]["uid"] not in present and _version(old) <= int(version):
                self.remove(old)
        for item in items:
            self.put(item)
        self.synced.set()
        return version

    async def _follow(self, version: str) -> str:
        async for kind, item in self._kube.watch(self._path, self._query, version):
            version = item["metadata"]["resourceVersion"]
            if kind == "DELETED":
                self.remove(item)
            elif kind != "BOOKMARK":
                self.put(item)
        return version


def _version(item: Object) -> int:
    """Resource versions of one kind in one cluster are decimal and grow; the API guarantees it since 1.35 and etcd always did."""
    text = item["metadata"].get("resourceVersion", "0")
    return int(text) if text.isdigit() else 0
