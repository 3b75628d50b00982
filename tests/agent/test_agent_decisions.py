"""The pure parts, by tables: notices (F1-F3), phases, slots (E4, A8), rounds (E1-E3), addresses, room for the arena (G2), the last message (H4)."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent import address, memory, notices, slots, storage
from holdfast_agent.errors import MemoryTooSmall, ProtocolBroken
from holdfast_agent.evacuation import coordinators
from holdfast_agent.phases import Facts, phase_of
from holdfast_agent.planning import fallback_of
from holdfast_agent.reports import termination_message
from holdfast_agent.rounds import target_of
from holdfast_api import codec
from holdfast_api.config import StorageConfig
from holdfast_api.messages import (
    AgentPhase,
    AgentReport,
    Blocked,
    BlockedReason,
    Cause,
    CheckpointInfo,
    Notice,
    Rejection,
)
from holdfast_api.ranks import CapturedSlot
from holdfast_store.errors import Denied, Misconfigured, Unavailable

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def notice(
    source="taint:a", *, worker=1, cause=Cause.SPOT, seconds: float | None = 60, at=0, acting=True, withdrawn=False
) -> Notice:
    when = T0 + timedelta(seconds=at)
    return Notice(
        source,
        cause,
        worker,
        "n",
        when,
        None if seconds is None else T0 + timedelta(seconds=seconds),
        acting,
        False,
        withdrawn,
    )


def merged_deadline(*records: Notice) -> float | None:
    found = notices.merge(records, default_seconds=120, grace_seconds=90).deadline
    return None if found is None else (found - T0).total_seconds()


@pytest.mark.parametrize(
    ("records", "deadline"),
    [
        pytest.param((), None, id="no notice, no deadline"),
        pytest.param((notice(seconds=60), notice("taint:b", seconds=10)), 10, id="the minimum counts"),
        pytest.param((notice(seconds=None, at=5),), 125, id="an acting notice without a deadline gets the default"),
        pytest.param(
            (notice("pod:DisruptionTarget/EvictionByEvictionAPI", seconds=None, at=5),),
            95,
            id="what ends the pod leaves it no more than its grace",
        ),
        pytest.param(
            (notice(seconds=60), notice("taint:b", seconds=10, withdrawn=True)), 60, id="a withdrawn one does not count"
        ),
        pytest.param((notice(seconds=10, acting=False),), None, id="a preparing one has no deadline"),
        pytest.param(
            (notice(notices.SIGTERM_SOURCE, seconds=15), notice(seconds=100)),
            15,
            id="SIGTERM's floor stands beside a spot notice",
        ),
        pytest.param(
            (notice(notices.SIGTERM_SOURCE, seconds=15), notice("pod:deletionTimestamp", seconds=100)),
            100,
            id="until the operator tells the deletion's own deadline",
        ),
        pytest.param(
            (notice(notices.SIGTERM_SOURCE, seconds=15), notice("pod:deletionTimestamp", seconds=100, worker=2)),
            15,
            id="of the same pod",
        ),
    ],
)
def test_deadlines_of_notices_are_merged(records, deadline):
    assert merged_deadline(*records) == deadline
    assert all(
        notices.merge(p, default_seconds=120, grace_seconds=90)
        == notices.merge(records, default_seconds=120, grace_seconds=90)
        for p in itertools.permutations(records)
    )


def test_the_strongest_source_decides_the_cause_and_every_acting_worker_is_doomed():
    found = notices.merge(
        [notice(worker=3, cause=Cause.SIGTERM), notice(worker=1, cause=Cause.SPOT), notice(worker=2, acting=False)],
        default_seconds=1,
        grace_seconds=1,
    )
    assert (found.cause, found.doomed, found.acting) == (Cause.SPOT, (1, 3), True)


def test_the_machine_says_better_than_the_pod_why_it_goes():
    found = notices.merge(
        [notice("pod:DisruptionTarget/X", cause=Cause.PRIORITY), notice("taint:karpenter", cause=Cause.SCALE_DOWN)],
        default_seconds=1,
        grace_seconds=1,
    )
    assert found.cause is Cause.SCALE_DOWN


def test_a_withdrawn_notice_leaves_the_others_standing():
    assert notices.merge(
        [notice(worker=1, withdrawn=True), notice(worker=2)], default_seconds=1, grace_seconds=1
    ).doomed == (2,)


def test_a_bare_sigterm_assumes_the_smaller_of_grace_and_floor():
    for grace, floor, expected in [(120, 15, 15), (5, 15, 5)]:
        found = notices.assumed_at_sigterm(worker=0, node="n", now=T0, grace_seconds=grace, floor_seconds=floor)
        assert found.deadline == T0 + timedelta(seconds=expected)


@pytest.mark.parametrize(
    ("facts", "phase"),
    [
        (Facts(), AgentPhase.WAITING),
        (Facts(blocked=True), AgentPhase.BLOCKED),
        (Facts(1), AgentPhase.STARTING),
        (Facts(1, resolved=True), AgentPhase.RESTORING),
        (Facts(1, resolved=True, loaded=True), AgentPhase.TRAINING),
        (Facts(1, resolved=True, loaded=True, blocked=True), AgentPhase.BLOCKED),
        (Facts(1, loaded=True, evacuating=True), AgentPhase.EVACUATING),
        (Facts(1, loaded=True, evacuating=True, sealed=True), AgentPhase.SEALED),
        (Facts(1, blocked=True, evacuating=True), AgentPhase.EVACUATING),
        (Facts(1, loaded=True, finished=True), AgentPhase.FINISHED),
        (Facts(1, loaded=True, sealed=True, failed=True), AgentPhase.FAILED),
    ],
)
def test_the_phase_follows_from_the_facts(facts, phase):
    assert phase_of(facts) is phase


def captured(slot: int, boundary: int, kind="periodic") -> CapturedSlot:
    return CapturedSlot(slot, 1, boundary, kind, 0, 0.0, 0, 0, 0, {}, {})


def book(*taken: tuple[int, int], reading: tuple[int, ...] = (), kind="periodic") -> slots.SlotBook:
    made = slots.SlotBook(2)
    for slot, boundary in taken:
        made.take(captured(slot, boundary, kind))
    for slot in reading:
        made.held[slot].readers = 1
    return made


def test_a_slot_is_freed_by_a_newer_boundary_of_all_ranks_but_not_while_it_is_read():
    assert slots.freed_by_newer(book((0, 10), (1, 20)), 20) == [0]
    assert slots.freed_by_newer(book((0, 10), (1, 20), reading=(0,)), 20) == []


def test_the_end_of_a_save_frees_its_slot_and_older_ones():
    assert slots.freed_by_end(book((0, 10), (1, 20)), 20) == [0, 1]
    assert slots.freed_by_end(book((0, 10), (1, 20)), 10) == [0]


def test_the_end_of_a_round_frees_what_it_captured_unless_a_save_wants_it():
    assert slots.freed_by_open(book((0, 10), kind="round"), frozenset()) == [0]
    assert slots.freed_by_open(book((0, 10), kind="round"), frozenset({10})) == []
    assert slots.freed_by_open(book((0, 10)), frozenset()) == []


def test_a_round_takes_the_older_slot_when_both_are_in_use():
    assert slots.sacrificed_for_round(book((0, 30), (1, 20))) == 20
    assert slots.sacrificed_for_round(book((0, 30))) is None


def test_a_rank_that_hands_over_what_is_not_its_own_breaks_the_protocol():
    for wrong in (captured(2, 5), captured(-1, 5), captured(0, 11)):
        with pytest.raises(ProtocolBroken):
            book((0, 10)).take(wrong)
    same = book((0, 10))
    same.take(captured(0, 10, "round"))  # a newer round finds the rank at the same boundary
    assert same.boundaries == {10}


@pytest.mark.parametrize(
    ("votes", "done", "target"),
    [
        ({0: 5, 1: 5}, {}, 5),
        ({0: 5, 1: 6}, {}, 6),
        ({0: 9, 1: 9}, {0: 9, 1: 9}, 9),
        ({0: 9, 1: 7}, {0: 9}, 9),
    ],
)
def test_the_target_is_the_highest_boundary_that_any_rank_has_entered(votes, done, target):
    assert target_of(votes, done, 2) == target


@pytest.mark.parametrize(
    ("votes", "words"), [({0: 5}, "ranks \\[1\\] did not vote"), ({0: 0, 1: 0}, "no rank has passed")]
)
def test_without_every_vote_there_is_no_target(votes, words):
    with pytest.raises(ValueError, match=words):
        target_of(votes, {}, 2)


def test_the_fall_back_is_the_newest_uncommitted_boundary_that_every_worker_holds():
    assert fallback_of([(10, 20), (20, 30)], 10) == 20
    assert fallback_of([(10, 20), (20, 30)], 20) is None
    assert fallback_of([(10,), (20,)], 0) is None
    assert fallback_of([], 0) is None


def test_the_lowest_worker_that_stays_coordinates_else_the_lowest():
    assert coordinators((0, 1, 2), (0,)) == [1, 2, 0]
    assert coordinators((0, 1), (0, 1)) == [0, 1]


@pytest.mark.parametrize(
    ("text", "found", "url"),
    [
        ("10.0.0.7", ("10.0.0.7", 8471), "http://10.0.0.7:8471/x"),
        ("127.0.0.1:9", ("127.0.0.1", 9), "http://127.0.0.1:9/x"),
        ("fd00::7", ("fd00::7", 8471), "http://[fd00::7]:8471/x"),
        ("[fd00::7]:9", ("fd00::7", 9), "http://[fd00::7]:9/x"),
    ],
)
def test_addresses_are_a_pods_ip_or_host_and_port(text, found, url):
    assert address.split(text) == found
    assert address.url(text, "/x") == url


MIB = 1 << 20


def test_an_arena_that_does_not_fit_is_refused_with_the_number_to_set():
    room = memory.Room(limit=1000 * MIB, used=600 * MIB, free_on_volume=10_000 * MIB, in_memory=True)
    memory.check(room, 300 * MIB, 300 * MIB)
    with pytest.raises(MemoryTooSmall, match=r"resources\.limits\.memory .* at least 1158Mi"):
        memory.check(room, 500 * MIB, 500 * MIB)
    with pytest.raises(MemoryTooSmall, match=r"spec\.checkpoint\.memoryMiB to at least 564"):
        memory.check(memory.Room(None, 0, 100 * MIB, True), 500 * MIB, 500 * MIB)


def test_slots_on_a_disk_do_not_count_against_the_memory_limit():
    memory.check(
        memory.Room(limit=10 * MIB, used=9 * MIB, free_on_volume=1000 * MIB, in_memory=False), 500 * MIB, 500 * MIB
    )


@pytest.mark.parametrize(
    ("files", "limit", "used"),
    [
        ({"memory.max": "1000", "memory.current": "600", "memory.stat": "anon 5\ninactive_file 100\n"}, 1000, 500),
        ({"memory.max": "max", "memory.current": "600", "memory.stat": ""}, None, 600),
        (
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "7",
                "memory/memory.stat": "",
            },
            None,
            7,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "100",
                "memory/memory.usage_in_bytes": "7",
                "memory/memory.stat": "total_inactive_file 2",
            },
            100,
            5,
        ),
        ({}, None, 0),
    ],
)
def test_the_limit_is_read_from_either_version_of_cgroups(tmp_path, files, limit, used):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    room = memory.read(tmp_path, cgroup=tmp_path)
    assert (room.limit, room.used) == (limit, used)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Denied("403 SignatureDoesNotMatch"), BlockedReason.STORAGE_DENIED),
        (Misconfigured("no such bucket"), BlockedReason.STORAGE_MISCONFIGURED),
        (Unavailable("connection refused"), BlockedReason.STORAGE_UNREACHABLE),
    ],
)
def test_a_storage_error_names_bucket_endpoint_what_was_said_and_the_remedy(error, reason):
    found = storage.blocked(error, StorageConfig("s3://b/p", endpoint="http://e:9000"))
    assert found.reason is reason
    for part in ("s3://b/p", "http://e:9000", str(error), "check"):
        assert part in found.message


def a_report(**fields) -> AgentReport:
    return AgentReport("uid", 0, "pod", T0, 1, 1, AgentPhase.FAILED, **fields)


@given(st.integers(0, 20), st.integers(0, 4096), st.integers(0, 3000), st.integers(0, 20))
def test_the_termination_message_is_always_a_valid_report_of_at_most_4096_bytes(commits, detail, words, rejected):
    report = a_report(
        checkpoints=tuple(
            CheckpointInfo(1, i + 1, i, Cause.PERIODIC, T0, metrics={"m" * 40: 1.0}) for i in range(commits)
        ),
        exit_detail="é" * detail,
        blocked=Blocked(BlockedReason.STORAGE_DENIED, "w" * words),
        rejections=tuple(Rejection(1, i + 1, "r" * 500, True, T0) for i in range(rejected)),
    )
    data = termination_message(report)
    assert len(data) <= 4096
    read = codec.from_json(AgentReport, data)
    assert (read.phase, read.attempt) == (report.phase, report.attempt)
