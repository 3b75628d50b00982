"""Directory mode on the real cluster: a script that knows nothing of Holdfast is moved to another node, and ends with the digest of an uninterrupted run."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.directory.test_directory_mode import right

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
SCRIPT = Path(__file__).parents[1] / "directory" / "writes_its_own.py"
STEPS = 400


@pytest.mark.parametrize("signal", ["USR1", ""])
def test_a_script_that_writes_its_own_checkpoints_moves_to_another_node(lab: Any, signal: str) -> None:
    every = "100000" if signal else "50"
    manifest = lab.manifest("files")
    manifest["spec"]["workers"] = 1
    directory = {"path": "/tmp/out", "quietSeconds": 2, "answerSeconds": 3}
    manifest["spec"]["checkpoint"] |= {
        "source": "directory",
        "directory": directory | ({"signal": signal} if signal else {}),
    }
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    container["command"] = ["python3", "-c", SCRIPT.read_text(), "/tmp/out", str(STEPS)]
    container["command"] += ["--every", every, "--seconds", "0.1", "--log", "/dev/stdout", "--on-signal", "exit"]
    container.pop("args", None)
    lab.kube.apply(manifest)
    job = lab.job("files")
    if signal:
        job.wait("training", lambda s: s.get("phase") == "Running")
    else:
        job.wait("a checkpoint", lambda s: s.get("lastCheckpoint"))
    before = job.node_of(0)
    lab.kube.run("taint", "node", before, "aws-node-termination-handler/spot-itn=test:NoSchedule")
    status = job.wait_succeeded()
    assert status["counts"]["preemptions"] == 1
    logs = "".join(lab.kube.logs(p["metadata"]["name"], lab.namespace) for p in job.pods())
    assert f"finished {STEPS} {right(STEPS)}" in logs, logs[-3000:]
    (resumed,) = re.findall(r"^resumed (\d+) checkpoint-(\d+)$", logs, re.MULTILINE)
    assert resumed[0] == resumed[1]
    assert job.node_of(0) != before
    # With a signal the script writes no checkpoint of its own accord: it has been told.
    assert int(resumed[0]) % int(every) == 0 or signal
