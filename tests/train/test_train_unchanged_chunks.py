"""B4, J2 with the real library and the real agent: what has not changed is not sent again, and the bytes are told logical, sent and stored."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast_agent import laptop

SCRIPT = str(Path(__file__).with_name("mostly_unchanged.py"))
CHUNK = 1 << 20
BASE_MIB = 24
ADAM = 3
"""A parameter and its two moments."""


def commits(
    folder: Path, kind: str, *, base_mib: int = BASE_MIB, steps: int = 6, every: int = 2
) -> tuple[list[dict[str, Any]], int]:
    """The commit records in order, and the bytes that are trained."""
    job = folder / "job"
    options = ["--local", str(job), "--every-steps", str(every), "--chunk-mib", "1"]
    command = [sys.executable, "-m", "holdfast_agent", "run", *options, "--", sys.executable, SCRIPT, kind, str(base_mib), str(steps)]  # fmt: skip
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    finally:
        if (job / ".holdfast").exists():
            shutil.rmtree(laptop._memory(laptop.take(job)), ignore_errors=True)
    found = [json.loads(p.read_text()) for p in sorted(job.glob("local/run-*/checkpoints/*/*/commit.json"))]
    trained = re.search(r"trained (\d+)", ended.stdout)
    assert trained is not None
    return found, int(trained[1])


@pytest.mark.parametrize("kind", ["lora", "frozen"])
def test_a_frozen_base_is_sent_once(tmp_path: Path, kind: str) -> None:
    """Later saves: what is trained, its optimizer's state, and two chunks at most."""
    found, trained = commits(tmp_path, kind)
    assert len(found) >= 2
    first, *later = found
    assert first["bytes_logical"] == first["bytes_sent"] == first["bytes_stored"] > BASE_MIB << 20
    for record in later:
        assert record["bytes_sent"] <= ADAM * trained + 2 * CHUNK
        assert record["bytes_stored"] == record["bytes_sent"]
        assert record["bytes_logical"] == first["bytes_logical"]


def test_of_a_table_the_rows_that_were_touched_are_sent(tmp_path: Path) -> None:
    """64 rows of 12,288, in the table and in two moments: a chunk or two of each."""
    found, _ = commits(tmp_path, "embedding")
    first, *later = found
    assert first["bytes_logical"] > ADAM * BASE_MIB << 20
    assert later
    for record in later:
        assert record["bytes_sent"] <= 8 * CHUNK < first["bytes_logical"] / 8
