"""The real S3 server of hack/s3_server.py for tests: without it a test says so."""

import os
from pathlib import Path

import pytest

from hack.s3_server import BUCKET, S3Server, find, free_port, running, wait_open

__all__ = ["BUCKET", "S3Server", "binary_or_outcome", "free_port", "running", "wait_open"]


def binary_or_outcome() -> Path:
    """The program. Without it a test run on a laptop skips; one that promised it (CI, `make test`) fails."""
    found = find()
    if found:
        return found
    message = "the S3 server versitygw is not installed: run `make test`, which builds it, or put it on PATH"
    if os.environ.get("CI") == "true" or os.environ.get("HOLDFAST_TOOLCHAIN"):
        pytest.fail(message)
    pytest.skip(message)
