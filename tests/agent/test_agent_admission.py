"""Who is let in: signed requests (H2), and what a broken training process can do to the agent (S27)."""

import json
import random
import socket
import time
import urllib.request

import pytest

from holdfast_api import codec, ranks, signing
from holdfast_api.messages import AgentPhase, Cause, CheckpointOrder, NoticeOrder
from holdfast_api.peers import FlushOrder, RoundRequest


@pytest.fixture
def running(gang):
    g = gang(workers=1).start().begin()
    g.wait_for_phase(AgentPhase.TRAINING)
    return g


def order(g) -> bytes:
    return codec.to_json(NoticeOrder(g.job_uid, 1, ()))


def test_a_forged_an_expired_and_a_misdirected_signature_are_refused(running):
    g, pod = running, running.pods[0]
    assert pod.request("POST", "/v1/notice", order(g), attempt=1)[0] == 200
    assert pod.request("POST", "/v1/notice", order(g), attempt=1, header="")[0] == 401
    assert pod.request("POST", "/v1/notice", order(g), attempt=1, header="v1 99999999999.00.00")[0] == 401
    assert pod.request("POST", "/v1/notice", order(g), attempt=1, receiver_pod_uid="another-pod")[0] == 401
    assert pod.request("POST", "/v1/notice", order(g), attempt=1, job_uid="another-job")[0] == 401
    elsewhere = pod.signature("POST", "/v1/attempt", order(g), attempt=1)
    assert pod.request("POST", "/v1/notice", order(g), attempt=1, header=elsewhere)[0] == 401
    assert pod.request("GET", "/v1/status", attempt=0, header="")[0] == 401


def test_a_key_is_good_for_its_role_only(running):
    g, pod = running, running.pods[0]
    assert pod.request("POST", "/v1/notice", order(g), attempt=1, role=signing.Role.PEER)[0] == 401
    body = codec.to_json(RoundRequest(1, Cause.SPOT, True, None))
    assert pod.request("POST", "/v1/peer/round", body, attempt=1, role=signing.Role.OPERATOR)[0] == 401
    assert pod.report().phase is AgentPhase.TRAINING


def test_a_request_that_was_seen_before_is_refused(running):
    g, pod = running, running.pods[0]
    signed = pod.signature("POST", "/v1/notice", order(g), attempt=1)
    assert pod.request("POST", "/v1/notice", order(g), attempt=1, header=signed)[0] == 200
    status, body = pod.request("POST", "/v1/notice", order(g), attempt=1, header=signed)
    assert (status, b"seen before" in body) == (401, True)


def test_a_message_for_another_attempt_is_answered_with_the_agents_own_report(running):
    pod = running.pods[0]
    body = codec.to_json(FlushOrder(9, 1, 1, None, Cause.PERIODIC, False, None))
    status, answer = pod.request("POST", "/v1/peer/flush", body, attempt=9, role=signing.Role.PEER)
    assert (status, json.loads(answer)["attempt"]) == (409, 1)
    message = codec.to_json(CheckpointOrder(running.job_uid, 2, "x", Cause.MANUAL))
    assert pod.request("POST", "/v1/checkpoint", message, attempt=1)[0] == 403  # signed for 1, says 2


def test_bodies_that_are_malformed_or_too_long_are_refused_with_the_field(running):
    pod = running.pods[0]
    status, answer = pod.request("POST", "/v1/notice", b'{"schema":1}', attempt=1)
    assert (status, b"missing" in answer) == (400, True)
    assert pod.request("POST", "/v1/notice", b" " * ((4 << 20) + 1), attempt=1)[0] == 413
    assert pod.answers()


def rubbish(seed: int) -> bytes:
    rng = random.Random(seed)
    hello = ranks.to_line(ranks.Hello(rng.choice([0, 1, -1, 2**62]), 0, 1, rng.choice([1, 2]), 1, {}))
    captured = ranks.to_line(ranks.CapturedSlot(rng.choice([0, -1, 99]), 1, 5, "periodic", 0, 0.0, 1, 1, 1, {}, {}))
    pieces = [
        rng.randbytes(200),
        b"\n" * 50,
        b"{}\n",
        b'{"type":"Welcome"}\n',
        b"[" * 5000 + b"\n",
        b'{"type":"Hello","rank":' + b"9" * 400 + b"}\n",
        hello,
        hello[:20],
        captured,
        ranks.to_line(ranks.Plan(1, 1 << 60, ())),
        ranks.to_line(ranks.FinishAllowed()),
        ranks.to_line(ranks.Loaded(3)),
    ]
    return b"".join(rng.choices(pieces, k=8))


def test_rubbish_on_the_socket_closes_that_connection_and_nothing_else(running):
    path = running.socket_of_ranks()
    for seed in range(60):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(path)
            s.settimeout(5)
            try:
                s.sendall(rubbish(seed))
                s.shutdown(socket.SHUT_WR)
                while s.recv(65536):
                    pass
            except OSError:
                pass
    boundary = running.pods[0].report().boundary
    running.wait_for_boundary(boundary + 10)
    running.wait_for_commit(boundary)


def test_a_second_connection_for_a_rank_is_told_why_it_may_not_join(running):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(running.socket_of_ranks())
        s.sendall(ranks.to_line(ranks.Hello(0, 0, 1, 1, 1, {})))
        answer = s.makefile("rb").readline()
    assert ranks.from_line(answer) == ranks.Refused("rank 0 is connected already")


def test_metrics_say_what_was_saved_and_are_open_to_read(running):
    running.wait_for_commit(10)
    time.sleep(0.2)
    page = urllib.request.urlopen(f"http://127.0.0.1:{running.pods[0].port}/metrics").read().decode()
    lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(lines["holdfast_agent_attempt"]) == 1
    assert float(lines["holdfast_agent_last_checkpoint_boundary"]) >= 10
    assert float(lines["holdfast_agent_checkpoint_sent_bytes_total"]) > 0
    assert float(lines['holdfast_agent_stall_seconds_count{kind="periodic"}']) >= 1
