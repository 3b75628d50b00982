"""Every manifest in docs/placement.md says what the operator reads in it (a real API server is asked in tests/crd/test_admission.py)."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from holdfast_operator.core import kueue
from holdfast_operator.crd.v1alpha1 import TrainingJobSpec
from holdfast_operator.shell import translate

TEXT = (Path(__file__).parents[2] / "docs/placement.md").read_text(encoding="utf-8")
MANIFESTS: list[Any] = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]


def within(given: Any, read: Any) -> bool:
    """Everything that was given was read, and nothing of it was dropped."""
    if isinstance(given, dict):
        return isinstance(read, dict) and all(k in read and within(v, read[k]) for k, v in given.items())
    if isinstance(given, list):
        return len(given) == len(read) and all(map(within, given, read))
    return bool(given == read)


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_the_manifest_is_read_whole(manifest: dict[str, Any]) -> None:
    assert within(manifest["spec"], TrainingJobSpec.model_validate(manifest["spec"]).to_wire())


def test_the_job_of_the_first_manifest_is_in_a_queue() -> None:
    item = {**MANIFESTS[0], "metadata": {**MANIFESTS[0]["metadata"], "namespace": "team", "uid": "u"}}
    meta, spec, _, error = translate.job(item)
    assert not error
    assert spec is not None
    assert kueue.queue_of(meta, spec.template) == "gpus"
