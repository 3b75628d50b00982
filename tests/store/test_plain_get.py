"""The short way for GETs knows one answer; whatever else comes is refused, left to the general client, or ends in seconds. Never a wrong byte."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast_api.config import StorageConfig
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Chunk
from holdfast_store.chunks import digest
from holdfast_store.errors import Corrupt
from holdfast_store.job import JobStore
from holdfast_store.patience import Limits
from holdfast_store.plain_get import Broken, PlainGet, Refusal, Stalled, Unusual
from holdfast_store.s3 import S3Bucket

BODY = bytes(range(256)) * 1024
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY)
QUICK = Limits(0.3, 5.0)
Script = Callable[[socket.socket, int], None]


class FakeServer:
    """Reads one request after the other on each connection and does what the script says; `connections` counts."""

    def __init__(self, script: Script) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.connections = 0
        self.requests: list[bytes] = []
        self.script = script
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self.connections += 1
                self._open.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        data = b""
        with contextlib.suppress(OSError):
            while True:
                while b"\r\n\r\n" not in data:
                    if not (more := client.recv(65536)):
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                self.requests.append(head)
                self.script(client, len(self.requests))

    def close(self) -> None:
        self._server.close()
        for client in self._open:
            client.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Script], FakeServer]]:
    made: list[FakeServer] = []

    def make(script: Script) -> FakeServer:
        made.append(FakeServer(script))
        return made[-1]

    yield make
    for server in made:
        server.close()


Serve = Callable[[Script], FakeServer]


def says(*pieces: bytes, close: bool = False) -> Script:
    def script(client: socket.socket, _: int) -> None:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(0.01)
        if close:
            client.shutdown(socket.SHUT_RDWR)

    return script


def client_of(server: FakeServer) -> PlainGet:
    return PlainGet("127.0.0.1", server.port, connect_seconds=5)


def fill(client: PlainGet, length: int = len(BODY), limits: Limits = QUICK) -> tuple[Refusal | None, bytes]:
    data = bytearray(length)
    return client.fill("/b/k", {"Host": "h"}, memoryview(data), limits), bytes(data)


def test_the_body_lands_in_the_callers_memory_and_the_connection_is_kept(serve: Serve) -> None:
    server = serve(says(OK, BODY))
    client = client_of(server)
    assert [fill(client) for _ in range(3)] == [(None, BODY)] * 3
    assert server.connections == 1
    assert server.requests[0] == b"GET /b/k HTTP/1.1\r\nHost: h"


def test_each_thread_has_a_connection_of_its_own(serve: Serve) -> None:
    server = serve(says(OK, BODY))
    client, together, found = client_of(server), threading.Barrier(4), []

    def work() -> None:
        for _ in range(3):
            together.wait(10)
            found.append(fill(client))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(None, BODY)] * 12
    assert server.connections == 4


@pytest.mark.parametrize("cut", [1, 10, len(OK) - 2, len(OK), len(OK) + 1, len(OK) + 1000])
def test_an_answer_may_come_in_any_pieces(serve: Serve, cut: int) -> None:
    whole = OK + BODY
    assert fill(client_of(serve(says(whole[:cut], whole[cut:])))) == (None, BODY)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Encoding: gzip\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: +4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcdef",
        b"HTTP/1.1 200 OK\r\n\r\nabcd",
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length : 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n folded: x\r\n\r\nabcd",
        b"HTTP/1.1 500 Error\r\nContent-Length: 99999999\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"<html>a gateway that speaks no HTTP</html>\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * (70 << 10) + b"\r\n\r\n",
    ],
)
def test_every_other_answer_is_left_to_the_general_client_and_its_connection_is_not_used_again(
    serve: Serve, answer: bytes
) -> None:
    server = serve(lambda client, n: client.sendall(answer if n == 1 else OK + BODY))
    client = client_of(server)
    with pytest.raises(Unusual):
        fill(client, 4)
    assert fill(client) == (None, BODY)
    assert server.connections == 2


def test_a_refusal_is_handed_back_with_its_body(serve: Serve) -> None:
    server = serve(says(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n<Code>x</"))
    assert fill(client_of(server))[0] == Refusal(404, b"<Code>x</")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", OK, OK + BODY[:-1]])
def test_an_answer_that_ends_early_is_no_answer(serve: Serve, answer: bytes) -> None:
    with pytest.raises(Broken, match="ended"):
        fill(client_of(serve(says(answer, close=True))))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", OK, OK + BODY[:-1]])
def test_silence_at_any_place_is_noticed_and_the_next_try_has_a_new_connection(serve: Serve, answer: bytes) -> None:
    """The known defect: a connection that accepts and never answers held a restore for two minutes."""
    server = serve(lambda client, n: client.sendall(answer if n == 1 else OK + BODY))
    client = client_of(server)
    with pytest.raises(Stalled, match="not a byte"):
        fill(client)
    assert fill(client) == (None, BODY)
    assert server.connections == 2


def test_a_server_that_trickles_is_noticed_too(serve: Serve) -> None:
    def trickle(client: socket.socket, _: int) -> None:
        for byte in OK + BODY:
            client.sendall(bytes([byte]))
            time.sleep(0.02)

    with pytest.raises(Stalled, match="there were"):
        fill(client_of(serve(trickle)), limits=Limits(0.3, 0.6))


def test_a_kept_connection_that_the_server_has_closed_is_replaced_without_an_error(serve: Serve) -> None:
    server = serve(says(OK, BODY, close=True))
    client = client_of(server)
    for _ in range(3):
        assert fill(client) == (None, BODY)
        time.sleep(0.02)
    assert server.connections == 3


def test_a_kept_connection_that_breaks_under_the_request_is_tried_once_more_on_a_new_one(serve: Serve) -> None:
    def script(client: socket.socket, n: int) -> None:
        if n == 2:
            client.shutdown(socket.SHUT_RDWR)
        else:
            client.sendall(OK + BODY)

    server = serve(script)
    client = client_of(server)
    assert [fill(client), fill(client)] == [(None, BODY)] * 2
    assert server.connections == 2


def test_connection_close_is_obeyed(serve: Serve) -> None:
    server = serve(says(OK.replace(b"\r\n\r\n", b"\r\nConnection: Close\r\n\r\n") + BODY))
    client = client_of(server)
    assert [fill(client), fill(client)] == [(None, BODY)] * 2
    assert server.connections == 2


def test_bytes_that_belong_to_no_request_are_never_taken_for_an_answer(serve: Serve) -> None:
    """A response that was split or smuggled in behind another."""
    server = serve(lambda client, n: client.sendall(OK + BODY + (OK + bytes(len(BODY)) if n == 1 else b"")))
    client = client_of(server)
    found = None
    with contextlib.suppress(Unusual):
        found = fill(client)
    assert found in (None, (None, BODY))
    time.sleep(0.05)
    assert fill(client) == (None, BODY)
    assert server.connections == 2


def test_nobody_listens(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Broken, match="no connection"):
        fill(PlainGet("127.0.0.1", port, connect_seconds=1))


def test_a_line_break_cannot_be_smuggled_into_a_request(serve: Serve) -> None:
    with pytest.raises(ValueError, match="line break"):
        client_of(serve(says(OK, BODY))).fill("/x\r\nEvil: 1", {}, memoryview(bytearray(1)), QUICK)


def test_an_empty_object(serve: Serve) -> None:
    assert fill(client_of(serve(says(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"))), 0) == (None, b"")


def test_the_module_knows_nothing_of_s3() -> None:
    source = Path("agent/holdfast_store/plain_get.py").read_text()
    assert not re.search(r"^(import|from) (boto|obstore)", source, re.MULTILINE)


def test_a_connection_that_was_answered_once_too_often_is_given_up_when_a_chunk_does_not_fit(serve: Serve) -> None:
    """A proxy that repeats one answer: all chunks have one length, so every later one would be the chunk before, and a good checkpoint be refused (C3)."""
    chunks = {digest(data): data for data in (bytes([n]) * 4096 for n in range(6))}

    def script(client: socket.socket, number: int) -> None:
        name = server.requests[-1].split()[1].decode().rpartition("/")[2]
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n" + chunks[name]
        client.sendall(answer)
        if number == 2:
            client.sendall(answer)
            time.sleep(0.05)

    server = serve(script)
    config = StorageConfig("s3://bucket/x", f"http://127.0.0.1:{server.port}")
    bucket = S3Bucket.from_config(config, {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})
    store = JobStore(bucket, "ns", "job", "5f0c9d9e-0000-4000-8000-000000000001")
    wrong = 0
    for name, data in chunks.items():
        view = memoryview(bytearray(4096))
        for left in (1, 0):
            try:
                store.get_chunk_into(Chunk(name, 4096, CheckpointRef(1, 1)), view)
                break
            except Corrupt:
                wrong += 1
                assert left, "the second try met the same connection"
        assert bytes(view) == data
    assert wrong <= 1
