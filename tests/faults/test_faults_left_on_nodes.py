"""E6 under SIGKILL and damage, with real agents: a state that lies on nodes alone is resumed from whole, or not at all, and then the last commit is.

A few moments in `make test`; every one with HOLDFAST_ALL_POINTS=1.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.conftest import Gang, Pod, eventually, free_port
from tests.agent.returning import (
    BOUNDARY,
    a_gang,
    as_if_steps_were_long,
    began,
    believing_in_a_slow_store,
    evicted,
    left_on_nodes,
    new_pod,
    pending_files,
    saved_once,
)
from tests.faults import points
from tests.faults.history import History
from tests.store.proxy import Proxy
from tests.store.s3_server import BUCKET, binary_or_outcome, running

pytestmark = pytest.mark.timeout(600)
MakeGang = Callable[..., Gang]
LEFT = "checkpoints/0000000001/0000000002"
"""The second save of the first attempt: the first one is a checkpoint, and what is fallen back to."""


def make(gang: MakeGang, **fields: object) -> Gang:
    config = {"chunk_bytes": 4096} | dict(fields.pop("config", {}))  # type: ignore[call-overload]
    return a_gang(gang, trainer=("1000", "--step-seconds", "0.05"), config=config, **fields)


def newest(how: str) -> int:
    return int(how.removeprefix("restored "))


# ---- killed while the node is written

MOMENTS = {
    "as soon as it is told to go": lambda pod: True,
    "its folder is there": lambda pod: bool(files(pod)) or folder(pod).exists(),
    "an image is being written": lambda pod: bool(files(pod)),
    "the image is there": lambda pod: bool(files(pod, "rank-*.safetensors")),
    "the manifest is there": lambda pod: bool(files(pod, "rank-*.json")),
    "what says so is there": lambda pod: bool(files(pod, "pending-*.json")),
    "the evacuation is over": lambda pod: "sealed" in pod.report().stages,
}


def folder(pod: Pod) -> Path:
    return pod.folder / "local" / "ns" / f"job-{pod.gang.job_uid}" / LEFT


def files(pod: Pod, pattern: str = "*") -> list[Path]:
    return list(folder(pod).glob(pattern))


def killed_each_at(g: Gang, reached: Callable[[Pod], bool]) -> None:
    """Each agent, as soon as its own node has come so far; if the death of another keeps it from that, a little later."""
    alive, patience = list(g.pods.values()), time.monotonic() + 30
    while alive and time.monotonic() < patience:
        for pod in [p for p in alive if reached(p)]:
            pod.kill()
            alive.remove(pod)
            patience = min(patience, time.monotonic() + 2)
        time.sleep(0.0005)
    for pod in alive:
        pod.kill()
    for pod in g.pods.values():
        pod.wait()


@pytest.mark.parametrize("moment", points.sample(list(MOMENTS), 1))
def test_killed_while_the_node_is_written_the_next_resume_is_of_the_whole_or_of_the_last_commit(
    gang: MakeGang, moment: str
) -> None:
    g = make(gang)
    for worker in range(2):
        new_pod(g, worker, memory=believing_in_a_slow_store())
    g.begin()
    history, first = History(g), saved_once(g)
    g.wait_for_boundary(BOUNDARY)
    evicted(g, 20)
    killed_each_at(g, MOMENTS[moment])
    before = list(g.pods.values())
    promised = all(pending_files(pod) for pod in before)
    as_if_steps_were_long(before)
    for pod in before:
        new_pod(g, pod.worker, on_node_of=pod)
    g.begin()
    resumed = newest(began(g))
    assert resumed >= BOUNDARY or (resumed == first and not promised), (moment, g.commits())
    assert [b for _, b, _ in g.commits()] == sorted({first, resumed}), g.commits()
    g.wait_for_boundary(resumed + 3)
    history.look()
    if moment == "what says so is there":
        assert promised


# ---- killed while it is finished


@pytest.fixture
def slow_store(tmp_path: Path, gang: MakeGang) -> Iterator[tuple[Gang, Proxy]]:
    with running(binary_or_outcome(), tmp_path / "s3") as server:
        proxy = Proxy(server.endpoint)
        g = make(
            gang,
            storage=server.config("jobs", endpoint=proxy.endpoint),
            bucket_dir=server.data / BUCKET / "jobs",
            environ=server.environ,
        )
        try:
            yield g, proxy
        finally:
            for pod in g.all_pods:
                if pod.process is not None and pod.process.poll() is None:
                    pod.kill()
                    pod.wait()
            proxy.close()


def arrived(g: Gang, what: str) -> int:
    return len(list(g.bucket.glob(f"ns/job-*/{LEFT}/{what}")))


FINISHING = {
    "a chunk has arrived": lambda g: arrived(g, "chunks/*") > 0,
    "many chunks have arrived": lambda g: arrived(g, "chunks/*") > 20,
    "a manifest has arrived": lambda g: arrived(g, "rank-*.json") > 0,
    "both manifests have arrived": lambda g: arrived(g, "rank-*.json") > 1,
}


@pytest.mark.s3
@pytest.mark.parametrize(
    "moments", points.sample([(a, b) for a in FINISHING for b in FINISHING], 1), ids=lambda m: ", then ".join(m)
)
def test_killed_twice_in_a_row_while_it_is_finished_the_third_finishes_it(
    slow_store: tuple[Gang, Proxy], moments: tuple[str, str]
) -> None:
    g, proxy = slow_store
    before = left_on_nodes(g, saves_first=True)
    history = History(g)
    history.look()
    ((_, first, _),) = g.commits()
    proxy.bytes_per_second = 80_000
    for moment in moments:
        for pod in before:
            new_pod(g, pod.worker, on_node_of=pod)
        g.begin()
        eventually(lambda m=moment: FINISHING[m](g), f"{moment}; {g.pods[0].words()}")
        for pod in g.pods.values():
            pod.kill()
        for pod in g.pods.values():
            pod.wait()
    proxy.bytes_per_second = 1e9
    for pod in before:
        new_pod(g, pod.worker, on_node_of=pod)
    g.begin()
    resumed = newest(began(g))
    assert resumed >= BOUNDARY, (moments, g.commits())
    assert [b for _, b, _ in g.commits()] == [first, resumed], "one checkpoint was made of it"
    history.look()
    eventually(lambda: not [f for pod in before for f in pending_files(pod)], "nothing waits any more")


# ---- two who find the same


def on_one_node(g: Gang, node: Path, memory: bytes = b"") -> None:
    """A pod for each worker, both on the node whose directory is `node`."""
    for worker in range(g.workers):
        serial = sum(p.worker == worker for p in g.all_pods) + 1
        pod = Pod(g, worker, serial, g.root / f"p{worker}-{serial}", free_port())
        (pod.folder / "memory").mkdir(parents=True)
        if memory:
            (pod.folder / "memory" / "estimates.json").write_bytes(memory)
        (pod.folder / "local").symlink_to(node)
        g.pods[worker] = pod
        g.all_pods.append(pod)
        pod.start()


@pytest.mark.s3
@pytest.mark.parametrize("dies", points.sample([False, True], 1))
def test_two_who_race_for_one_nodes_remainder_make_one_checkpoint_of_it(
    slow_store: tuple[Gang, Proxy], dies: bool
) -> None:
    """Both workers' parts lie on one node, and both pods that come there find both (E5). `dies`: one of them in the middle of it, and the job with it."""
    g, proxy = slow_store
    node = g.root / "node"
    node.mkdir(parents=True)
    on_one_node(g, node, believing_in_a_slow_store())
    g.begin()
    first = saved_once(g)
    g.wait_for_boundary(BOUNDARY)
    evicted(g, 20)
    for pod in g.pods.values():
        eventually(lambda p=pod: "sealed" in p.report().stages, pod.words())
        pod.kill()
        pod.wait()
    assert len(pending_files(g.pods[0])) == 2
    as_if_steps_were_long([g.pods[0]])
    history = History(g)
    if dies:
        proxy.bytes_per_second = 80_000
        on_one_node(g, node)
        g.begin()
        eventually(lambda: arrived(g, "chunks/*") > 5, "both are at it")
        for pod in g.pods.values():
            pod.kill()
            pod.wait()
        proxy.bytes_per_second = 1e9
    on_one_node(g, node)
    g.begin()
    resumed = newest(began(g))
    assert resumed >= BOUNDARY, g.commits()
    assert [b for _, b, _ in g.commits()] == [first, resumed]
    history.look()
    for pod in g.pods.values():
        eventually(lambda p=pod: {c.state for c in p.report().unfinished} == {"committed"}, pod.words())


# ---- what is damaged, half there, or somebody else's


def a_bit(pods: list[Pod]) -> None:
    (image,) = files(pods[1], "rank-*.safetensors")
    data = bytearray(image.read_bytes())
    data[250_000] ^= 1
    image.write_bytes(bytes(data))


def half_an_image(pods: list[Pod]) -> None:
    (image,) = files(pods[1], "rank-*.safetensors")
    os.truncate(image, image.stat().st_size // 2)


def no_manifest(pods: list[Pod]) -> None:
    (manifest,) = files(pods[1], "rank-*.json")
    manifest.unlink()


def garbage(pods: list[Pod]) -> None:
    (pending,) = files(pods[1], "pending-*.json")
    pending.write_bytes(b'{"schema":1')


def of_another_job(pods: list[Pod]) -> None:
    """A part whose own words are of another uid, in this job's folder; and another job's whole folder beside it."""
    job = folder(pods[1]).parents[2]
    other = job.with_name("job-5f0c9d9e-0000-4000-8000-00000000000a")
    shutil.copytree(job, other)
    (pending,) = files(pods[1], "pending-*.json")
    pending.write_bytes(pending.read_bytes().replace(pods[1].gang.job_uid.encode(), other.name[4:].encode()))


HARMS: dict[Callable[[list[Pod]], None], str] = {
    a_bit: "not whole on this node",
    half_an_image: "not whole on this node",
    no_manifest: "not whole on this node",
    garbage: "cannot be read and is dropped",
    of_another_job: "cannot be read and is dropped",
}


@pytest.mark.parametrize("harm", points.sample(list(HARMS), 1), ids=lambda h: h.__name__)
def test_a_remainder_that_cannot_be_used_is_said_and_the_last_commit_is_resumed(
    gang: MakeGang, harm: Callable[[list[Pod]], None]
) -> None:
    g = make(gang)
    before = left_on_nodes(g, saves_first=True)
    ((_, first, _),) = g.commits()
    harm(before)
    for pod in before:
        new_pod(g, pod.worker, on_node_of=pod)
    g.begin()
    assert began(g) == f"restored {first}"
    assert HARMS[harm] in (g.pods[1].folder / "agent.log").read_text()
    g.wait_for_boundary(first + 3)
    assert [b for _, b, _ in g.commits()] == [first], "nothing was made of it"
    g.checkpoint("second")
    g.wait_for_request("second")
    History(g).look()
    assert len(g.commits()) == 2, "and it blocks no save (B1)"


def test_what_an_older_attempt_left_is_not_taken_up_after_a_later_one_has_claimed(gang: MakeGang) -> None:
    """A5: the nodes come back when the job has long gone on elsewhere."""
    g = make(gang)
    before = left_on_nodes(g, saves_first=True)
    ((_, first, _),) = g.commits()
    for worker in range(2):
        new_pod(g, worker)
    g.begin()
    assert began(g) == f"restored {first}"
    for pod in g.pods.values():
        pod.kill()
        pod.wait()
    for pod in before:
        new_pod(g, pod.worker, on_node_of=pod)
    g.begin()
    assert began(g) == f"restored {first}"
    assert [b for _, b, _ in g.commits()] == [first]
    eventually(lambda: not [f for pod in before for f in pending_files(pod)], "it is dropped")
    assert "is not finished" in g.pods[0].words() + g.pods[1].words()


class Refusing:
    """Refuses PUTs while `on`, and counts them."""

    def __init__(self) -> None:
        self.on, self.seen = True, 0

    def __call__(self, number: int) -> bool:
        self.seen += self.on
        return self.on


@pytest.mark.s3
def test_while_the_store_is_away_the_claim_waits_and_then_it_is_finished(slow_store: tuple[Gang, Proxy]) -> None:
    g, proxy = slow_store
    before = left_on_nodes(g, saves_first=True)
    refused = Refusing()
    proxy.refuses = refused
    for pod in before:
        new_pod(g, pod.worker, on_node_of=pod)
    g.begin()
    eventually(lambda: refused.seen > 5, "the store refuses")
    assert len(g.commits()) == 1
    refused.on = False
    assert newest(began(g)) >= BOUNDARY
