"""What comes back after kills, damage and strangers: old or new, never torn; never silently from zero (A, C)."""

import json
import random
import signal
import time
import uuid

import pytest

from holdfast_agent.claims import RETRY_SECONDS
from holdfast_agent.clock import now
from holdfast_api import layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Claim
from holdfast_api.messages import AgentPhase, BlockedReason, Exit
from tests.agent.conftest import eventually


def starts(gang) -> set[str]:
    return {
        line.split(maxsplit=2)[2]
        for line in gang.lines()
        if line.split()[0] == str(gang.attempt) and "finished" not in line
    }


def chunks_of(gang, ref: CheckpointRef) -> list:
    folder = gang.bucket / "ns" / f"job-{gang.job_uid}" / layout.checkpoint_prefix(ref) / "chunks"
    return sorted(folder.iterdir())


def damage(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(data))


def kill_all(gang) -> None:
    for pod in gang.pods.values():
        pod.kill()
        pod.wait()


def restart(gang, **restore):
    """New pods for all workers, as after the loss of every node, and the next attempt."""
    for worker in list(gang.pods):
        gang.new_pod(worker)
    return gang.begin(**restore)


@pytest.mark.parametrize("seed", range(2))
def test_agents_killed_at_random_moments_resume_from_old_or_new_and_never_torn(gang, seed):
    """Fault scenarios 6, 7, 9: the fake trainer ends with 66 if its bytes are not those of one boundary."""
    rng = random.Random(seed)
    g = gang(workers=2, trainer=("100000", "--step-seconds", "0.005"), config={"every_steps": 5}).start().begin()
    best = 0
    for _ in range(3):
        g.wait_for_commit(best + 5)
        time.sleep(rng.random() * 0.5)
        if rng.random() < 0.4:
            g.notice(rng.randrange(2))
            time.sleep(rng.random() * 0.1)
        kill_all(g)
        newest = max(b for _, b, _ in g.commits())
        in_place = rng.random() < 0.5
        if in_place:
            for pod in g.pods.values():
                pod.start()
            g.begin()
        else:
            restart(g)
        eventually(lambda: len([x for x in g.lines() if x.startswith(f"{g.attempt} ")]) >= g.workers, "all ranks begin")
        (start,) = starts(g)
        g.wait_for_commit(int(start.removeprefix("restored ")) + 1)
        # In place a newer save may have been finished from the node, before the claim (E6).
        before = {b for ref, b, _ in g.commits() if int(ref.split("/")[0]) < g.attempt and b >= newest}
        assert start in {f"restored {b}" for b in (before if in_place else {newest})}
        best = max(b for _, b, _ in g.commits())
    assert not [line for line in g.lines() if "TORN" in line]


def test_a_container_restarted_in_place_resumes_from_the_slot_in_memory(gang):
    g = gang(workers=1, trainer=("100000",)).start().begin()
    g.wait_for_commit(20)
    kill_all(g)
    newest = g.commits()[-1][1]
    pod = g.pods[0].start()
    assert (pod.report().attempt, pod.report().joined) == (0, 1)
    status, report = pod.order("/v1/attempt", g.orders())  # A1: the attempt has had its start
    assert (status, report.attempt, report.joined) == (409, 0, 1), "whoever orders it can see why it is refused"
    g.begin()
    assert pod.report().joined == 2
    g.wait_for_commit(newest + 10)
    assert starts(g) == {f"restored {newest}"}
    assert "arena" in pod.report().fetched_from


def test_a_damaged_chunk_in_the_store_makes_all_members_take_the_next_older_checkpoint(gang):
    g = gang().start().begin()
    g.wait_for_commit(20)
    kill_all(g)
    commits = g.commits()
    ref = CheckpointRef.parse(commits[-1][0])
    damage(chunks_of(g, ref)[0])
    restart(g)
    g.wait_for_commit(commits[-1][1] + 1)
    assert starts(g) == {f"restored {commits[-2][1]}"}
    rejections = g.pods[0].report().rejections
    assert [(CheckpointRef(r.attempt, r.save), r.of_checkpoint) for r in rejections] == [(ref, True)]


def test_a_damaged_chunk_on_the_node_costs_one_fetch_from_the_store(gang):
    g = gang(workers=1).start().begin()
    g.wait_for_commit(20)
    pod = g.pods[0]
    kill_all(g)
    newest = g.commits()[-1]
    for file in (pod.folder / "memory").iterdir():
        file.unlink()
    ref = CheckpointRef.parse(newest[0])
    images = list((pod.folder / "local").rglob(f"{layout.checkpoint_prefix(ref)}rank-0.safetensors"))
    if images:  # the last one may not have reached the node when the agent was killed
        damage(images[0])
    pod.start()
    g.begin()
    g.wait_for_commit(newest[1] + 1)
    assert starts(g) == {f"restored {newest[1]}"}
    assert "store" in pod.report().fetched_from


def test_a_checkpoint_that_a_rank_finds_bad_while_loading_is_followed_by_the_older_one_in_the_same_attempt(gang):
    g = gang(workers=1).start().begin()
    g.wait_for_commit(20)
    kill_all(g)
    commits = g.commits()
    g.trainer = ("1000", "--fail-load", "1")
    restart(g)
    g.wait_for_commit(commits[-1][1] + 1)
    assert starts(g) == {f"refused {commits[-1][1]}", f"restored {commits[-2][1]}"}
    assert g.pods[0].report().attempt == 2


def test_when_nothing_can_be_used_the_attempt_is_blocked_and_never_starts_from_zero(gang):
    g = gang(workers=1, config={"every_steps": 10}).start().begin()
    g.wait_for_commit(20)
    kill_all(g)
    for name, _, _ in g.commits():
        for chunk in chunks_of(g, CheckpointRef.parse(name)):
            damage(chunk)
    restart(g)
    g.wait_for_phase(AgentPhase.BLOCKED)
    blocked = g.pods[0].report().blocked
    assert blocked.reason is BlockedReason.NO_USABLE_CHECKPOINT
    for name, _, _ in g.commits():
        assert name in blocked.message
    since = g.pods[0].report().blocked_since
    time.sleep(2 * RETRY_SECONDS)
    later = g.pods[0].report()
    assert (later.phase, later.blocked, later.blocked_since) == (AgentPhase.BLOCKED, blocked, since), "one trouble"
    assert starts(g) == set()


def test_commits_of_an_earlier_uid_block_the_job_with_the_lines_to_add_and_either_choice_goes_on(gang):
    old = gang(workers=1).start().begin()
    old.wait_for_commit(20)
    kill_all(old)
    boundary = old.commits()[-1][1]
    old_uid, old.job_uid = old.job_uid, str(uuid.uuid4())
    old.attempt = 0
    restart(old)
    old.wait_for_phase(AgentPhase.BLOCKED)
    blocked = old.pods[0].report().blocked
    assert blocked.reason is BlockedReason.EARLIER_JOB
    assert f"resumeFrom: {{uid: {old_uid}}}" in blocked.message
    assert "fresh: true" in blocked.message

    old.attempt -= 1
    old.begin(resume_from_uid=old_uid)  # the same attempt, with the person's answer
    old.wait_for_commit(boundary + 10)
    assert f"restored {boundary}" in starts(old)
    assert list((old.bucket / "ns" / f"job-{old_uid}" / "refs").iterdir())
    assert old.pods[0].report().claim.parent_job_uid == old_uid


def test_an_agent_that_finds_a_greater_claim_stops_and_says_which(gang):
    g = gang(workers=1).start().begin()
    g.wait_for_commit(10)
    g.store.claim(Claim(g.job_uid, 7, "another", (g.pods[0].member,), None, now()))
    before = g.commits()
    assert g.pods[0].wait() == 74, g.pods[0].words()
    report = g.pods[0].last_report()
    assert (report.exit, report.superseded_by) == (Exit.SUPERSEDED, 7)
    assert len(g.commits()) <= len(before) + 1


def test_an_attempt_number_that_was_claimed_in_another_life_is_superseded(gang):
    g = gang(workers=1).start()
    g.store.claim(Claim(g.job_uid, 1, "restored from a backup", (g.pods[0].member,), None, now()))
    g.begin()
    assert g.pods[0].wait() == 74
    assert g.commits() == []


def test_after_joining_an_attempt_the_one_before_is_refused(gang):
    g = gang(workers=1).start().begin()
    old = g.orders()
    g.begin()
    status, report = g.pods[0].order("/v1/attempt", old)
    assert (status, report.attempt) == (409, 2)


def test_a_bucket_that_is_mended_lets_a_blocked_attempt_go_on(gang):
    g = gang(workers=1)
    hidden = g.root / "hidden"
    g.bucket.rename(hidden)
    g.start().begin()
    g.wait_for_phase(AgentPhase.BLOCKED)
    blocked = g.pods[0].report().blocked
    assert blocked.reason in (BlockedReason.STORAGE_MISCONFIGURED, BlockedReason.STORAGE_UNREACHABLE)
    assert g.bucket.as_uri() in blocked.message
    hidden.rename(g.bucket)
    g.wait_for_commit(10)
    assert g.pods[0].report().blocked is None


def test_a_script_that_never_calls_the_library_ends_well_and_the_report_says_that_nothing_was_saved(gang):
    g = gang(workers=1, trainer=("10", "--silent")).start().begin()
    assert g.pods[0].wait() == 0
    report = g.pods[0].last_report()
    assert report.exit is Exit.FINISHED
    assert "nothing was saved" in report.exit_detail


def test_ranks_get_what_torchrun_sets_and_nothing_of_the_agents_own(gang, tmp_path):
    g = gang(workers=2, trainer=("5", "--environment", str(tmp_path / "environment"))).start().begin()
    assert [p.wait() for p in g.pods.values()] == [0, 0]
    values = dict(line.partition("=")[::2] for line in (tmp_path / "environment").read_text().splitlines())
    assert {k for k in values if k.startswith("HOLDFAST")} == {"HOLDFAST_SOCKET", "HOLDFAST_ATTEMPT"}
    assert (values["WORLD_SIZE"], values["MASTER_ADDR"], values["MASTER_PORT"]) == ("2", "127.0.0.1", "29501")
    assert values["RANK"] in "01"
    assert values["LOCAL_RANK"] == "0"
    assert "glibc.cpu.x86_non_temporal_threshold=" in values["GLIBC_TUNABLES"]


def test_reports_are_in_the_store_and_the_termination_message_is_short_json(gang):
    g = gang(workers=1, trainer=("25",)).start().begin()
    assert g.pods[0].wait() == 0
    data = (g.pods[0].folder / "termination").read_bytes()
    assert len(data) <= 4096
    assert json.loads(data)["exit"] == "finished"
    stored = g.store.read_reports(1)
    assert [(r.worker, r.exit) for r in stored] == [(0, Exit.FINISHED)]


def test_no_key_appears_in_log_or_report(gang):
    g = gang(workers=1).start().begin()
    g.wait_for_commit(10)
    g.pods[0].kill(signal.SIGTERM)
    g.pods[0].wait()
    said = g.pods[0].words() + (g.pods[0].folder / "termination").read_text()
    for key in (g.pods[0].folder / "keys").iterdir():
        assert key.read_text() not in said


def test_after_a_crash_of_the_trainer_the_next_attempt_in_the_pod_resumes_from_the_slot(gang):
    g = gang(workers=1, trainer=("100000", "--crash-at", "35")).start().begin()
    g.wait_for_commit(30)
    pod = g.pods[0]
    g.wait_for_phase(AgentPhase.FAILED)
    g.begin()
    eventually(lambda: "2 0 restored 30" in g.lines(), "the next attempt's rank loads")
    assert pod.process.poll() is None
    assert pod.report().fetched_from.keys() == {"arena"}, pod.report().fetched_from
