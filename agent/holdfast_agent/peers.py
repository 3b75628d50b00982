"""Asking other agents: signed (H2), repeated until a deadline, harmless to repeat. The agent's own worker is asked by a plain call.

Every wait here is bounded by the caller's deadline. A dead peer costs that time and no more.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import aiohttp

from holdfast_agent import address
from holdfast_agent.clock import Deadline, now
from holdfast_agent.errors import PeerAhead, PeerRefused, PeerSilent
from holdfast_api import codec, peers, signing
from holdfast_api.errors import ContractError
from holdfast_api.messages import AgentReport, Member

log = logging.getLogger(__name__)
T = TypeVar("T")
TRY_SECONDS = 15.0
"""Of one HTTP request; the receiver answers 202 well before."""
LOOK_SECONDS = 0.25
"""How late an answer is given up after a deadline that has moved closer."""
LATER_SECONDS = 8.0
"""After so long a receiver answers "not yet" (202)."""


class Later:
    """The answer is not there yet."""


LATER: Final = Later()
PATHS: dict[type[Any], tuple[str, type[Any] | None]] = {
    peers.RoundRequest: ("/v1/peer/round", peers.RoundAnswer),
    peers.CloseGates: ("/v1/peer/close", peers.GateVotes),
    peers.ReleaseGates: ("/v1/peer/release", peers.Captured),
    peers.OpenGates: ("/v1/peer/open", None),
    peers.SaveOffer: ("/v1/peer/offer", None),
    peers.FlushOrder: ("/v1/peer/flush", peers.Flushed),
    peers.Committed: ("/v1/peer/committed", None),
    peers.Prefetch: ("/v1/peer/prefetch", None),
    peers.PartWanted: ("/v1/peer/part", peers.Part),
    peers.RescueOrder: ("/v1/peer/rescue", peers.Rescued),
    peers.Unfinished: ("/v1/peer/unfinished", peers.UnfinishedCopies),
    peers.Resolved: ("/v1/peer/resolved", peers.Fetched),
    peers.CheckpointRejected: ("/v1/peer/rejected", None),
    peers.HangSuspected: ("/v1/peer/suspected", None),
    peers.LookAtRanks: ("/v1/peer/ranks", peers.RanksSeen),
}
"""Message -> (path, type of the answer)."""

Handler = Callable[[Any], Awaitable[Any]]
"""Handles one peer message: the answer, None, or LATER; raises PeerRefused."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """The members of one attempt, seen from one of them."""

    attempt: int
    members: tuple[Member, ...]
    own: int
    handler: Handler
    session: aiohttp.ClientSession
    key: bytes
    job_uid: str

    @property
    def workers(self) -> tuple[int, ...]:
        return tuple(m.worker for m in self.members)

    async def ask(self, worker: int, message: Any, *, until: Deadline, round: int = 0) -> Any:
        """The answer. Raises PeerRefused or PeerSilent."""
        if worker == self.own:
            return await self._ask_self(message, until)
        member = next(m for m in self.members if m.worker == worker)
        pause, failure = 0.05, "no answer"
        while not until.passed:
            try:
                answer = await _while(until, self._try(member, message, round, until))
                if not isinstance(answer, Later):
                    return answer
                continue
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as e:
                failure = f"{type(e).__name__}: {e}" if str(e) else type(e).__name__
            await asyncio.sleep(min(pause, max(until.remaining, 0.01)))
            pause = min(pause * 2, 1.0)
        raise PeerSilent(f"worker {worker} did not answer {type(message).__name__}: {failure}")

    async def ask_all(self, message: Any, *, until: Deadline, round: int = 0) -> dict[int, Any]:
        """Worker -> answer or the exception. Asks all at once."""
        answers = await asyncio.gather(
            *(self.ask(w, message, until=until, round=round) for w in self.workers), return_exceptions=True
        )
        return dict(zip(self.workers, answers, strict=True))

    async def _ask_self(self, message: Any, until: Deadline) -> Any:
        while not until.passed:
            try:
                answer = await _while(until, self.handler(message))
            except _Passed:
                break
            if not isinstance(answer, Later):
                return answer
        raise PeerSilent(f"own worker has no answer to {type(message).__name__} before the deadline")

    def signed_get(self, member: Member, path: str) -> dict[str, str]:
        """Headers of a GET at that member. Any thread."""
        return self._signed(member, "GET", path, b"", 0)

    def _signed(self, member: Member, method: str, path: str, body: bytes, round: int) -> dict[str, str]:
        envelope = signing.Envelope(method, path, self.job_uid, member.pod_uid, self.attempt, round)
        mac = signing.sign(self.key, envelope, body, now=now().timestamp(), nonce=secrets.token_bytes(16))
        return {
            signing.HEADER: mac,
            signing.HEADER_ATTEMPT: str(self.attempt),
            signing.HEADER_ROUND: str(round),
        }

    async def _try(self, member: Member, message: Any, round: int, until: Deadline) -> Any:
        path, answer_type = PATHS[type(message)]
        body = codec.to_json(message)
        headers = self._signed(member, "POST", path, body, round) | {"Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=min(TRY_SECONDS, max(until.remaining, 0.05)), connect=5)
        async with self.session.post(
            address.url(member.address, path), data=body, headers=headers, timeout=timeout
        ) as response:
            data = await _bounded(response)
            return self._read(member, response.status, data, answer_type)

    def _read(self, member: Member, status: int, data: bytes, answer_type: type[Any] | None) -> Any:
        if status == 202:
            return LATER
        if status == 204:
            return None
        if status == 200 and answer_type is not None:
            try:
                return codec.from_json(answer_type, data)
            except ContractError as e:
                raise PeerRefused(f"worker {member.worker} answered what cannot be read: {e}") from e
        if status == 409:
            raise self._conflict(member, data)
        if status >= 500:
            raise ValueError(f"HTTP {status}")  # repeated: it may be starting
        raise PeerRefused(f"worker {member.worker} answered {status}: {data[:200].decode(errors='replace')}")

    def _conflict(self, member: Member, data: bytes) -> Exception:
        """409 carries the other's report: one that is behind will be told by the operator, one that is ahead has left this attempt."""
        try:
            other = codec.from_json(AgentReport, data).attempt
        except ContractError as e:
            return PeerRefused(f"worker {member.worker} refused: {data[:200].decode(errors='replace')} ({e})")
        if other < self.attempt:
            return ValueError(f"worker {member.worker} has not heard of attempt {self.attempt}")
        if other == self.attempt:
            return PeerRefused(f"worker {member.worker} knows a newer round")
        return PeerAhead(f"worker {member.worker} has joined attempt {other}")


class _Passed(TimeoutError):
    """The deadline has passed, wherever it has moved to meanwhile."""


async def _while(until: Deadline, answer: Awaitable[Any]) -> Any:
    """Raises what `answer` raises, or _Passed, little later than `until` says then."""
    answering = asyncio.ensure_future(answer)
    try:
        while not answering.done():
            if until.passed:
                raise _Passed("no answer in time")
            await asyncio.wait([answering], timeout=min(until.remaining, LOOK_SECONDS))
        return answering.result()
    finally:
        answering.cancel()


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    data = await response.content.read(codec.MAX_MESSAGE_BYTES + 1)
    while len(data) <= codec.MAX_MESSAGE_BYTES and (
        more := await response.content.read(codec.MAX_MESSAGE_BYTES + 1 - len(data))
    ):
        data += more
    if len(data) > codec.MAX_MESSAGE_BYTES:
        raise PeerRefused("an answer is longer than any message")
    return data
