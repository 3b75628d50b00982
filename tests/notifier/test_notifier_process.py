"""The real process, with its command line, its ports and its signals."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from holdfast_api import names
from holdfast_notifier import __main__ as program
from holdfast_notifier import kube, settings
from holdfast_notifier.aws import SPOT
from holdfast_notifier.errors import WrongSettings
from holdfast_notifier.kube import Access
from holdfast_notifier.metrics import Metrics
from tests.notifier.stand_ins import ApiServer, Imds, eventually

TERMINATE = '{"action": "terminate", "time": "2026-03-01T12:02:00Z"}'


class Process:
    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child, self.said, self.port = child, "", 0

    async def read(self) -> None:
        assert self.child.stderr is not None
        async for line in self.child.stderr:
            self.said += line.decode()
            if found := re.search(r"serving on port (\d+)", line.decode()):
                self.port = int(found[1])

    async def get(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{self.port}{path}") as response:
            return response.status, await response.text()


@contextlib.asynccontextmanager
async def process(*arguments: str, **environment: str) -> AsyncIterator[Process]:
    command = [sys.executable, "-m", "holdfast_notifier", "--host", "127.0.0.1", "--port", "0", *arguments]
    child = await asyncio.create_subprocess_exec(
        *command, stderr=asyncio.subprocess.PIPE, env={**os.environ, **environment}
    )
    found = Process(child)
    reading = asyncio.create_task(found.read())
    try:
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        await reading


def of(imds: Imds, access: Access, *more: str) -> list[str]:
    return [
        "--node", "n1", "--metadata-url", imds.url, "--api-server", access.url, "--token-file", str(access.token_file),
        "--poll-seconds", "0.05", *more,
    ]  # fmt: skip


async def test_it_finds_its_cloud_publishes_is_ready_counts_and_ends_well(
    imds: Imds, api_server: ApiServer, access: Access
) -> None:
    async with process(*of(imds, access)) as p:
        await eventually(lambda: api_server.condition() is not None)
        assert await p.get("/healthz") == (200, "ok\n")
        async with asyncio.timeout(60):
            while (await p.get("/readyz"))[0] != 200:
                await asyncio.sleep(0.01)
        imds.said[SPOT] = TERMINATE
        await eventually(lambda: api_server.announced())
        page = (await p.get("/metrics"))[1]
        assert 'holdfast_notifier_info{cloud="aws",node="n1"} 1.0' in page
        assert 'holdfast_notifier_notices{acting="true",cause="spot"} 1.0' in page
        p.child.send_signal(signal.SIGTERM)
        assert await p.child.wait() == 0
    assert api_server.announced(), "a machine that shuts down takes nothing back"
    assert "Traceback" not in p.said


async def test_a_node_of_no_known_cloud_is_left_alone(imds: Imds, api_server: ApiServer, access: Access) -> None:
    api_server.node["spec"]["providerID"] = "k3s://n1"
    async with process(*of(imds, access)) as p:
        await eventually(lambda: "no cloud that is known" in p.said)
        assert (await p.get("/readyz"))[0] == 200
    assert imds.calls == []
    assert api_server.writes == 0


async def test_an_api_server_that_is_away_at_the_start_is_waited_for(
    imds: Imds, api_server: ApiServer, access: Access
) -> None:
    api_server.token = "not yet"
    async with process(*of(imds, access)) as p:
        await eventually(lambda: "cannot be read yet" in p.said)
        assert (await p.get("/readyz"))[0] == 503
        assert access.token_file is not None
        api_server.token = access.token_file.read_text().strip()
        await eventually(lambda: api_server.condition() is not None)
    assert api_server.token not in p.said


async def test_a_dry_run_needs_no_cluster(imds: Imds) -> None:
    imds.said[SPOT] = TERMINATE
    arguments = ["--node", "n1", "--cloud", "aws", "--metadata-url", imds.url, "--dry-run"]
    async with process(*arguments, KUBERNETES_SERVICE_HOST="") as p:
        await eventually(lambda: "dry run: HoldfastDisruption True" in p.said)


def test_no_environment_variable_moves_the_metadata_service() -> None:
    environ = dict.fromkeys(
        ("HOLDFAST_METADATA_URL", "METADATA_URL", "GCE_METADATA_HOST", "AWS_EC2_METADATA_SERVICE_ENDPOINT"),
        "http://elsewhere",
    )
    assert settings.parse(["--node", "n1"], environ).metadata_url == ""
    assert set(program.BASES.values()) == {"http://169.254.169.254"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--node is empty; give the name of the Node object, or set HOLDFAST_NODE"),
        (["--node", "n", "--cloud", "moon"], "invalid choice: 'moon'"),
        (["--node", "n", "--poll-seconds", "0"], "0 is not between 0.05 and 60"),
        (["--node", "n", "--poll-seconds", "fast"], "invalid number of seconds value: 'fast'"),
        (["--node", "n", "--node-shutdown-seconds", "-1"], "-1 is not between 0 and 86400"),
        (["--node", "n", "--port", "70000"], "70000 is not between 0 and 65535"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        settings.parse(arguments, {})
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_outside_a_cluster_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(WrongSettings, match="--api-server"):
        kube.in_cluster({}, tmp_path)
    (tmp_path / "token").write_text("t")
    found = kube.in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, tmp_path)
    assert (found.url, found.ca_file) == ("https://[fd00::1]:6443", tmp_path / "ca.crt")


def test_the_documentation_lists_every_metric_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    metrics = {m.name + ("_total" if m.type == "counter" else "") for m in Metrics().registry.collect()}
    assert set(re.findall(r"`(holdfast_notifier_\w+)`", page)) == metrics


def test_the_port_is_nobody_elses() -> None:
    others = {names.AGENT_PORT, names.OPERATOR_REPORT_PORT, names.OPERATOR_METRICS_PORT, names.OPERATOR_HEALTH_PORT}
    assert names.NOTIFIER_PORT not in others
