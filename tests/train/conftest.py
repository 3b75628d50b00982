"""Shared by the tests of the library: helpers importable by name, one thread for torch, an agent that keeps images."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from fake_agent import FakeAgent

torch.set_num_threads(1)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    """An agent that the ranks of this process find."""
    with FakeAgent(tmp_path / "agent") as running, running.as_environment():
        yield running
