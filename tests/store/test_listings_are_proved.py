"""A 200 answer that is no listing is never an empty one (B7): it would mean "no checkpoint yet", and a job would start from zero."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from holdfast_api.config import StorageConfig
from holdfast_store.errors import Unavailable
from holdfast_store.s3 import S3Bucket

ANSWERS = {
    "an error body": b'<?xml version="1.0"?><Error><Code>InternalError</Code><Message>we are sorry</Message></Error>',
    "the page of a gateway": b"<html><body><p>Please log in</p></body></html>",
    "another bucket's listing": b"<ListBucketResult><Name>other</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>",
    "nothing at all": b"",
}


@pytest.fixture(params=ANSWERS.values(), ids=ANSWERS.keys())
def gateway(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that answers every request with status 200 and one body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(request.param)))
            self.end_headers()
            self.wfile.write(request.param)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_an_answer_that_is_no_listing_is_an_error_and_not_an_empty_bucket(gateway: str) -> None:
    environ = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    bucket = S3Bucket.from_config(StorageConfig("s3://bucket/prefix", gateway), environ)
    with pytest.raises(Unavailable):
        list(bucket.list("attempts/"))
    with pytest.raises(Unavailable):
        bucket.list_level("checkpoints/")
