"""The two loops that nobody awaits, looking for the checkpoint to continue and opening the store: whatever goes wrong is said, and tried again."""

import asyncio
import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from lone import UID, Lone
from worlds import World, ref

from holdfast_agent import claims, prefetch, run
from holdfast_agent.claims import Claims
from holdfast_agent.clock import now
from holdfast_agent.run import Agent
from holdfast_api import codec, layout, peers
from holdfast_api.messages import Blocked, Rejection, RestoreOrder
from holdfast_store.memory import MemoryBucket

PANIC = type("PanicException", (BaseException,), {})
ERRORS = [ValueError("Invalid endpoint: http://"), LookupError("no such thing"), PANIC("called unwrap")]
IDS = ["a library's own error", "a mistake of ours", "a panic"]


class Member(Lone):
    """Has every byte at once."""

    async def peer(self, message: object) -> object:
        return peers.Fetched(self.attempt, 0) if isinstance(message, peers.Resolved) else await super().peer(message)


def words(said: list[Blocked | None]) -> str:
    return " ".join(b.message for b in said if b is not None)


@pytest.mark.parametrize("error", ERRORS, ids=IDS)
async def test_the_lead_says_an_error_that_nobody_has_foreseen_and_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    monkeypatch.setattr(claims, "RETRY_SECONDS", 0.02)
    lone, said = Member(tmp_path), []
    record = lone.shared.record
    record.claim = None
    record.on_change = lambda: said.append(record.blocked)
    strikes = iter([error])

    def fail_once(*_: object) -> None:
        for e in strikes:
            raise e

    lone.bucket.before_call = fail_once
    lead = Claims(lone.shared)
    lead._incarnation = "life"
    lead._scout._look = asyncio.Event().wait  # type: ignore[assignment]  # who looks ahead would be struck in the lead's place, if it came first
    task = asyncio.ensure_future(lead.run())
    await lone.until(lambda: record.claim is not None, f"the attempt is claimed; {task}")
    assert str(error) in words(said)
    assert record.blocked is None
    assert any(r.exc_info for r in caplog.records), "the traceback is in the log"
    task.cancel()
    await lone.close()


async def test_nothing_is_claimed_before_the_operator_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3: the old attempt may be saving its last state, and a claim that is made too early leaves that behind (A7)."""
    monkeypatch.setattr(prefetch, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(prefetch, "LONGEST_PAUSE_SECONDS", 0.01)
    lone, looks = Member(tmp_path), []
    claim = lone.store.prefix + layout.claim_key(1)
    lone.bucket.delete([claim])
    lone.shared.record.claim = None
    lone.shared.order = dataclasses.replace(lone.shared.order, may_claim=False)
    lead = Claims(lone.shared)
    look = lead._scout._look

    async def noted() -> object:
        looks.append(claim in lone.bucket.objects)
        lone.shared.changes.bump()
        return await look()

    lead._scout._look = noted  # type: ignore[assignment]
    task = asyncio.ensure_future(lead.run())
    await lone.until(lambda: len(looks) > 20, "it goes on looking for what it would continue")
    assert claim not in lone.bucket.objects
    assert lone.shared.record.claim is None
    lone.shared.order = dataclasses.replace(lone.shared.order, may_claim=True)
    lone.shared.changes.bump()
    await lone.until(lambda: lone.shared.record.claim is not None, "now it is")
    assert claim in lone.bucket.objects
    assert not any(looks)
    task.cancel()
    await lone.close()


@pytest.mark.parametrize("error", ERRORS, ids=IDS)
async def test_an_error_that_nobody_has_foreseen_while_the_store_is_opened_is_said_and_it_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(run, "RETRY_SECONDS", 0.02)
    lone, strikes, said = Lone(tmp_path), iter([error]), []

    def open_bucket(*_: object, **__: object) -> MemoryBucket:
        for e in strikes:
            raise e
        return MemoryBucket()

    monkeypatch.setattr(run, "open_bucket", open_bucket)
    settings = lone.shared.settings
    config = dataclasses.replace(settings.config, memory_dir=str(tmp_path / "memory"), local_dir="")
    agent = Agent(dataclasses.replace(settings, config=config))
    agent._reporter = SimpleNamespace()
    agent._record.on_change = lambda: said.append(agent._record.blocked)
    await agent._open_store()
    assert agent._store is not None
    assert str(error) in words(said)
    assert agent._record.blocked is None
    await lone.close()


class Refusing(Lone):
    """The second member: refuses the only checkpoint until it is mended."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[peers.Resolved] = []
        self.mended = False

    async def peer(self, message: object) -> object:
        assert isinstance(message, peers.Resolved)
        self.asked.append(message)
        bad = Rejection(1, 1, "chunk 0 does not fit its digest", True, now())
        return peers.Fetched(self.attempt, 0, None if self.mended else bad)


async def test_a_refused_checkpoint_is_offered_again_under_another_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C3: only then a member that has refused it looks again, which it must once the store was mended."""
    monkeypatch.setattr(claims, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(claims, "LOOK_AGAIN_SECONDS", 0.0)
    lone = Refusing(tmp_path)
    World(lone.bucket, UID).saved(1, 1)
    lone.shared.order = dataclasses.replace(lone.shared.order, attempt=2)
    lone.shared.record.claim = None
    task = asyncio.ensure_future(Claims(lone.shared).run())
    await lone.until(lambda: len(lone.asked) >= 2)
    lone.mended = True
    await lone.until(lambda: lone.asked[-1].load)
    offers = [m.choice for m in lone.asked]
    assert offers[:2] == [1, 2]
    assert offers[-2] == offers[-1], "fetch, then load: one offer"
    assert {m.parent.save for m in lone.asked if m.parent} == {1}
    task.cancel()
    await lone.close()


async def test_when_all_manifests_of_the_near_ones_are_bad_older_ones_are_looked_for_at_once(tmp_path: Path) -> None:
    """C3: the usual walk ends where the job's own usable ones do; beyond may be those of the job that it branched from."""
    lone = Member(tmp_path)
    source = World(lone.bucket, "uid-source").claimed(1).saved(1, 7)
    own = World(lone.bucket, UID)
    lone.bucket.damage(
        own.store.prefix + layout.claim_key(1), codec.to_json(own.a_claim(1, ref(1, 7), parent_uid=source.uid))
    )
    own.saved(1, 1)
    lone.bucket.damage(own.store.prefix + layout.manifest_key(ref(1, 1), 0), b"?")
    restore = RestoreOrder(horizon=ref(1, 1), retained=(ref(1, 1),))
    lone.shared.order = dataclasses.replace(lone.shared.order, attempt=2, restore=restore)
    record, said = lone.shared.record, []
    record.claim = None
    record.on_change = lambda: said.append(record.blocked)
    task = asyncio.ensure_future(Claims(lone.shared).run())
    await lone.until(lambda: record.claim)
    assert record.claim is not None
    assert record.claim.parent_job_uid == source.uid
    assert words(said) == ""
    task.cancel()
    await lone.close()
