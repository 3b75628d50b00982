"""The chart of this checkout, rendered by the real helm program."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).resolve().parents[2] / "charts/holdfast"

Objects = list[dict[str, Any]]
Render = Callable[..., Objects]


class HelmRefused(Exception):
    """helm said no; the message is what it said."""


@pytest.fixture(scope="session")
def helm(toolchain: Path) -> Callable[..., str]:
    """One call of helm; its output, or HelmRefused."""

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [str(toolchain / "helm"), *arguments], capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise HelmRefused(done.stderr + done.stdout)
        return done.stdout

    return call


@pytest.fixture(scope="session")
def render(helm: Callable[..., str]) -> Render:
    """Objects of the release `holdfast` in `holdfast-system`, for `--set` values."""

    def objects(*values: str, release: str = "holdfast", namespace: str = "holdfast-system") -> Objects:
        settings = [word for value in values for word in ("--set", value)]
        text = helm("template", release, str(CHART), "--namespace", namespace, *settings)
        return [found for found in yaml.safe_load_all(text) if found]

    return objects


@pytest.fixture(scope="session")
def refused() -> type[Exception]:
    return HelmRefused
