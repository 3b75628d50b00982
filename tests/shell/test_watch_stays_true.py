"""The cache is what the server has, whatever the watch does: ends, errors, silence, missed deletions (fault scenarios 37 and 38)."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fake_apiserver import FakeApiServer

from holdfast_operator.shell import kube as kube_module
from holdfast_operator.shell import watch
from holdfast_operator.shell.kube import ApiError, Kube


class Watched:
    def __init__(self, kube: Kube) -> None:
        self.changes: list[str] = []
        self.cache = watch.Cache(
            kube,
            "/api/v1/nodes",
            convert=lambda o: str(o["spec"].get("v", "")),
            changed=lambda o, v: self.changes.append(v),
        )
        self.task = asyncio.create_task(self.cache.run())

    def names(self) -> dict[str, str]:
        return {o["metadata"]["name"]: v for o, v in self.cache.values()}


@pytest.fixture
async def watched(kube: Kube, api: FakeApiServer) -> AsyncIterator[Watched]:
    api.put("nodes", {"metadata": {"name": "a"}, "spec": {"v": "1"}})
    found = Watched(kube)
    await asyncio.wait_for(found.cache.synced.wait(), 10)
    await until(lambda: bool(api._watches))
    yield found
    found.task.cancel()
    await asyncio.gather(found.task, return_exceptions=True)


async def until(test: Callable[[], bool], within: float = 15) -> None:
    end = time.monotonic() + within
    while not test():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.01)


def node(name: str, value: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"v": value}}


async def test_additions_changes_and_deletions_arrive(watched: Watched, api: FakeApiServer) -> None:
    api.put("nodes", node("b", "2"))
    await until(lambda: watched.names() == {"a": "1", "b": "2"})
    api.remove("nodes", "a")
    await until(lambda: watched.names() == {"b": "2"})


async def test_a_change_that_means_nothing_to_us_wakes_nobody(watched: Watched, api: FakeApiServer) -> None:
    api.change("nodes", "a", "", lambda o: o["metadata"].setdefault("annotations", {}).update(beat="x"))
    api.put("nodes", node("b", "2"))
    await until(lambda: "b" in watched.names())
    assert watched.changes == ["1", "2"]


async def test_a_deletion_that_the_watch_missed_is_found_when_it_is_told_410(
    watched: Watched, api: FakeApiServer
) -> None:
    api.remove("nodes", "a", tell=False)
    api.end_watches(410)
    await until(lambda: watched.names() == {})


async def test_a_watch_that_ends_goes_on_from_where_it_was(watched: Watched, api: FakeApiServer) -> None:
    api.end_watches()
    api.put("nodes", node("b", "2"))
    await until(lambda: "b" in watched.names())
    assert watched.changes == ["1", "2"]


async def test_a_watch_that_goes_silent_is_replaced_and_the_list_read_again(
    api: FakeApiServer, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_module, "WATCH_SILENCE_SECONDS", 0.3)
    found = Watched(kube)
    await asyncio.wait_for(found.cache.synced.wait(), 10)
    api.stall = True
    api.put("nodes", node("b", "2"))
    await until(lambda: "b" in found.names())
    found.task.cancel()


async def test_an_older_version_never_replaces_a_newer_one(watched: Watched, api: FakeApiServer) -> None:
    old = api.get("nodes", "a")
    api.put("nodes", node("a", "2"))
    await until(lambda: watched.names() == {"a": "2"})
    assert old is not None
    watched.cache.put(old)
    assert watched.names() == {"a": "2"}


async def test_a_server_that_is_away_is_an_api_error_and_nothing_else(kube: Kube, api: FakeApiServer) -> None:
    await api.stop()
    with pytest.raises(ApiError) as e:
        await kube.get("/api/v1/nodes/a")
    assert e.value.passing
    await api.start()


async def test_a_delete_of_another_object_of_the_name_is_no_delete(kube: Kube, api: FakeApiServer) -> None:
    api.put("pods", {"metadata": {"name": "p"}, "spec": {}}, "ns")
    await kube.delete("/api/v1/namespaces/ns/pods/p", "another-uid")
    assert api.get("pods", "p", "ns") is not None
