"""Reading one object of an S3 bucket: two ways to the same bytes, and the limits of both (patience.py).

obstore's client knows every answer and every endpoint. `Signed` is the short way for endpoints without TLS (plain_get.py): what it does not know it
leaves to obstore, so that no answer is ever read in two ways (B7).
"""

import asyncio
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import obstore
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest

from holdfast_store.bucket import Room
from holdfast_store.patience import Limits, Pace
from holdfast_store.plain_get import PlainGet, Refusal, Stalled, Unusual
from holdfast_store.s3_border import endpoint_problem

T = TypeVar("T")
CONNECT_SECONDS = 5.0
_PIECE_BYTES = 4 << 20
"""Of a stream: a piece must arrive within the limit of silence."""


def download(store: Any, key: str, room: Room, pace: Pace) -> tuple[int, int]:
    """The object at `key` by obstore's client, into `room(size)`. How many bytes have come (more or fewer than announced is for the caller to judge; the
    memory holds no more than it has room for) and how many were announced. Raises what obstore and `room` raise, and Stalled.

    A request that is given up is cancelled, which closes its connection: the next try has another one.
    """
    return _run(lambda: _download(store, key, room, pace))


async def _download(store: Any, key: str, room: Room, pace: Pace) -> tuple[int, int]:
    started = time.monotonic()
    met = pace.limits(0)
    what = "an answer"
    try:
        async with asyncio.timeout(met.silent_seconds):
            found = await obstore.get_async(store, key)
        view = room(found.meta["size"])
        met = pace.limits(view.nbytes)
        done = 0
        async with asyncio.timeout(met.whole_seconds):
            pieces = found.stream(min_chunk_size=_PIECE_BYTES).__aiter__()
            while True:
                what = f"more than {done} of {view.nbytes} bytes"
                async with asyncio.timeout(met.silent_seconds):
                    piece = await anext(pieces, None)
                if piece is None:
                    break
                part = memoryview(piece)
                if done + part.nbytes > view.nbytes:
                    return done + part.nbytes, view.nbytes
                view[done : done + part.nbytes] = part
                done += part.nbytes
    except TimeoutError as e:
        pace.ran_out(met)
        raise Stalled(f"there was not {what} within {met.silent_seconds:.0f} s") from e
    if done == view.nbytes:
        pace.passed(done, time.monotonic() - started)
    return done, view.nbytes


def _run(begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The coroutine's result, from any thread: also from one whose own event loop runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(begin())
    result: list[T] = []
    failure: list[BaseException] = []

    def call() -> None:
        try:
            result.append(asyncio.run(begin()))
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=call, name="s3-get")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


class Signed:
    """GETs signed with SigV4 over plain HTTP, path style. Thread-safe."""

    def __init__(self, endpoint: str, bucket: str, session: Any, region: str) -> None:
        parts = urlsplit(endpoint)
        self._base = f"{parts.path.rstrip('/')}/{bucket}/"
        self._host = parts.netloc if parts.port != 80 else str(parts.netloc).rpartition(":")[0]
        self._origin = f"http://{self._host}"
        self._plain = PlainGet(str(parts.hostname), parts.port or 80, connect_seconds=CONNECT_SECONDS)
        self._session = session
        self._region = region
        self._lock = threading.Lock()
        self._credentials: Any = None

    @classmethod
    def to(cls, endpoint: str, bucket: str, session: Any, region: str) -> "Signed | None":
        """None where this way is not open: over TLS, to AWS itself, through a proxy, or to an endpoint that is wrong (obstore says in what)."""
        proxies = urllib.request.getproxies()
        if (
            not endpoint.startswith("http://")
            or endpoint_problem(endpoint)
            or proxies.get("http")
            or proxies.get("all")
        ):
            return None
        return cls(endpoint, bucket, session, region)

    def fill(self, key: str, view: memoryview, pace: Pace) -> Refusal | None:
        """`key` with the bucket's prefix. Raises Unusual, Stalled, Broken; Unusual also while there are no credentials."""
        target = quote(self._base + key, safe="/~")
        met: Limits = pace.limits(view.nbytes)
        started = time.monotonic()
        try:
            refusal = self._plain.fill(target, self._headers(target), view, met)
        except Stalled:
            pace.ran_out(met)
            raise
        if refusal is None:
            pace.passed(view.nbytes, time.monotonic() - started)
        return refusal

    def forget(self) -> None:
        """The connection that this thread keeps."""
        self._plain.forget()

    def _headers(self, target: str) -> dict[str, str]:
        request = AWSRequest(method="GET", url=self._origin + target, headers={"Host": self._host})
        S3SigV4Auth(self._frozen(), "s3", self._region).add_auth(request)
        return {**dict(request.headers.items()), "Accept-Encoding": "identity", "User-Agent": "holdfast"}

    def _frozen(self) -> Any:
        """Renewed by botocore when they are about to expire."""
        with self._lock:  # a session is not for several threads
            if self._credentials is None:
                self._credentials = self._session.get_credentials()
        if self._credentials is None:
            raise Unusual("no credentials")
        return self._credentials.get_frozen_credentials()
