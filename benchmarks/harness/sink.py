"""An S3 server for measuring clients: takes and gives bytes at a stated rate and costs as little processor time as it can.

It keeps small objects in memory; the bodies of large ones are discarded in the kernel and only counted, or kept in a folder if it is told to keep
them, to be read back. No signature is looked at. A checksum is verified where the object is small enough to be kept in this process; what it means for large
ones is that the client has to compute it. Conditional puts, listings and multipart uploads behave as in S3.

    python -m benchmarks.harness.sink PORT_FILE [--keep FOLDER]

`GET /-/stats` answers with counts and the moment (CLOCK_MONOTONIC) at which each object was complete; `PUT /-/rate?bytes=N` limits, 0 lifts the limit;
`PUT /-/forget` drops everything.
"""

import argparse
import base64
import hashlib
import json
import os
import socket
import sys
import threading
import time
import urllib.parse
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from xml.sax.saxutils import escape, unescape

SMALL_BYTES = 1 << 20
PIECE_BYTES = 256 << 10
BURST_SECONDS = 0.002
_CRC64NVME = 0x9A6C9329AC4BC9B5


@dataclass
class Stored:
    size: int
    at: float
    e_tag: str
    data: bytes | None = None
    path: Path | None = None


@dataclass
class Upload:
    key: str
    parts: dict[int, Stored] = field(default_factory=dict)


class Rate:
    """One budget for all connections and both directions."""

    def __init__(self) -> None:
        self.bytes_per_second = 0.0
        self._lock = threading.Lock()
        self._free_at = 0.0

    def spend(self, count: int) -> None:
        """Returns when so many bytes fit into the rate."""
        if not self.bytes_per_second:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now - BURST_SECONDS, self._free_at) + count / self.bytes_per_second
            wait = self._free_at - now
        if wait > 0:
            time.sleep(wait)


class Sink:
    def __init__(self, keep: Path | None) -> None:
        self.keep = keep
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self.rate = Rate()
        self.received = self.sent = self.requests = 0
        self.lock = threading.Lock()

    def serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError, ValueError), connection:
            Connection(self, connection).run()


class Connection:
    """One client's connection, kept alive."""

    def __init__(self, sink: Sink, connection: socket.socket) -> None:
        self.sink, self.socket = sink, connection
        self.buffer = b""
        self.scratch = bytearray(PIECE_BYTES)

    def run(self) -> None:
        while True:
            while b"\r\n\r\n" not in self.buffer:
                data = self.socket.recv(65536)
                if not data:
                    return
                self.buffer += data
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ", 2)
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            if headers.get("expect", "").lower() == "100-continue":
                self.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if "://" in target:  # some clients name the whole address
                target = "/" + target.split("/", 3)[3]
            path, _, query = target.partition("?")
            self.answer(
                method, urllib.parse.unquote(path), dict(urllib.parse.parse_qsl(query, keep_blank_values=True)), headers
            )

    def answer(self, method: str, path: str, query: dict[str, str], headers: dict[str, str]) -> None:
        self.sink.requests += 1
        if path.startswith("/-/"):
            self.control(path, query, headers)
            return
        _, _, key = path.lstrip("/").partition("/")
        if method == "PUT":
            self.put(key, query, headers)
        elif method == "POST":
            self.post(key, query, headers)
        elif method in ("GET", "HEAD"):
            self.drain(headers)
            if key:
                self.get(key, headers, body=method == "GET")
            elif "location" in query:
                self.reply(
                    200,
                    b'<LocationConstraint xmlns="http://s3.amazonaws.com/doc/2006-03-01/">us-east-1</LocationConstraint>',
                )
            else:
                self.list(path.strip("/"), query)
        elif method == "DELETE":
            self.drain(headers)
            with self.sink.lock:
                gone = self.sink.objects.pop(key, None)
            if gone and gone.path:
                gone.path.unlink(missing_ok=True)
            self.reply(204, b"")
        else:
            self.drain(headers)
            self.reply(405, b"")

    # ---- bodies

    def body(self, headers: dict[str, str]) -> bytes:
        """A small one, whole; decoded if it comes in signed pieces."""
        length = int(headers.get("content-length", 0))
        while len(self.buffer) < length:
            data = self.socket.recv(length - len(self.buffer))
            if not data:
                raise OSError("cut")
            self.buffer += data
        found, self.buffer = self.buffer[:length], self.buffer[length:]
        self.sink.rate.spend(length)
        return _decoded(found) if "aws-chunked" in headers.get("content-encoding", "") else found

    def drain(self, headers: dict[str, str]) -> None:
        if int(headers.get("content-length", 0) or 0):
            self.body(headers)

    def large(self, headers: dict[str, str]) -> tuple[int, Path | None]:
        """Takes a large body off the wire: into the folder, or nowhere."""
        left = int(headers["content-length"])
        size = int(headers.get("x-amz-decoded-content-length", left))
        if self.sink.keep is not None:
            return size, self.kept(left, size, "aws-chunked" in headers.get("content-encoding", ""))
        taken = min(left, len(self.buffer))
        self.buffer = self.buffer[taken:]
        left -= taken
        self.sink.rate.spend(taken)
        while left:
            got = self.socket.recv_into(self.scratch, min(left, PIECE_BYTES), socket.MSG_TRUNC)
            if not got:
                raise OSError("cut")
            left -= got
            self.sink.rate.spend(got)
        return size, None

    def kept(self, left: int, size: int, chunked: bool) -> Path:
        assert self.sink.keep is not None
        whole = bytearray(left)
        view = memoryview(whole)
        done = min(left, len(self.buffer))
        view[:done] = self.buffer[:done]
        self.buffer = self.buffer[done:]
        while done < left:
            got = self.socket.recv_into(view[done:], min(left - done, 4 << 20))
            if not got:
                raise OSError("cut")
            done += got
            self.sink.rate.spend(got)
        path = self.sink.keep / f"{os.urandom(8).hex()}"
        data = _decoded(bytes(whole)) if chunked else whole
        assert len(data) == size
        path.write_bytes(data)
        return path

    # ---- requests

    def put(self, key: str, query: dict[str, str], headers: dict[str, str]) -> None:
        length = int(headers.get("content-length", 0))
        data, path = None, None
        if length <= SMALL_BYTES:
            data = self.body(headers)
            size = len(data)
            given = headers.get("x-amz-checksum-crc64nvme")
            if given and base64.b64decode(given) != crc64nvme(data).to_bytes(8, "big"):
                self.error(400, "BadDigest")
                return
        else:
            size, path = self.large(headers)
        self.sink.received += size
        e_tag = f'"{hashlib.md5(data).hexdigest() if data is not None else os.urandom(16).hex()}"'
        stored = Stored(size, time.monotonic(), e_tag, data, path)
        if "partNumber" in query:
            upload = self.sink.uploads.get(query["uploadId"])
            if upload is None:
                self.error(404, "NoSuchUpload")
                return
            upload.parts[int(query["partNumber"])] = stored
        elif problem := self.store(key, stored, headers):
            self.error(412, problem)
            return
        echoed = {k: v for k, v in headers.items() if k.startswith("x-amz-checksum-")}
        self.reply(200, b"", {"ETag": e_tag, **echoed})

    def store(self, key: str, stored: Stored, headers: dict[str, str]) -> str:
        with self.sink.lock:
            there = self.sink.objects.get(key)
            if headers.get("if-none-match") == "*" and there is not None:
                return "PreconditionFailed"
            if "if-match" in headers and (there is None or headers["if-match"].strip('"') != there.e_tag.strip('"')):
                return "PreconditionFailed"
            self.sink.objects[key] = stored
        if there is not None and there.path:
            there.path.unlink(missing_ok=True)
        return ""

    def post(self, key: str, query: dict[str, str], headers: dict[str, str]) -> None:
        body = self.body(headers)
        if "uploads" in query:
            name = os.urandom(8).hex()
            self.sink.uploads[name] = Upload(key)
            place = f"<Bucket>b</Bucket><Key>{escape(key)}</Key><UploadId>{name}</UploadId>"
            self.reply(200, f"<InitiateMultipartUploadResult>{place}</InitiateMultipartUploadResult>".encode())
        elif "uploadId" in query:
            upload = self.sink.uploads.pop(query["uploadId"], None)
            if upload is None:
                self.error(404, "NoSuchUpload")
                return
            parts = [upload.parts[n] for n in sorted(upload.parts)]
            path = None
            if self.sink.keep is not None:
                path = self.sink.keep / os.urandom(8).hex()
                with path.open("wb") as out:
                    for part in parts:
                        out.write(part.data if part.data is not None else part.path.read_bytes() if part.path else b"")
                        if part.path:
                            part.path.unlink()
            stored = Stored(
                sum(p.size for p in parts), time.monotonic(), f'"{os.urandom(16).hex()}-{len(parts)}"', None, path
            )
            self.store(key, stored, {})
            place = (
                f"<Location>l</Location><Bucket>b</Bucket><Key>{escape(key)}</Key><ETag>{escape(stored.e_tag)}</ETag>"
            )
            text = f"<CompleteMultipartUploadResult>{place}</CompleteMultipartUploadResult>"
            self.reply(200, text.encode())
        elif "delete" in query:
            keys = [piece.split("</Key>")[0] for piece in body.decode().split("<Key>")[1:]]
            for found in keys:
                self.sink.objects.pop(unescape(found), None)
            deleted = "".join(f"<Deleted><Key>{found}</Key></Deleted>" for found in keys)
            self.reply(
                200, f'<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{deleted}</DeleteResult>'.encode()
            )
        else:
            self.error(400, "InvalidRequest")

    def get(self, key: str, headers: dict[str, str], *, body: bool) -> None:
        stored = self.sink.objects.get(key)
        if stored is None:
            self.error(404, "NoSuchKey", body=body)
            return
        start, end, status = 0, stored.size, 200
        extra = {"ETag": stored.e_tag, "Last-Modified": formatdate(usegmt=True), "Accept-Ranges": "bytes"}
        if headers.get("range", "").startswith("bytes="):
            first, _, last = headers["range"][6:].partition("-")
            start = int(first) if first else max(0, stored.size - int(last))
            end = min(stored.size, int(last) + 1) if first and last else stored.size
            if start >= stored.size:
                self.error(416, "InvalidRange", body=body)
                return
            status = 206
            extra["Content-Range"] = f"bytes {start}-{end - 1}/{stored.size}"
        self.head(status, end - start, extra | {"Content-Type": "binary/octet-stream"})
        if not body:
            return
        if stored.data is not None:
            self.sink.rate.spend(end - start)
            self.socket.sendall(stored.data[start:end])
        elif stored.path is not None:
            with stored.path.open("rb") as file:
                while start < end:
                    sent = os.sendfile(self.socket.fileno(), file.fileno(), start, min(PIECE_BYTES, end - start))
                    self.sink.rate.spend(sent)
                    start += sent
        else:
            raise OSError("the body was discarded")
        self.sink.sent += end - start

    def list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        with self.sink.lock:
            found = sorted((k, o) for k, o in self.sink.objects.items() if k.startswith(prefix))
        folders, contents = set(), []
        for key, stored in found:
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                contents.append(
                    f"<Contents><Key>{escape(key)}</Key><LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime())}</LastModified>"
                    f"<ETag>{escape(stored.e_tag)}</ETag><Size>{stored.size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
                )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        counts = f"<KeyCount>{len(contents) + len(folders)}</KeyCount><MaxKeys>1000000</MaxKeys><IsTruncated>false</IsTruncated>"
        head = f"<Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix>{counts}"
        text = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{head}{"".join(contents)}{common}</ListBucketResult>'
        self.reply(200, text.encode())

    def control(self, path: str, query: dict[str, str], headers: dict[str, str]) -> None:
        self.drain(headers)
        sink = self.sink
        if path == "/-/rate":
            sink.rate.bytes_per_second = float(query["bytes"])
        elif path == "/-/forget":
            with sink.lock:
                gone, sink.objects = sink.objects, {}
            for stored in gone.values():
                if stored.path:
                    stored.path.unlink(missing_ok=True)
        with sink.lock:
            keys = {key: stored.at for key, stored in sink.objects.items()}
        self.reply(
            200,
            json.dumps(
                {"received": sink.received, "sent": sink.sent, "requests": sink.requests, "keys": keys}
            ).encode(),
        )

    # ---- answers

    def reply(self, status: int, body: bytes, extra: dict[str, str] | None = None) -> None:
        self.head(status, len(body), {"Content-Type": "application/xml", **(extra or {})}, body)

    def error(self, status: int, code: str, *, body: bool = True) -> None:
        text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self.head(status, len(text) if body else 0, {"Content-Type": "application/xml"}, text if body else b"")

    def head(self, status: int, length: int, extra: dict[str, str], body: bytes = b"") -> None:
        lines = [
            f"HTTP/1.1 {status} X",
            f"Content-Length: {length}",
            f"Date: {formatdate(usegmt=True)}",
            "x-amz-request-id: 1",
        ]
        lines += [f"{name}: {value}" for name, value in extra.items()]
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def _decoded(data: bytes) -> bytes:
    """The content of an aws-chunked body: pieces with their sizes in front, trailers behind."""
    found: list[bytes] = []
    at = 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end].split(b";")[0], 16)
        if not size:
            return b"".join(found)
        found.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_CRC64NVME if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def crc64nvme(data: bytes) -> int:
    """Slow; for small objects."""
    value = (1 << 64) - 1
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ (1 << 64) - 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port_file", type=Path)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    sys.setswitchinterval(0.001)
    sink = Sink(options.keep)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        temporary = options.port_file.with_suffix(".tmp")
        temporary.write_text(str(listener.getsockname()[1]))
        temporary.replace(options.port_file)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=sink.serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
