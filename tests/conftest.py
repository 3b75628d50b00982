"""What every test may use. Tests marked `cluster` run on the cluster that the environment names; `make test` brings it up and sets it."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, so that a failure is of the change; HOLDFAST_RANDOM_EXAMPLES=1 looks for new ones. How long one takes is no matter of
# right or wrong, so nothing is timed.
settings.register_profile("fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("random" if os.environ.get("HOLDFAST_RANDOM_EXAMPLES") == "1" else "fixed")


@pytest.fixture(scope="session")
def toolchain() -> Path:
    """Folder with helm, kubectl, versitygw, prometheus and promtool."""
    folder = os.environ.get("HOLDFAST_TOOLCHAIN")
    if not folder:
        pytest.fail("HOLDFAST_TOOLCHAIN is not set: run `make test`, which builds the tools and sets it")
    return Path(folder)
