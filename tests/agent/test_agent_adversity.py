"""Rounds in which something else goes wrong: dead coordinators, a store that fails, an operator that listens or does not."""

import http.server
import signal
import threading
import time

import pytest

from holdfast_api import codec, messages
from holdfast_api.messages import AgentPhase, AgentReport


@pytest.fixture
def operator():
    """Takes reports as the operator's server does; `answer` is its status code."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.heard.append((self.headers["Authorization"], codec.from_json(AgentReport, body)))
            self.send_response(server.answer)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.heard, server.answer = [], 204
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_reports_reach_the_operator_in_order_with_the_token_of_the_moment(gang, operator):
    g = gang(workers=1, trainer=("60",), operator_url=f"http://127.0.0.1:{operator.server_port}").start()
    (g.pods[0].folder / "token").write_text("first\n")
    g.begin()
    g.wait_for_commit(10)
    (g.pods[0].folder / "token").write_text("second\n")
    assert g.pods[0].wait() == 0
    tokens = [t for t, _ in operator.heard]
    assert {"Bearer first", "Bearer second"} <= set(tokens)
    reports = [r for _, r in operator.heard]
    assert [r.sequence for r in reports] == sorted({r.sequence for r in reports})
    assert (reports[-1].phase, reports[-1].exit) == (AgentPhase.FINISHED, messages.Exit.FINISHED)


def test_an_operator_that_refuses_or_is_gone_stops_nothing(gang, operator):
    operator.answer = 403
    g = gang(workers=1, operator_url=f"http://127.0.0.1:{operator.server_port}").start().begin()
    g.wait_for_commit(10)
    operator.shutdown()
    operator.server_close()
    g.pods[0].kill(signal.SIGTERM)
    assert g.pods[0].wait() == 72
    assert g.commits()[-1][2] == "sigterm"


def test_when_the_coordinator_dies_in_the_evacuation_nobody_commits_a_part_and_the_other_ends_in_time(gang):
    """Fault scenario 24: worker 0 would coordinate; it is killed the moment that the notice is out."""
    g = gang(config={"sigterm_floor_seconds": 8}).start().begin()
    g.wait_for_commit(10)
    before = len(g.commits())
    g.notice(1, seconds=20, to=[g.pods[1]])
    g.pods[0].kill()
    began = time.monotonic()
    g.pods[1].kill(signal.SIGTERM)
    code = g.pods[1].wait()
    assert time.monotonic() - began < 9
    commits = g.commits()
    assert (code, len(commits)) in ((73, before), (73, before + 1), (72, before + 1))


def test_a_store_that_fails_for_good_loses_the_newest_steps_and_keeps_the_last_commit(gang):
    g = gang(workers=1, config={"sigterm_floor_seconds": 6}).start().begin()
    g.wait_for_commit(20)
    g.notice(0, acting=False, source="taint:quiet")
    before = g.commits()
    moved = g.root / "elsewhere"
    g.bucket.rename(moved)
    began = time.monotonic()
    g.pods[0].kill(signal.SIGTERM)
    assert g.pods[0].wait() == 73
    assert time.monotonic() - began < 6.5
    moved.rename(g.bucket)
    assert g.commits()[: len(before)] == before
    newest = g.commits()[-1][1]
    g.new_pod(0)
    g.begin()
    g.wait_for_commit(newest + 1)


def test_a_store_that_comes_back_before_the_deadline_gets_the_checkpoint(gang):
    g = gang(workers=1, config={"sigterm_floor_seconds": 20}).start().begin()
    g.wait_for_commit(10)
    moved = g.root / "elsewhere"
    g.bucket.rename(moved)
    threading.Timer(1.0, lambda: moved.rename(g.bucket)).start()
    g.pods[0].kill(signal.SIGTERM)
    assert g.pods[0].wait() == 72, g.pods[0].words()
    assert g.commits()[-1][2] == "sigterm"


def test_a_checkpoint_that_one_of_two_ranks_refuses_ends_the_attempt_so_that_the_next_excludes_it(gang):
    """The other rank holds it already: only a new attempt can give both the older one."""
    g = gang(processes=2, workers=1).start().begin()
    g.wait_for_commit(20)
    g.pods[0].kill()
    g.pods[0].wait()
    newest = g.commits()[-1]
    g.trainer = ("1000", "--fail-load-rank", "1")
    g.new_pod(0)
    g.begin()
    assert g.pods[0].wait() == 70, g.pods[0].words()
    report = g.pods[0].last_report()
    assert [f"{r.attempt}/{r.save}" for r in report.rejections if r.of_checkpoint] == [newest[0]]


def test_a_failed_save_leaves_slots_free_and_the_next_one_is_made(gang):
    g = gang(workers=1).start().begin()
    g.wait_for_commit(10)
    checkpoints = next(g.bucket.glob("ns/job-*/checkpoints"))
    moved = g.root / "elsewhere"
    g.bucket.rename(moved)
    time.sleep(1.5)
    moved.rename(g.bucket)
    newest = g.commits()[-1][1]
    g.wait_for_commit(newest + 20)
    assert checkpoints.exists()
