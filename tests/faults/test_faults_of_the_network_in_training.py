"""Fault scenario 43 with real agents: training goes on while the store refuses, and what was held back is stored when it no longer does."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.conftest import Gang, eventually
from tests.faults.bad_network import BadNetwork, Fate, Request
from tests.faults.history import History
from tests.faults.test_faults_of_the_network import some
from tests.store.s3_server import BUCKET, S3Server, binary_or_outcome, running

pytestmark = [pytest.mark.s3, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running(binary_or_outcome(), tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def network(s3: S3Server) -> Iterator[BadNetwork]:
    made = BadNetwork(s3.endpoint)
    yield made
    made.close()


@pytest.fixture
def on_s3(
    gang: Callable[..., Gang],
    s3: S3Server,
    network: BadNetwork,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Callable[..., Gang]:
    """As `gang`, with the bucket behind the bad network. The server keeps objects as files, so the test sees them as in a directory."""
    for name, value in s3.environ.items():
        monkeypatch.setenv(name, value)

    def make(**fields: object) -> Gang:
        prefix = f"training/{abs(hash(request.node.name)) % 10**8}"
        folder = s3.data / BUCKET / prefix
        folder.mkdir(parents=True)
        config = {"sigterm_floor_seconds": 15} | dict(fields.pop("config", {}))  # type: ignore[call-overload]
        g = gang(config=config, storage=s3.config(prefix, endpoint=network.endpoint), **fields)
        g.bucket.rmdir()
        Path(g.bucket).symlink_to(folder)
        return g

    return make


def test_training_goes_on_while_the_store_refuses_everything_and_is_stored_afterwards(
    on_s3: Callable[..., Gang], network: BadNetwork
) -> None:
    g = on_s3(workers=2, trainer=("1000000", "--step-seconds", "0.02")).start().begin()
    history = History(g)
    g.wait_for_commit(10)
    network.fate = lambda request: Fate.BUSY
    before, stored = g.pods[0].report().boundary, history.newest
    eventually(lambda: g.pods[0].report().boundary >= before + 150, f"training goes on; {g.pods[0].words()}")
    eventually(lambda: len(network.struck(Fate.BUSY)) > 5, "the store is asked")
    assert history.newest == stored
    network.fate = lambda request: Fate.PASS
    g.wait_for_commit(before + 150)
    history.look()


@pytest.mark.parametrize("fate", [Fate.BUSY, Fate.LOST_ANSWER, Fate.RESET])
def test_an_emergency_over_a_network_that_fails_one_request_in_three_is_sealed_and_resumed(
    on_s3: Callable[..., Gang], network: BadNetwork, fate: Fate
) -> None:
    g = on_s3(workers=2, trainer=("1000000", "--step-seconds", "0.02")).start().begin()
    history = History(g)
    g.wait_for_commit(10)
    strikes = some(0.3)

    def one_in_three(request: Request) -> Fate:
        return fate if strikes(request) else Fate.PASS

    network.fate = one_in_three
    g.notice(0, 1, seconds=30)
    for pod in g.pods.values():
        pod.kill(15)
    assert [pod.wait() for pod in g.pods.values()] == [72, 72], [p.words() for p in g.pods.values()]
    history.look()
    newest = history.newest
    for worker in list(g.pods):
        g.new_pod(worker)
    g.begin()
    g.wait_for_commit(newest + 1)
    assert {line.split(maxsplit=2)[2] for line in g.lines() if line.startswith("2 ")} == {f"restored {newest}"}
    history.look()
