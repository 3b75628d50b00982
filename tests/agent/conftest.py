"""A gang of real agent processes on loopback, with a test that plays the operator over signed HTTP and a directory as the object store."""

import dataclasses
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast_api import codec, names, signing
from holdfast_api.config import AgentConfig, StorageConfig
from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import (
    AgentPhase,
    AgentReport,
    AttemptOrder,
    Cause,
    CheckpointOrder,
    HangLimits,
    Member,
    Notice,
    NoticeOrder,
    RestoreOrder,
)
from holdfast_store.job import JobStore
from holdfast_store.opening import open_bucket

TRAINER = str(Path(__file__).with_name("fake_trainer.py"))
WAIT_SECONDS = 60.0
MASTER = secrets.token_bytes(32)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def eventually(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS):
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.03)
    raise AssertionError(f"not within {seconds} s: {what}")


@dataclass
class Pod:
    """One agent process and its directories; a replacement is another Pod of the same worker."""

    gang: "Gang"
    worker: int
    serial: int
    folder: Path
    port: int
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    process: subprocess.Popen | None = None

    @property
    def member(self) -> Member:
        return Member(
            self.worker, f"pod-{self.worker}-{self.serial}", self.uid, self.serial, "node", f"127.0.0.1:{self.port}"
        )

    def start(self) -> "Pod":
        gang = self.gang
        config = AgentConfig(
            namespace="ns",
            job="job",
            job_uid=gang.job_uid,
            worker=self.worker,
            serial=self.serial,
            workers=gang.workers,
            processes_per_worker=gang.processes,
            storage=gang.storage or StorageConfig(gang.bucket.as_uri()),
            memory_dir=str(self.folder / "memory"),
            local_dir=str(self.folder / "local"),
            operator_url=gang.operator_url,
            **({"every_steps": 10, "chunk_bytes": 65536} | gang.config),
        )
        (self.folder / "local").mkdir(parents=True, exist_ok=True)
        keys = self.folder / "keys"
        keys.mkdir(exist_ok=True)
        for role in signing.Role:
            (keys / role.value).write_text(signing.derive_key(MASTER, gang.job_uid, role).hex())
        environ = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST")} | {
            names.ENV_CONFIG: codec.to_json(config).decode(),
            names.ENV_POD_UID: self.uid,
            names.ENV_POD_IP: "127.0.0.1",
            names.ENV_POD_NAME: self.member.pod_name,
            "HOLDFAST_AGENT_LISTEN": f"127.0.0.1:{self.port}",
            "HOLDFAST_KEYS_DIR": str(keys),
            "HOLDFAST_TOKEN_PATH": str(self.folder / "token"),
            "HOLDFAST_TERMINATION_PATH": str(self.folder / "termination"),
            **gang.environ,
        }
        self.log = (self.folder / "agent.log").open("ab")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "holdfast_agent",
                "run",
                "--",
                sys.executable,
                gang.script,
                *gang.trainer,
                "--log",
                str(gang.log),
            ],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        eventually(self.answers, f"worker {self.worker} answers")
        return self

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the agent ended with {self.process.returncode}: {self.words()}"
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2).status == 200
        except OSError:
            return False

    def signature(
        self, method: str, path: str, body: bytes, *, attempt: int, role=signing.Role.OPERATOR, **envelope
    ) -> str:
        """`envelope` replaces parts of what is signed."""
        key = signing.derive_key(MASTER, self.gang.job_uid, role)
        fields = {
            "method": method,
            "path": path,
            "receiver_pod_uid": self.uid,
            "attempt": attempt,
            "job_uid": self.gang.job_uid,
        } | envelope
        return signing.sign(key, signing.Envelope(**fields), body, now=time.time(), nonce=secrets.token_bytes(16))

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        attempt: int,
        role=signing.Role.OPERATOR,
        header: str | None = None,
        **envelope,
    ):
        """(status, body). Signed for this pod unless `header` is given."""
        signed = self.signature(method, path, body, attempt=attempt, role=role, **envelope)
        headers = {signing.HEADER: signed if header is None else header, signing.HEADER_ATTEMPT: str(attempt)}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=body or None, headers=headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as e:
            return e.code, e.read()

    def order(self, path: str, message) -> tuple[int, AgentReport]:
        status, body = self.request("POST", path, codec.to_json(message), attempt=message.attempt)
        return status, codec.from_json(AgentReport, body)

    def report(self) -> AgentReport:
        return codec.from_json(AgentReport, self.request("GET", "/v1/status", attempt=0)[1])

    def last_report(self) -> AgentReport:
        """Of an agent that has ended."""
        return codec.from_json(AgentReport, (self.folder / "termination").read_bytes())

    def wait(self, seconds: float = WAIT_SECONDS) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def words(self) -> str:
        return (self.folder / "agent.log").read_text()[-4000:]


@dataclass
class Gang:
    """A job: its pods, its bucket, its attempts."""

    root: Path
    workers: int = 2
    processes: int = 1
    trainer: tuple[str, ...] = ("1000",)
    config: dict = field(default_factory=dict)
    script: str = TRAINER
    global_batch: int = 0
    job_uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    operator_url: str = ""
    storage: StorageConfig | None = None
    """Another store than the directory `bucket`."""
    bucket_dir: Path | None = None
    """Where that store keeps its objects as files."""
    environ: dict = field(default_factory=dict)
    """Of the agents, beside the test's own."""
    hangs: HangLimits = field(default_factory=HangLimits)
    attempt: int = 0
    pods: dict[int, Pod] = field(default_factory=dict)
    all_pods: list[Pod] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bucket.mkdir(parents=True, exist_ok=True)

    @property
    def bucket(self) -> Path:
        return self.bucket_dir or self.root / "bucket"

    @property
    def log(self) -> Path:
        return self.root / "trainer.log"

    @property
    def store(self) -> JobStore:
        return JobStore(open_bucket(StorageConfig(self.bucket.as_uri()), {}), "ns", "job", self.job_uid)

    def new_pod(self, worker: int) -> Pod:
        serial = sum(p.worker == worker for p in self.all_pods) + 1
        pod = Pod(self, worker, serial, self.root / f"p{worker}-{serial}", free_port())
        pod.folder.mkdir(parents=True, exist_ok=True)
        self.pods[worker] = pod
        self.all_pods.append(pod)
        return pod.start()

    def start(self) -> "Gang":
        for worker in range(self.workers):
            self.new_pod(worker)
        return self

    def orders(self, **restore) -> AttemptOrder:
        members = tuple(self.pods[w].member for w in sorted(self.pods))
        order = AttemptOrder(self.job_uid, self.attempt, members, self.processes, False, RestoreOrder(**restore))
        return dataclasses.replace(order, global_batch=self.global_batch, hangs=self.hangs)

    def begin(self, **restore) -> "Gang":
        """A new attempt, ordered and allowed to claim, as the operator does it."""
        self.attempt += 1
        order = self.orders(**restore)
        for may_claim in (False, True):
            for pod in self.pods.values():
                status, report = pod.order("/v1/attempt", dataclasses.replace(order, may_claim=may_claim))
                assert (status, report.attempt) == (200, self.attempt), (status, report)
        return self

    def notice(
        self,
        *workers: int,
        acting: bool = True,
        withdrawn: bool = False,
        seconds: float = 30.0,
        source: str = "taint:test",
        to=None,
    ) -> None:
        now = datetime.now(UTC)
        notices = tuple(
            Notice(
                source,
                Cause.SPOT if acting else Cause.CORDON,
                w,
                "node",
                now,
                now + timedelta(seconds=seconds) if acting else None,
                acting,
                True,
                withdrawn,
            )
            for w in workers
        )
        for pod in to or self.pods.values():
            pod.order("/v1/notice", NoticeOrder(self.job_uid, self.attempt, notices))

    def checkpoint(self, request_id: str, **fields) -> None:
        self.pods[0].order(
            "/v1/checkpoint",
            CheckpointOrder(self.job_uid, self.attempt, request_id, fields.pop("cause", Cause.MANUAL), **fields),
        )

    # questions

    def commits(self) -> list[tuple[str, int, str]]:
        """(attempt/save, boundary, cause) of every commit record in the bucket, in order."""
        found = []
        for path in sorted(self.bucket.glob("ns/job-*/checkpoints/*/*/commit.json")):
            ref = CheckpointRef(int(path.parts[-3]), int(path.parts[-2]))
            record = self.store.for_job(path.parts[-5].removeprefix("job-")).read_commit(ref)[0]
            found.append((str(record.ref), record.progress.boundary, record.cause.value))
        return found

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_for_phase(self, phase: AgentPhase, *pods: Pod) -> None:
        for pod in pods or self.pods.values():
            eventually(lambda p=pod: p.report().phase is phase, f"worker {pod.worker} is {phase.value}; {pod.words()}")

    def wait_for_commit(self, boundary: int) -> None:
        eventually(
            lambda: any(b >= boundary for _, b, _ in self.commits()),
            f"a commit at {boundary}; there are {self.commits()}; " + "".join(p.words() for p in self.pods.values()),
        )

    def socket_of_ranks(self, worker: int = 0) -> str:
        """As a rank of that worker finds it in its environment."""
        agent = self.pods[worker].process.pid
        rank = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()[0]
        environ = dict(item.partition("=")[::2] for item in Path(f"/proc/{rank}/environ").read_text().split("\0"))
        return environ[names.ENV_SOCKET]

    def wait_for_stages(self, *stages: str) -> None:
        for pod in self.pods.values():
            eventually(
                lambda p=pod: set(stages) <= p.report().stages.keys(), f"worker {pod.worker} has passed {stages}"
            )

    def wait_for_boundary(self, boundary: int) -> None:
        for pod in self.pods.values():
            eventually(
                lambda p=pod: p.report().boundary >= boundary, f"worker {pod.worker} passes {boundary}; {pod.words()}"
            )

    def wait_for_request(self, request_id: str) -> None:
        eventually(
            lambda: request_id in self.pods[0].report().done_requests, f"{request_id} is done; {self.pods[0].words()}"
        )

    def close(self) -> None:
        for pod in self.all_pods:
            if pod.process is not None and pod.process.poll() is None:
                pod.process.kill()
                pod.process.wait()
        shutil.rmtree(self.root, ignore_errors=True)


@pytest.fixture
def gang(tmp_path):
    """gang(workers=2, ...) makes one that is ended after the test."""
    made = []

    def make(**fields) -> Gang:
        made.append(Gang(tmp_path / f"g{len(made)}", **fields))
        return made[-1]

    yield make
    for g in made:
        g.close()
