"""A job with one checkpoint, made once and copied for every disturbed save."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.conftest import gang  # noqa: F401  (a fixture)
from tests.faults import saving
from tests.faults.saving import Place


@pytest.fixture(scope="session")
def job_with_a_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("before")).make()
    saving.first_save(place)
    return place


@pytest.fixture
def copies(job_with_a_checkpoint: Place, tmp_path: Path) -> Callable[[], Place]:
    """Each call gives a copy of that job."""
    made = iter(range(1_000_000))
    return lambda: job_with_a_checkpoint.copy(tmp_path / f"job-{next(made)}")
