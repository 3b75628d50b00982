"""The end of training: never FINISHED with a last state that is neither durable nor impossible to save (design: what a user would expect; E3, B1)."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holdfast_agent import laptop
from holdfast_agent.finish import why_never
from holdfast_api.messages import AgentPhase, BlockedReason
from holdfast_api.peers import GateVotes

SLOW = ("24", "--step-seconds", "0.3")
"""The last boundary comes more than a second after the last periodic save, at 20."""


@pytest.fixture
def stuck(gang):
    """Two workers whose training has ended while the store is away; the store's folder waits in `elsewhere`."""
    g = gang(trainer=SLOW).start().begin()
    g.wait_for_commit(20)
    g.bucket.rename(g.root / "elsewhere")
    g.wait_for_phase(AgentPhase.BLOCKED, g.pods[0])
    return g


def test_a_last_state_that_cannot_be_stored_blocks_with_the_reason_and_is_committed_when_the_store_is_mended(stuck):
    blocked = stuck.pods[0].report().blocked
    assert blocked.reason in (BlockedReason.STORAGE_MISCONFIGURED, BlockedReason.STORAGE_UNREACHABLE)
    assert stuck.bucket.as_uri() in blocked.message
    saves = [line for line in stuck.pods[0].words().splitlines() if "is given up" in line]
    assert len({line.split("save ")[1].split()[0] for line in saves}) <= 1, "one save, tried again (B1)"
    assert not any("finished" in line for line in stuck.lines())
    (stuck.root / "elsewhere").rename(stuck.bucket)
    assert [p.wait() for p in stuck.pods.values()] == [0, 0], "".join(p.words() for p in stuck.pods.values())
    assert stuck.commits()[-1] == ("1/3", 24, "final")
    reports = [p.last_report() for p in stuck.pods.values()]
    assert [r.phase for r in reports] == [AgentPhase.FINISHED] * 2
    assert [r.blocked for r in reports] == [None, None]


def test_a_deleted_pod_ends_as_always_although_its_last_state_waits_for_the_store(stuck):
    for pod in stuck.pods.values():
        pod.kill(signal.SIGTERM)
    assert [p.wait() for p in stuck.pods.values()] == [73, 73], "".join(p.words() for p in stuck.pods.values())


def test_a_notice_that_is_withdrawn_while_the_last_state_waits_lets_the_waiting_go_on(stuck):
    stuck.notice(1, seconds=6)
    stuck.wait_for_phase(AgentPhase.SEALED)
    stuck.notice(1, withdrawn=True)
    (stuck.root / "elsewhere").rename(stuck.bucket)
    assert [p.wait() for p in stuck.pods.values()] == [0, 0], "".join(p.words() for p in stuck.pods.values())
    assert stuck.commits()[-1][1:] == (24, "final")


def test_a_periodic_save_at_the_last_boundary_that_fails_is_made_up_for(gang):
    """Its slots were given back before anybody knew that no boundary would follow."""
    g = gang(workers=1, trainer=("20", "--step-seconds", "0.2", "--finish-seconds", "2")).start().begin()
    g.wait_for_commit(10)
    g.bucket.rename(g.root / "elsewhere")
    end = time.monotonic() + 60
    while "save 2 is given up" not in g.pods[0].words():
        assert time.monotonic() < end, g.pods[0].words()
        time.sleep(0.05)
    (g.root / "elsewhere").rename(g.bucket)
    assert g.pods[0].wait() == 0, g.pods[0].words()
    assert g.commits()[-1][1:] == (20, "final")


def test_a_last_state_that_the_lead_does_not_hold_lets_everybody_go_and_says_so(gang):
    g = gang(trainer=("15", "--no-final-rank", "0")).start().begin()
    assert [p.wait() for p in g.pods.values()] == [0, 0], "".join(p.words() for p in g.pods.values())
    assert g.commits()[-1][1] == 10
    for pod, words in zip(g.pods.values(), ("not every rank has captured it", "the lead has given it up"), strict=True):
        assert f"the last boundary 15 could not be saved: {words}" in pod.last_report().exit_detail


def test_on_a_laptop_the_ranks_wait_too_the_terminal_says_why_and_ctrl_c_ends_it(tmp_path):
    directory, log = tmp_path / "job", tmp_path / "agent.log"
    trainer = [sys.executable, str(Path(__file__).with_name("fake_trainer.py")), *SLOW]
    command = ["-m", "holdfast_agent", "run", "--local", str(directory), "--every-steps", "10", "--", *trainer]
    with log.open("ab") as out:
        agent = subprocess.Popen([sys.executable, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        wait_for(log, "committed at boundary 20")
        checkpoints = next(directory.glob("local/run-*/checkpoints"))
        checkpoints.rename(tmp_path / "elsewhere")
        checkpoints.write_text("a file is in the way")
        wait_for(log, "training has ended at boundary 24 and cannot be stored")
        assert "Ctrl-C ends without it" in log.read_text()
        assert agent.poll() is None
        agent.send_signal(signal.SIGINT)
        assert agent.wait(60) == 73, log.read_text()
    finally:
        agent.kill()
        agent.wait()
        shutil.rmtree(laptop._memory(laptop.take(directory)), ignore_errors=True)


def wait_for(log: Path, text: str) -> None:
    end = time.monotonic() + 60
    while text not in log.read_text():
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("votes", "words"),
    [
        ({0: GateVotes({"0": 9}, {"0": 9}, 0, (9,))}, ""),
        ({0: GateVotes({"0": 9}, {"0": 9}, 0, (9,)), 1: GateVotes({"1": 9}, {}, 0, (9,))}, ""),
        ({0: GateVotes({"0": 9}, {"0": 9}, 0, (9,)), 1: GateVotes({"1": 9}, {"1": 9}, 0, (9,))}, ""),
        ({0: GateVotes({"0": 9}, {"0": 9}, 0, (9,)), 1: GateVotes({"1": 8}, {"1": 8}, 0, (8,))}, "different boundaries"),
        ({0: GateVotes({"0": 9}, {"0": 9}, 0, (9,)), 1: GateVotes({"1": 9}, {"1": 9}, 0, ())}, r"workers \[1\]"),
    ],
)  # fmt: skip
def test_a_last_boundary_is_given_up_only_when_every_rank_has_said_where_it_ended(votes, words):

    found = why_never(votes, 9, 2)
    assert re.search(words, found) if words else found == ""
