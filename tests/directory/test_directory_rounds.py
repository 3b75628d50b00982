"""E4, I9: every checkpoint of a script is another form of the state, and a round that waits for one is not held up by the slots of the one before."""

import os
import subprocess
import sys
import time
from pathlib import Path

from holdfast_api import names, ranks
from tests.train.fake_agent import FakeAgent


def test_a_checkpoint_that_a_round_waits_for_does_not_wait_for_the_slot_of_the_one_before(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    own = [sys.executable, "-c", "import time; time.sleep(600)"]
    line = [sys.executable, "-m", "holdfast_directory", str(out), "--quiet-seconds", "0.2", "--", *own]
    with FakeAgent(tmp_path / "agent") as agent, agent.as_environment():
        agent.keep_slots = (
            True  # as an agent does in a round: what it has in hand it keeps until all have come to the target
        )
        rank = subprocess.Popen(line, env={**os.environ, "LOCAL_RANK": "0", names.ENV_ATTEMPT: "1"})
        try:
            agent.wait(lambda: 0 in agent.connections and bool(agent.heard(ranks.Passed)), "the start")
            write(out / "checkpoint-1", 1000)
            agent.wait(lambda: 1 in agent.images[0], "the first checkpoint")
            write(out / "checkpoint-2", 2000)
            number, target = 0, 1
            while target == 1:  # the second one has not been found yet, and the round is content with the first
                time.sleep(0.5)
                number += 1
                target = agent.start_round(number, world=1)
                assert agent.await_round(number, world=1) == {0: target}
                agent.open_gates(number)
            assert target == 2
        finally:
            rank.kill()
            rank.wait()


def write(folder: Path, length: int) -> None:
    folder.mkdir()
    (folder / "model.bin").write_bytes(bytes(length))
