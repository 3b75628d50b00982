"""The public names, the floor of torch, and what the library may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast

PUBLIC = [
    "BatchShare",
    "CheckpointDamaged",
    "Checkpointer",
    "HoldfastError",
    "LinkLost",
    "RestoreError",
    "UnsupportedState",
    "Value",
    "batch_share",
]
METHODS = {"batches", "boundary", "describe", "epoch", "finish", "restore", "step"}


def test_the_public_names_are_these() -> None:
    assert holdfast.__all__ == PUBLIC
    assert all(getattr(holdfast, name).__doc__ for name in PUBLIC)


def test_the_checkpointer_has_these_methods_and_each_is_documented() -> None:
    found = {n for n in vars(holdfast.Checkpointer) if not n.startswith("_")}
    assert found == METHODS
    assert all(getattr(holdfast.Checkpointer, n).__doc__ for n in found)


@pytest.mark.parametrize("version", ["2.9.1", "2.9.1+cu128", "1.13.0", "2.9.0a0+git12"])
def test_an_old_torch_is_refused_with_the_reason(version: str) -> None:
    """S2."""
    with pytest.raises(ImportError, match=r"torch 2\.10 or newer, found .*execute code"):
        holdfast._refuse_old_torch(version)


@pytest.mark.parametrize("version", ["2.10.0", "2.15.0+cu132", "3.0.0"])
def test_a_torch_of_the_floor_or_above_is_taken(version: str) -> None:
    holdfast._refuse_old_torch(version)


def test_the_check_happens_at_import() -> None:
    script = "import torch; torch.__version__ = '2.9.0'\nimport holdfast"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "ImportError: holdfast needs torch 2.10" in done.stderr


def test_no_unpickler_is_named_in_the_library() -> None:
    """S1: no pickle anywhere on the load path."""
    for path in Path(holdfast.__file__).parent.glob("*.py"):
        module = ast.parse(path.read_text())
        for node in ast.walk(module):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                assert not {"pickle", "joblib", "marshal", "shelve", "dill"} & set(imported), path.name
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in {"torch.load", "torch.save"}, path.name
