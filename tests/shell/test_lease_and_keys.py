"""One active operator, and one master key, however many start at once."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_apiserver import FakeApiServer

from holdfast_operator.shell import keys, leader
from holdfast_operator.shell.kube import Kube
from holdfast_operator.shell.leader import Lease, LeaseLost

NS = "holdfast-system"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "RENEW_EVERY", 0.05)
    monkeypatch.setattr(leader, "GIVE_UP_AFTER", 0.5)
    monkeypatch.setattr(leader, "LEASE_SECONDS", 1)


async def test_a_second_operator_waits_until_the_first_gives_the_lease_back(kube: Kube) -> None:
    first, second = Lease(kube, NS, "one"), Lease(kube, NS, "two")
    await first.acquire()
    holding, waiting = asyncio.create_task(first.hold()), asyncio.create_task(second.acquire())
    await asyncio.sleep(1.5)
    assert not waiting.done(), "a lease that is renewed is not taken"
    holding.cancel()
    await first.release()
    await asyncio.wait_for(waiting, 1)


async def test_a_lease_that_is_renewed_no_more_is_taken_over_and_its_holder_ends(
    kube: Kube, api: FakeApiServer
) -> None:
    first, second = Lease(kube, NS, "one"), Lease(kube, NS, "two")
    await first.acquire()
    await asyncio.wait_for(second.acquire(), 10)
    with pytest.raises(LeaseLost, match="could not be renewed"):
        await asyncio.wait_for(first.hold(), 5)
    lease = api.get("leases", leader.NAME, NS)
    assert lease is not None
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("two", 2)


async def test_a_lease_that_somebody_else_has_taken_ends_its_holder(kube: Kube, api: FakeApiServer) -> None:
    first = Lease(kube, NS, "one")
    await first.acquire()

    def take(lease: dict[str, Any]) -> None:
        lease["spec"]["holderIdentity"] = "two"

    api.change("leases", leader.NAME, NS, take)
    with pytest.raises(LeaseLost, match="taken by another"):
        await asyncio.wait_for(first.hold(), 5)


async def test_a_holder_whose_api_server_hangs_ends_before_another_takes_over(
    kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Lease(kube, NS, "one"), Lease(kube, NS, "two")
    await first.acquire()
    ends: list[str] = []

    async def holding() -> None:
        with pytest.raises(LeaseLost):
            await first.hold()
        ends.append("first has ended")

    async def waiting() -> None:
        await second.acquire()
        ends.append("second has begun")

    monkeypatch.setattr(Lease, "_try", _hangs_for("one", Lease._try))
    await asyncio.wait_for(asyncio.gather(holding(), waiting()), 20)
    assert ends == ["first has ended", "second has begun"]


def _hangs_for(identity: str, real: Callable[[Lease], Awaitable[bool]]) -> Callable[[Lease], Awaitable[bool]]:
    async def answer(lease: Lease) -> bool:
        if lease.identity == identity:
            await asyncio.sleep(3600)
        return await real(lease)

    return answer


async def test_a_holder_that_cannot_renew_ends_by_itself(kube: Kube, api: FakeApiServer) -> None:
    first = Lease(kube, NS, "one")
    await first.acquire()
    api.refuse = lambda method, path: (503, "ServiceUnavailable", "x")
    with pytest.raises(LeaseLost, match="could not be renewed"):
        await asyncio.wait_for(first.hold(), 10)


async def test_operators_that_start_at_once_agree_on_one_key(kube: Kube, api: FakeApiServer) -> None:
    found = await asyncio.gather(*(keys.master_key(kube, NS) for _ in range(8)))
    assert len(set(found)) == 1
    assert len(found[0]) == keys.KEY_BYTES
    assert len(api.all("secrets")) == 1


async def test_a_key_that_is_too_short_is_refused_with_its_name(kube: Kube, api: FakeApiServer) -> None:
    api.put("secrets", {"metadata": {"name": keys.NAME}, "data": {"key": base64.b64encode(b"short").decode()}}, NS)
    with pytest.raises(ValueError, match="holdfast-master-key"):
        await keys.master_key(kube, NS)
