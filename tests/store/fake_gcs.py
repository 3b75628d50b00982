"""Fake of Google Cloud Storage's XML interface, as much of it as the backend uses, with the service's own status and error codes. Not the service.

A request whose body is shorter than announced leaves nothing, as Google documents. Faults: `answer_next` gives an answer to order instead of the real one.
"""

import hashlib
import http.server
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 50
"""Keys on a page of a listing: few, so that tests see several pages."""


@dataclass(frozen=True)
class Answer:
    status: int
    code: str = ""
    body: bytes = b""
    """Instead of the XML of an error with `code`."""


@dataclass
class FakeGcs:
    """One bucket. `admits` is asked for each request's bearer token; `tls` is a server-side context, for https."""

    bucket: str
    admits: Callable[[str], bool] = lambda token: True
    tls: ssl.SSLContext | None = None
    objects: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Key -> generation and content."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    answer_next: list[tuple[str, Answer]] = field(default_factory=list)
    """(method, answer): given once to the next request of that method."""
    damage_next_put: bool = False
    ignores_conditions: bool = False

    def __enter__(self) -> "FakeGcs":
        self.lock, self.generation = threading.Lock(), 1_000
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        if self.tls:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        host = "https://localhost" if self.tls else "http://127.0.0.1"
        self.endpoint = f"{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeGcs

    def _go(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if len(body) < size:
            self.close_connection = True
            return
        parts = urlsplit(self.path)
        bucket, _, key = parts.path.lstrip("/").partition("/")
        key = unquote(key)
        self.fake.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        for number, (method, answer) in enumerate(self.fake.answer_next):
            if method == self.command:
                del self.fake.answer_next[number]
                self._refuse(answer)
                return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not self.fake.admits(token):
            self._refuse(Answer(401, "AuthenticationRequired"))
        elif bucket != self.fake.bucket:
            self._refuse(Answer(404, "NoSuchBucket"))
        else:
            with self.fake.lock:
                getattr(self, f"_{self.command.lower()}")(key, body, parse_qs(parts.query))

    do_GET = do_HEAD = do_PUT = do_DELETE = _go

    def _put(self, key: str, body: bytes, _query: dict[str, list[str]]) -> None:
        wanted = self.headers.get("x-goog-if-generation-match")
        there = self.fake.objects.get(key, (0, b""))[0]
        if wanted is not None and int(wanted) != there and not self.fake.ignores_conditions:
            self._refuse(Answer(412, "PreconditionFailed"))
            return
        self.fake.generation += 1
        if self.fake.damage_next_put:
            self.fake.damage_next_put, body = False, body[:-1] + bytes([body[-1] ^ 1])
        self.fake.objects[key] = (self.fake.generation, body)
        self._answer(200, b"", self._facts(key))

    def _get(self, key: str, _body: bytes, query: dict[str, list[str]]) -> None:
        if not key:
            self._list(query)
        elif key not in self.fake.objects:
            self._refuse(Answer(404, "NoSuchKey"))
        else:
            self._answer(200, self.fake.objects[key][1], self._facts(key))

    def _head(self, key: str, body: bytes, query: dict[str, list[str]]) -> None:
        self._get(key, body, query)

    def _delete(self, key: str, _body: bytes, _query: dict[str, list[str]]) -> None:
        if self.fake.objects.pop(key, None) is None:
            self._refuse(Answer(404, "NoSuchKey"))
        else:
            self._answer(204, b"")

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        after = query.get("continuation-token", [""])[0]
        entries: list[tuple[str, bool]] = []
        for key in sorted(self.fake.objects):
            if not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            folder = delimiter and delimiter in rest
            name = prefix + rest.partition(delimiter)[0] + delimiter if folder else key
            if name > after and (name, bool(folder)) not in entries:
                entries.append((name, bool(folder)))
        page, more = entries[:PAGE], entries[PAGE:]
        found = "".join(self._entry(name, is_folder=is_folder) for name, is_folder in page)
        next_page = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if more else ""
        text = (
            f"<?xml version='1.0' encoding='UTF-8'?><ListBucketResult><Name>{self.fake.bucket}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{next_page}{found}</ListBucketResult>"
        )
        self._answer(200, text.encode())

    def _entry(self, name: str, *, is_folder: bool) -> str:
        if is_folder:
            return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
        generation, content = self.fake.objects[name]
        return (
            f"<Contents><Key>{escape(name)}</Key><Generation>{generation}</Generation><LastModified>2026-11-26T21:00:00.000Z</LastModified>"
            f'<ETag>"{hashlib.md5(content).hexdigest()}"</ETag><Size>{len(content)}</Size></Contents>'
        )

    def _facts(self, key: str) -> dict[str, str]:
        generation, content = self.fake.objects[key]
        return {
            "ETag": f'"{hashlib.md5(content).hexdigest()}"',
            "x-goog-generation": str(generation),
            "Last-Modified": "Thu, 26 Nov 2026 21:00:00 GMT",
        }

    def _refuse(self, answer: Answer) -> None:
        text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{answer.code}</Code><Message>ordered or earned</Message></Error>"
        self._answer(answer.status, answer.body or text.encode())

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
