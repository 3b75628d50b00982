"""The two loops that nobody awaits, looking for the checkpoint to continue and opening the store: whatever goes wrong is said, and tried again."""

import asyncio
import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lone import Lone

from holdfast_agent import claims, run
from holdfast_agent.claims import Claims
from holdfast_agent.run import Agent
from holdfast_api import peers
from holdfast_api.messages import Blocked
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
    task = asyncio.ensure_future(lead.run())
    await lone.until(lambda: record.claim is not None, f"the attempt is claimed; {task}")
    assert str(error) in words(said)
    assert record.blocked is None
    assert any(r.exc_info for r in caplog.records), "the traceback is in the log"
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
