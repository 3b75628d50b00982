"""C3: a rank that waits for its image is told where it is being brought, and what it is told first means nothing for what it is given."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast_agent import restoring
from holdfast_agent.peers import LATER
from holdfast_api.ranks import Hello, RestoreBegun, RestoreReady, RestoreWanted, StartFresh
from tests.agent.members import IMAGE, Member, until

OLDER = b"eeeeffffgggghhhhiiii"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(restoring, "LATER_SECONDS", 0.05)


class Waiting:
    """Rank 0 of the worker, as its agent speaks to it."""

    open, rank = True, 0

    def __init__(self, member: Member, *, prepares: bool = True) -> None:
        self.member, self.heard = member, list[Any]()
        self._rank = member.shared.crew.ranks[0]
        self._rank.link = self  # type: ignore[assignment]
        self._rank.hello = Hello(0, 0, 1, 2, 1, {})
        member.restoring.wanted(self._rank, RestoreWanted(prepares=prepares))

    def send(self, message: Any) -> None:
        self.heard.append(message)


def held(member: Member) -> tuple[threading.Event, asyncio.Future[Any]]:
    """A fetch none of whose chunks comes before the event."""
    go = threading.Event()
    member.bucket.before_call = lambda _operation, key: go.wait(30) if "/chunks/" in key else None  # type: ignore[assignment,return-value]
    return go, asyncio.ensure_future(member.fetched())


async def loads(member: Member, choice: int = 1, save: int = 1) -> None:
    """The lead's second stroke."""
    message = replace(member.resolved(choice, save), load=True)
    while (answer := await member.restoring.resolved(message)) is LATER:
        pass
    assert answer.rejection is None


@pytest.mark.parametrize("asks", ["before", "meanwhile", "afterwards"])
async def test_a_rank_that_waits_hears_where_its_image_will_lie_and_gets_it_in_the_second_stroke(
    tmp_path: Path, asks: str
) -> None:
    member = Member(tmp_path)
    rank = Waiting(member) if asks == "before" else None
    go, fetched = held(member)
    await until(lambda: member.restoring._begun)
    if asks == "meanwhile":
        rank = Waiting(member)
    if rank is not None:
        (begun,) = rank.heard
        assert Path(begun.path).stat().st_size >= begun.image_bytes == len(IMAGE), "it is as long already"
    go.set()
    assert (await fetched).rejection is None
    rank = rank or Waiting(member)
    (begun,) = rank.heard
    assert isinstance(begun, RestoreBegun), "not loaded before every member has every byte"
    await loads(member)
    ready = rank.heard[-1]
    assert isinstance(ready, RestoreReady)
    assert (ready.path, ready.image_bytes) == (begun.path, begun.image_bytes)


async def test_a_rank_of_an_older_release_hears_nothing_that_it_does_not_know(tmp_path: Path) -> None:
    member = Member(tmp_path)
    rank = Waiting(member, prepares=False)
    assert (await member.fetched()).rejection is None
    await loads(member)
    assert [type(m) for m in rank.heard] == [RestoreReady]


async def test_a_rank_that_asks_late_is_served_at_once(tmp_path: Path) -> None:
    """Preparing would only hold it up."""
    member = Member(tmp_path)
    assert (await member.fetched()).rejection is None
    await loads(member)
    assert [type(m) for m in Waiting(member).heard] == [RestoreReady]


async def test_after_a_rejection_the_rank_hears_of_the_next_one_alone(tmp_path: Path) -> None:
    """Another worker's: this one had fetched everything."""
    member = Member(tmp_path)
    member.world.saved(1, 2, OLDER)
    rank = Waiting(member)
    assert (await member.fetched(1, 2)).rejection is None
    assert (await member.fetched(2, 1)).rejection is None
    await loads(member, 2, 1)
    first, second, ready = rank.heard
    assert (first.image_bytes, second.image_bytes) == (len(OLDER), len(IMAGE))
    assert isinstance(ready, RestoreReady)
    assert ready.save == 1
    assert (ready.path, ready.image_bytes) == (second.path, second.image_bytes)
    assert Path(ready.path).read_bytes()[: ready.image_bytes] == IMAGE


async def test_what_was_rejected_is_not_told_to_a_rank_that_asks_afterwards(tmp_path: Path) -> None:
    member = Member(tmp_path)
    assert (await member.fetched()).rejection is None
    fresh = replace(member.resolved(2), parent=None, commit="")
    await member.restoring.resolved(fresh)
    assert [m for m in Waiting(member).heard if isinstance(m, RestoreBegun)] == []
    await member.restoring.resolved(replace(fresh, load=True))


async def test_a_fresh_start_after_something_was_prefetched_is_fresh(tmp_path: Path) -> None:
    member = Member(tmp_path)
    rank = Waiting(member)
    await member.prefetched()
    assert [type(m) for m in rank.heard] == [RestoreBegun]
    await member.restoring.resolved(replace(member.resolved(2), parent=None, commit="", load=True))
    assert [type(m) for m in rank.heard] == [RestoreBegun, StartFresh]


async def test_a_chunk_that_does_not_verify_is_never_handed_on(tmp_path: Path) -> None:
    member = Member(tmp_path)
    rank = Waiting(member)
    member.bucket.damage(next(key for key in member.bucket.objects if "/chunks/" in key), b"xxxx")
    assert (await member.fetched()).rejection.of_checkpoint
    await member.restoring.resolved(replace(member.resolved(), load=True))
    assert [type(m) for m in rank.heard] == [RestoreBegun]
