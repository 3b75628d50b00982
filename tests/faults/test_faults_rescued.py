"""E6, E5, A5 under SIGKILL, with real agents: who gives, who takes and who commits is killed at every step of a rescue. What is resumed is the whole state or
the last commit; never anything torn, and of one save one checkpoint.

One moment of each kind in `make test`; every one with HOLDFAST_ALL_POINTS=1.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast_agent.estimate import Estimates
from holdfast_api import codec
from tests.agent.conftest import Gang, Pod, eventually
from tests.agent.returning import as_if_steps_were_long, began, knows, new_pod, saved_once
from tests.agent.test_agent_rescue import BOUNDARY, a_gang, believing, believing_in_slow_neighbours, told_to_go
from tests.faults import points
from tests.faults.history import History
from tests.store.proxy import Proxy
from tests.store.s3_server import BUCKET, binary_or_outcome, running

pytestmark = pytest.mark.timeout(600)
MakeGang = Callable[..., Gang]
SAVE = "checkpoints/0000000001/0000000002"
"""The second save of the first attempt: the first one is a checkpoint, and what is fallen back to."""
COORDINATOR, TAKER, GIVER = 0, 1, 2
WHO = {"the coordinator": COORDINATOR, "who takes": TAKER, "who gives": GIVER}


def three(gang: MakeGang) -> Gang:
    """Worker 2 will go, worker 1 will take its part, because worker 0 believes that it is slow at it."""
    return a_gang(
        gang,
        workers=3,
        config={"chunk_bytes": 4096},
        memories=(believing_in_slow_neighbours(), believing(), believing()),
    )


def folder(pod: Pod) -> Path:
    return pod.folder / "local" / "ns" / f"job-{pod.gang.job_uid}" / SAVE


def files(pod: Pod, pattern: str) -> list[Path]:
    return list(folder(pod).glob(pattern))


MOMENTS: dict[str, Callable[[Gang], object]] = {
    "as soon as it is told to go": lambda g: True,
    "the giver writes": lambda g: folder(g.pods[GIVER]).exists(),
    "an image is being taken": lambda g: len(files(g.pods[TAKER], "*rank-*")) > 1,
    "both images are there": lambda g: len(files(g.pods[TAKER], "rank-*.safetensors")) > 1,
    "its manifest is there": lambda g: bool(files(g.pods[TAKER], "rank-2.json")),
    "what says so is there": lambda g: bool(files(g.pods[TAKER], "pending-2.json")),
}


def killed_when(pod: Pod, reached: Callable[[], object], patience: float = 30.0) -> None:
    """Or a little later, if it never comes so far."""
    end = time.monotonic() + patience
    while not reached() and time.monotonic() < end:
        time.sleep(0.0005)
    pod.kill()
    pod.wait()


def gone_with_its_machine(pod: Pod) -> None:
    if pod.process.poll() is None:
        pod.kill()
        pod.wait()
    shutil.rmtree(pod.folder)
    pod.folder.mkdir()


def next_attempt(g: Gang) -> None:
    """Survivors in place, or with their containers restarted there; a new pod on another machine for who has gone."""
    for pod in g.pods.values():
        if pod.process.poll() is not None and (pod.folder / "keys").exists():
            pod.start()
    if not (g.pods[GIVER].folder / "keys").exists():
        new_pod(g, GIVER)
    g.begin()


def resumed_whole(g: Gang, history: History, first: int, *, promised: bool) -> None:
    resumed = int(began(g).removeprefix("restored "))
    assert resumed >= BOUNDARY or (resumed == first and not promised), g.commits()
    assert [b for _, b, _ in g.commits()] == sorted({first, resumed}), g.commits()
    g.wait_for_boundary(resumed + 3)
    history.look()


@pytest.mark.parametrize(
    ("who", "moment"), points.sample([(w, m) for w in WHO for m in MOMENTS], 2), ids=lambda name: name.replace(" ", "-")
)
def test_killed_while_a_part_is_rescued_the_next_resume_is_of_the_whole_or_of_the_last_commit(
    gang: MakeGang, who: str, moment: str
) -> None:
    g = three(gang)
    history, first = History(g), saved_once(g)
    g.wait_for_boundary(BOUNDARY)
    g.notice(GIVER, seconds=15)
    killed_when(g.pods[WHO[who]], lambda: MOMENTS[moment](g))
    for pod in g.pods.values():
        if pod.process.poll() is None and pod.worker != GIVER:
            eventually(lambda p=pod: "sealed" in p.report().stages, f"the evacuation is over; {pod.words()}")  # type: ignore[misc]
    parts = {f.name for w in (COORDINATOR, TAKER) for f in files(g.pods[w], "pending-*.json")}
    gone_with_its_machine(g.pods[GIVER])
    as_if_steps_were_long([g.pods[COORDINATOR], g.pods[TAKER]])
    next_attempt(g)
    resumed_whole(g, history, first, promised=len(parts) == 3)


def arrived(g: Gang, what: str) -> int:
    return len(list(g.bucket.glob(f"ns/job-*/{SAVE}/{what}")))


FINISHING: dict[str, Callable[[Gang], object]] = {
    "a chunk has arrived": lambda g: arrived(g, "chunks/*") > 0,
    "a manifest has arrived": lambda g: arrived(g, "rank-*.json") > 0,
    "the rescued manifest has arrived": lambda g: arrived(g, "rank-2.json") > 0,
    "the record is there": lambda g: arrived(g, "commit.json") > 0,
}


@pytest.mark.parametrize(
    ("who", "moment"),
    points.sample([(w, m) for w in ("the coordinator", "who takes") for m in FINISHING], 1),
    ids=lambda name: name.replace(" ", "-"),
)
def test_killed_while_survivors_finish_it_they_finish_it_at_the_next_start(
    gang: MakeGang, who: str, moment: str
) -> None:
    g = three(gang)
    history, first = History(g), saved_once(g)
    g.wait_for_boundary(BOUNDARY)
    told_to_go(g, GIVER)
    gone_with_its_machine(g.pods[GIVER])
    as_if_steps_were_long([g.pods[COORDINATOR], g.pods[TAKER]])
    new_pod(g, GIVER)
    g.attempt += 1
    for pod in g.pods.values():
        pod.order("/v1/attempt", g.orders())
    killed_when(g.pods[WHO[who]], lambda: FINISHING[moment](g))
    next_attempt(g)
    resumed_whole(g, history, first, promised=True)


# ---- an upload that was thought to be in time


@pytest.fixture
def slow_store(tmp_path: Path, gang: MakeGang) -> Iterator[tuple[Gang, Proxy]]:
    with running(binary_or_outcome(), tmp_path / "s3") as server:
        proxy = Proxy(server.endpoint)
        fast = codec.from_json(Estimates, believing())
        memory = codec.to_json(dataclasses.replace(fast, hurried=knows(Estimates().hurried, 100e6)))
        g = a_gang(
            gang, memories=(memory, memory), config={"chunk_bytes": 4096}, environ=server.environ,
            storage=server.config("jobs", endpoint=proxy.endpoint), bucket_dir=server.data / BUCKET / "jobs",
        )  # fmt: skip
        try:
            yield g, proxy
        finally:
            for pod in g.all_pods:
                if pod.process is not None and pod.process.poll() is None:
                    pod.kill()
                    pod.wait()
            proxy.close()


@pytest.mark.s3
def test_an_upload_that_proves_to_be_late_is_finished_by_a_survivor_from_where_it_was_cut(
    slow_store: tuple[Gang, Proxy],
) -> None:
    """What had arrived by the deadline is kept and not sent again: it is the very same save."""
    g, proxy = slow_store
    history, first = History(g), saved_once(g)
    g.wait_for_boundary(BOUNDARY)
    proxy.bytes_per_second = 15_000
    (gone,) = told_to_go(g, 1, seconds=15)
    plans = [p for pod in g.pods.values() for p in pod.report().plans]
    assert [(p.choice, p.outcome) for p in plans][:1] == [("live", "late")], plans
    assert [b for _, b, _ in g.commits()] == [first]
    assert arrived(g, "chunks/*") > 0
    assert len(files(g.pods[0], "pending-*.json")) == 2, g.pods[0].words()
    gone_with_its_machine(gone)
    as_if_steps_were_long([g.pods[0]])
    proxy.bytes_per_second = 1e9
    new_pod(g, 1)
    g.begin()
    resumed_whole(g, history, first, promised=True)
    assert [name for name, _, _ in g.commits()] == ["1/1", "1/2"]
