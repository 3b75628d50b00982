"""No step for far longer than usual: who is taken for hung, whom the others wait for, and what is done about it (hangs.py, hang_watch.py)."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from holdfast_agent import hangs, stacks
from holdfast_agent.reports import TERMINATION_BYTES, termination_message
from holdfast_api import codec
from holdfast_api.messages import AgentPhase, AgentReport, Exit, HangLimits, HangReport, RankStack
from holdfast_api.peers import RankSeen
from holdfast_rank.doing import Doing
from holdfast_rank.stacks import NUMBER, register
from tests.agent.conftest import eventually

LIMITS = HangLimits()
NOWHERE = "http://127.0.0.1:9"
"""An operator that is there, and away."""


def a_rank(number: int, idle: float, *, patience: float = 100.0, boundary: int = 7, **fields) -> RankSeen:
    return RankSeen(number, boundary, fields.pop("doing", "step"), idle, patience, **fields)


def dump(*frames: tuple[str, int, str], others: str = "") -> str:
    lines = "\n".join(f'  File "{file}", line {line} in {name}' for file, line, name in frames)
    return f'Thread 0x01 (most recent call first):\n  File "/x/threading.py", line 1 in wait\n\n{others}Current thread 0x02 (most recent call first):\n{lines}'


TRAIN = ("/app/train.py", 33, "main")
TORCH = "/usr/lib/python3/site-packages/torch"
IN_ALL_REDUCE = dump((f"{TORCH}/distributed/distributed_c10d.py", 2800, "all_reduce"), TRAIN)
IN_BACKWARD = dump((f"{TORCH}/autograd/graph.py", 824, "_engine_run_backward"), TRAIN)
IN_LOADER = dump(
    ("/usr/lib/python3.13/queue.py", 1, "get"), (f"{TORCH}/utils/data/dataloader.py", 1, "_get_data"), TRAIN
)
IN_FORWARD = dump(("/app/model.py", 12, "forward"), (f"{TORCH}/nn/modules/module.py", 1, "_call_impl"), TRAIN)


class TestPatience:
    def test_is_the_most_of_the_set_time_the_usual_step_and_the_longest_one(self):
        def limit(usual: float, longest: float) -> float:
            return hangs.patience(LIMITS, "step", usual_seconds=usual, longest_seconds=longest).limit

        assert limit(1, 1) == LIMITS.step_seconds
        assert limit(500, 1) == 5000
        assert limit(1, 3000) == 6000

    @pytest.mark.parametrize(
        ("doing", "least"),
        [
            ("step", LIMITS.step_seconds),
            ("", LIMITS.step_seconds),
            ("something of a later release", LIMITS.step_seconds),
            ("data", LIMITS.data_seconds),
            ("save", LIMITS.data_seconds),
            ("evaluation", LIMITS.evaluation_seconds),
            ("start", LIMITS.start_seconds),
            ("slot", 0),
            ("gate", 0),
            ("finish", 0),
        ],
    )
    def test_depends_on_what_the_rank_does_and_what_is_ours_is_never_late(self, doing, least):
        assert hangs.patience(LIMITS, doing, usual_seconds=1, longest_seconds=1).limit == least

    def test_has_no_end_where_it_is_switched_off_and_the_usual_step_does_not_bring_it_back(self):
        off = replace(LIMITS, data_seconds=0)
        assert hangs.patience(off, "data", usual_seconds=100, longest_seconds=100).limit == 0
        assert hangs.patience(replace(LIMITS, action="ignore"), "step", usual_seconds=1, longest_seconds=1).limit == 0

    def test_warns_of_a_step_before_collectives_time_out_and_never_of_what_often_takes_long(self):
        for doing, warns in (("step", True), ("save", True), ("data", False), ("evaluation", False), ("start", False)):
            found = hangs.patience(LIMITS, doing, usual_seconds=1, longest_seconds=1)
            assert bool(found.warn) is warns, doing
        assert hangs.patience(LIMITS, "step", usual_seconds=1, longest_seconds=1).warn < 600
        assert hangs.patience(LIMITS, "step", usual_seconds=1, longest_seconds=800).warn > 800


class TestStuck:
    def test_all_late_is_a_hang(self):
        assert len(hangs.stuck([a_rank(0, 101), a_rank(1, 100)])) == 2
        assert not hangs.stuck([a_rank(0, 99), a_rank(1, 99)])

    def test_one_that_reads_data_or_evaluates_or_starts_may_be_what_the_others_wait_for(self):
        for doing in ("data", "evaluation", "start", "slot"):
            late, patient = a_rank(0, 150), a_rank(1, 150, patience=0 if doing == "slot" else 1000, doing=doing)
            assert not hangs.stuck([late, patient]), doing

    def test_one_that_passes_boundaries_goes_on_without_the_late_one(self):
        assert [r.rank for r in hangs.stuck([a_rank(0, 150), a_rank(1, 2, boundary=90)])] == [0]

    def test_ranks_at_a_gate_or_at_their_end_are_not_waited_for(self):
        out = [a_rank(1, 150, patience=0, doing="gate"), a_rank(2, 150, patience=0, ended=True)]
        assert [r.rank for r in hangs.stuck([a_rank(0, 150), *out])] == [0]

    def test_where_an_agent_does_not_answer_more_patience_is_had(self):
        assert not hangs.stuck([a_rank(0, 150)], silent=True)
        assert hangs.stuck([a_rank(0, 200)], silent=True)

    def test_an_ended_rank_is_never_late(self):
        assert not hangs.stuck([a_rank(0, 150, ended=True)])


class TestCulprits:
    def find(self, *ranks: RankSeen, silent=()) -> hangs.Finding:
        return hangs.culprits(hangs.stuck(ranks), ranks, silent)

    def test_one_that_is_not_in_the_collective_of_the_others(self):
        for waiting in (IN_ALL_REDUCE, IN_BACKWARD):
            found = self.find(a_rank(0, 150, stack=waiting), a_rank(1, 150, stack=IN_FORWARD))
            assert found.culprits == (1,)
            assert "rank 1 (in step, at model.py:12 in forward)" in found.why

    def test_a_loader_is_named(self):
        found = self.find(a_rank(0, 150, stack=IN_ALL_REDUCE), a_rank(1, 150, stack=IN_LOADER))
        assert found.culprits == (1,)
        assert "in a data loader, at train.py:33 in main" in found.why

    def test_one_that_is_a_boundary_behind_whatever_the_stacks_say(self):
        found = self.find(a_rank(0, 150, boundary=8, stack=IN_FORWARD), a_rank(1, 150, stack=IN_ALL_REDUCE))
        assert found.culprits == (1,)
        assert "at boundary 7, others have passed 8" in found.why

    def test_a_stopped_one_and_one_that_the_kernel_holds(self):
        found = self.find(a_rank(0, 150, boundary=8, state="T"), a_rank(1, 150, stack=IN_FORWARD))
        assert found == hangs.Finding((0,), "rank 0 (in step): stopped by a signal")
        assert self.find(a_rank(0, 150, state="D"), a_rank(1, 150)).culprits == (0,)

    def test_nobody_where_all_wait_for_each_other_and_where_says_so(self):
        elsewhere = IN_ALL_REDUCE.replace("line 33", "line 44")
        found = self.find(a_rank(0, 150, stack=IN_ALL_REDUCE), a_rank(1, 150, stack=elsewhere))
        assert found.culprits == ()
        assert "in different places" in found.why
        assert "train.py:33" in found.why
        assert "train.py:44" in found.why

    def test_nobody_where_others_have_ended(self):
        found = self.find(a_rank(0, 150, stack=IN_ALL_REDUCE), a_rank(1, 150, boundary=9, ended=True))
        assert found.culprits == ()
        assert "have ended" in found.why

    def test_a_late_one_of_ranks_that_do_not_wait_for_each_other(self):
        assert self.find(a_rank(0, 150), a_rank(1, 2, boundary=90)).culprits == (0,)

    def test_agents_that_did_not_answer_are_told(self):
        assert "workers 3 did not answer" in self.find(a_rank(0, 150), a_rank(1, 150), silent=[3]).why

    def test_any_text_is_a_stack(self):
        for text in ("", "\n\n\n", "File", 'File "', "\x00" * 100, dump(("", 0, "x"))):
            hangs.place(text)
            self.find(a_rank(0, 150, stack=text), a_rank(1, 150, stack=IN_ALL_REDUCE))


class TestStacks:
    """Of processes that are not ours to end."""

    def test_one_that_does_not_catch_the_signal_is_left_alone(self, tmp_path):
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            path = tmp_path / "stacks"
            path.write_text("old")
            assert stacks.take(child.pid, str(path), NUMBER) == ""
            assert path.read_text() == "old"
            assert child.poll() is None
            child.stdin.write(b"\n")
        assert child.returncode == 0

    def test_one_that_is_stopped_gets_none_and_is_said_to_be(self, tmp_path):
        code = f"from holdfast_rank import stacks; stacks.register({str(tmp_path / 's')!r}); print(flush=True); input()"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            child.send_signal(signal.SIGSTOP)
            eventually(lambda: stacks.state_of(child.pid) == "T", "is stopped")
            assert stacks.take(child.pid, str(tmp_path / "s"), NUMBER) == ""
            child.send_signal(signal.SIGCONT)
            eventually(lambda: stacks.state_of(child.pid) != "T", "goes on")
            assert "<module>" in stacks.take(child.pid, str(tmp_path / "s"), NUMBER)
            child.stdin.write(b"\n")
        assert child.returncode == 0

    def test_a_script_that_has_the_signal_keeps_it(self, tmp_path):
        words = "import signal; from holdfast_rank import stacks; signal.signal(stacks.NUMBER, signal.SIG_IGN); print(stacks.register(%r))"
        code = words % str(tmp_path / "s")
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0\n"

    def test_nothing_is_made_of_what_is_not_there(self, tmp_path):
        assert stacks.take(2**22 + 1, str(tmp_path / "s"), NUMBER) == ""
        assert register("/nonexistent/folder/s") == 0
        assert stacks.state_of(2**22 + 1) == ""
        assert stacks.group_of(2**22 + 1) == 0


class TestDoing:
    def ticked(self, doing, clock, seconds):
        for _ in range(int(seconds / 0.2) + 1):
            clock[0] += 0.2
            doing.tick()

    def made(self):
        told, clock = [], [0.0]
        return Doing(told.append, clock=lambda: clock[0]), told, clock

    def test_what_lasts_is_told_once(self):
        doing, told, clock = self.made()
        doing.passed()
        with doing.during("data"):
            self.ticked(doing, clock, 0.4)
            assert told == []
            self.ticked(doing, clock, 5)
        assert told == ["data"]

    def test_after_a_boundary_it_is_told_again(self):
        """The agent takes a boundary for its end."""
        doing, told, clock = self.made()
        for _ in range(2):
            doing.passed()
            with doing.during("evaluation"):
                self.ticked(doing, clock, 2)
        assert told == ["evaluation", "evaluation"]

    def test_what_comes_and_goes_in_each_iteration_is_never_told(self):
        doing, told, clock = self.made()
        for _ in range(20):
            doing.passed()
            self.ticked(doing, clock, 0.2)
            with doing.during("data"):
                self.ticked(doing, clock, 0.4)
        assert told == []


def test_a_report_with_long_stacks_still_fits_into_a_termination_message():
    stacks = tuple(RankStack(r, r, 7, "step", 150.0, "S", "x" * 3000) for r in range(8))
    now = codec.from_plain(
        HangReport,
        {
            "at": "2026-03-01T12:00:00Z",
            "idle_seconds": 1.0,
            "boundary": 1,
            "culprits": [],
            "workers": [],
            "why": "",
            "restarts": True,
        },
    ).at
    hang = HangReport(now, 150.0, 7, tuple(range(64)), tuple(range(64)), "why " * 500, True, "", stacks)
    report = AgentReport("u", 0, "p", now, 1, 1, AgentPhase.FAILED, hang=hang, exit_detail="d" * 2000)
    data = termination_message(report)
    assert len(data) <= TERMINATION_BYTES
    read = codec.from_json(AgentReport, data)
    assert read.hang is not None
    assert read.hang.restarts


# ---- real agents and processes

SOON = HangLimits(step_seconds=3, data_seconds=3, evaluation_seconds=600, start_seconds=600, factor=1)


def hung(g):
    return eventually(
        lambda: (h := g.pods[0].report().hang) and h.restarts and h, f"a hang is found; {g.pods[0].words()}"
    )


def test_a_rank_that_hangs_is_named_and_the_ranks_start_again_in_their_pods_from_the_newest_checkpoint(gang):
    trainer = ("100000", "--hang-at", "25", "--hang-rank", "1")
    g = gang(trainer=trainer, hangs=SOON, operator_url=NOWHERE).start().begin()
    found = hung(g)
    assert found.culprits == found.workers == (1,)
    assert g.pods[0].report().phase is AgentPhase.FAILED
    assert "hung: no boundary was passed" in g.pods[0].report().exit_detail
    assert "fake_trainer.py" in found.why, found
    assert " in hang" in found.why, found
    assert "what its threads are doing" in g.pods[1].words(), "kubectl logs of the culprit's pod has the stack"
    assert " in hang" in g.pods[1].words()
    pids = {w: p.process.pid for w, p in g.pods.items()}
    g.begin()
    eventually(lambda: "2 0 restored 20" in g.lines(), f"goes on from 20: {g.lines()}; {g.pods[0].words()}")
    g.wait_for_boundary(60)
    assert {w: p.process.pid for w, p in g.pods.items()} == pids
    assert all(p.process.poll() is None for p in g.pods.values())
    assert g.pods[0].report().hang is None
    assert not any("TORN" in line for line in g.lines())


def test_a_long_wait_of_a_known_kind_is_no_hang(gang):
    limits = replace(SOON, step_seconds=4)
    trainer = ("100000", "--hang-at", "25", "--hang-rank", "1", "--hang-doing", "evaluation", "--hang-seconds", "9")
    g = gang(trainer=trainer, hangs=limits).start().begin()
    g.wait_for_boundary(60)  # 9 s in evaluation were not taken for a hang, though a step may take 4
    assert all(p.report().attempt == 1 and p.report().phase is AgentPhase.TRAINING for p in g.pods.values())


def test_what_only_looks_like_a_hang_is_told_and_taken_back(gang):
    limits = replace(SOON, step_seconds=14)
    g = gang(workers=1, trainer=("100000", "--hang-at", "25", "--hang-seconds", "9"), hangs=limits).start().begin()
    found = eventually(lambda: g.pods[0].report().hang, f"a word in time; {g.pods[0].words()}")
    assert not found.restarts
    assert found.culprits == (0,)
    g.wait_for_boundary(60)
    eventually(lambda: g.pods[0].report().hang is None, "it is taken back")
    assert g.pods[0].report().phase is AgentPhase.TRAINING


def test_with_report_only_nothing_is_ended(gang):
    limits = replace(SOON, action="report")
    g = gang(workers=1, trainer=("100000", "--hang-at", "25", "--hang-seconds", "8"), hangs=limits).start().begin()
    eventually(lambda: g.pods[0].report().hang, "a word")
    g.wait_for_boundary(40)
    assert g.attempt == 1


def test_crashed_ranks_wait_in_their_pods_for_the_next_attempt_and_start_from_the_arena(gang):
    trainer = ("100000", "--crash-at", "25", "--crash-once")
    g = gang(trainer=trainer, operator_url=NOWHERE).start().begin()
    g.wait_for_phase(AgentPhase.FAILED)
    pids = {w: p.process.pid for w, p in g.pods.items()}
    g.begin()
    g.wait_for_boundary(60)
    assert {w: p.process.pid for w, p in g.pods.items()} == pids
    report = g.pods[1].report()
    assert report.exit is None
    assert set(report.fetched_from) == {"arena"}, report.fetched_from


def test_an_agent_whose_attempt_has_failed_ends_when_told(gang):
    from holdfast_api.messages import EndOrder

    g = gang(trainer=("100000", "--crash-at", "15"), operator_url=NOWHERE).start().begin()
    g.wait_for_phase(AgentPhase.FAILED)
    status, _ = g.pods[0].order("/v1/end", EndOrder(g.job_uid, 1))
    assert status == 200
    assert g.pods[0].wait() == 70
    assert g.pods[0].last_report().exit is Exit.TRAINER_FAILED
    g.pods[1].kill(15)
    assert g.pods[1].wait() == 70, "SIGTERM ends it at once, and it says why it failed"


def test_an_order_to_end_means_nothing_to_an_attempt_that_runs(gang):
    from holdfast_api.messages import EndOrder

    g = gang(workers=1, trainer=("100000",)).start().begin()
    g.wait_for_boundary(5)
    g.pods[0].order("/v1/end", EndOrder(g.job_uid, 1))
    g.wait_for_boundary(40)


def test_what_is_told_in_metrics(gang):
    import urllib.request

    g = gang(workers=1, trainer=("100000",)).start().begin()
    g.wait_for_boundary(5)
    page = urllib.request.urlopen(f"http://127.0.0.1:{g.pods[0].port}/metrics").read().decode()
    assert 'holdfast_agent_rank_seconds{part="step",rank="0"}' in page
    assert "holdfast_agent_hangs_total 0.0" in page
    assert json.loads(codec.to_json(g.pods[0].report()))["pace"][0]["step_seconds"] > 0
