"""HTTP to a metadata service. It is a link-local address without TLS, so: no proxy of the environment, no redirect is followed, and bodies are bounded.

Every call either gives an `Answer` or raises MetadataError; nothing else of the network comes out. One event loop, one session.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp

from holdfast_notifier.errors import MetadataError

MAX_BODY_BYTES = 256 << 10
CONNECT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""


class Web:
    """Use as an async context manager. `base` is `http://169.254.169.254`, or a stand-in in tests."""

    def __init__(self, base: str, timeout_seconds: float) -> None:
        self._base = base.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # trust_env is off: a proxy of the environment would answer with the metadata of its own machine, or with nothing.
        # Nothing is unpacked, so that MAX_BODY_BYTES bounds what is held, and nothing packed is asked for.
        self._session = aiohttp.ClientSession(
            trust_env=False, auto_decompress=False, headers={"Accept-Encoding": "identity"}
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        patience_seconds: float = 0.0,
    ) -> Answer:
        """`patience_seconds`: what a call that waits for a change may take on top of the usual time."""
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=self._timeout_seconds + patience_seconds, connect=CONNECT_SECONDS)
        try:
            async with self._session.request(
                method,
                self._base + path,
                headers=headers,
                params=query,
                data=body,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                raw = await _bounded(response.content, path)
                found = {k.lower(): v for k, v in response.headers.items()}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as e:
            raise MetadataError(f"{method} {path}: {type(e).__name__}: {e}") from e
        if 300 <= response.status < 400:
            raise MetadataError(f"{method} {path}: a redirect ({response.status}) is not followed")
        return Answer(response.status, raw.decode("utf-8", errors="replace"), found)


async def _bounded(stream: aiohttp.StreamReader, path: str) -> bytes:
    raw = bytearray()
    async for block in stream.iter_any():
        raw += block
        if len(raw) > MAX_BODY_BYTES:
            raise MetadataError(f"{path}: more than {MAX_BODY_BYTES} bytes")
    return bytes(raw)
