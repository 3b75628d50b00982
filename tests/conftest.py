"""What every test may use. Tests marked `cluster` run on the cluster that the environment names; `make test` brings it up and sets it."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toolchain() -> Path:
    """Folder with helm, kubectl, versitygw, prometheus and promtool."""
    folder = os.environ.get("HOLDFAST_TOOLCHAIN")
    if not folder:
        pytest.fail("HOLDFAST_TOOLCHAIN is not set: run `make test`, which builds the tools and sets it")
    return Path(folder)
