"""A real `holdfast-agent` with a real rank below it, driven from a contender's process: the agent is started as a person would start it, the rank (rank.py)
does what it is told over a socket of its own."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.harness.usage import descendants
from holdfast_api import codec, names, signing
from holdfast_api.config import AgentConfig, StorageConfig
from holdfast_api.messages import AgentReport, AttemptOrder, Cause, Member, Notice, NoticeOrder, RestoreOrder

WAIT_SECONDS = 120.0


class Measured:
    """An agent's process and the line to its rank."""

    def __init__(self, folder: Path, rank: dict[str, Any], arguments: list[str], environ: dict[str, str]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        control = folder / "control"
        control.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(control))
        self._listener.listen(1)
        self._listener.settimeout(WAIT_SECONDS)
        self.log = folder / "agent.log"
        whole = {**os.environ, "BENCH_CONTROL": str(control), "BENCH_RANK": json.dumps(rank), **environ}
        command = [
            sys.executable,
            "-m",
            "holdfast_agent",
            "run",
            *arguments,
            "--",
            sys.executable,
            "-m",
            "benchmarks.harness.rank",
        ]
        self.started = time.time()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=whole, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def connect(self) -> None:
        """Waits until the rank has restored, has taken its first step, and is ready."""
        try:
            self._control, _ = self._listener.accept()
        except TimeoutError:
            raise RuntimeError(f"the rank did not come up: {self.words()}") from None
        self._control.settimeout(WAIT_SECONDS)
        self._lines = self._control.makefile("r")
        self.ready = self.answer()

    def tell(self, do: str, **options: Any) -> dict[str, Any]:
        """What the rank measured."""
        self.send(do, **options)
        return self.answer()

    def send(self, do: str, **options: Any) -> None:
        self._control.sendall(json.dumps({"do": do, **options}).encode() + b"\n")

    def answer(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise RuntimeError(f"the rank has ended: {self.words()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def wait(self, condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                raise RuntimeError(f"the agent ended with {self.process.returncode}: {self.words()}")
            if time.monotonic() > until:
                raise TimeoutError(f"not within {seconds:.0f} s: {what}; {self.words()}")
            time.sleep(0.01)

    def wait_for_slots(self, image_bytes: int, slots: int) -> None:
        """Until the agent has prefaulted the arena, as it has in any training that runs for a moment before its first save."""
        self.wait(
            lambda: sum(p.stat().st_blocks * 512 for p in self.arena.glob("rank-*-slot-*")) >= image_bytes * slots,
            "the arena",
        )

    @property
    def arena(self) -> Path:
        raise NotImplementedError

    def words(self) -> str:
        return self.log.read_text(errors="replace")[-600:].strip().replace("\n", " | ") if self.log.exists() else ""

    def close(self) -> None:
        """Ends it hard: what is measured has been measured."""
        for pid in (self.process.pid, *descendants(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._listener.close()
        shutil.rmtree(self.arena, ignore_errors=True)


class Local(Measured):
    """`holdfast-agent run --local FOLDER/job`; the rank is built from `rank`, the options of rank.py. `keep`: checkpoints stay when it ends."""

    def __init__(
        self, folder: Path, *options: str, rank: dict[str, Any], connect: bool = True, keep: bool = False
    ) -> None:
        self.job, self._keep = folder / "job", keep
        self.job.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, rank, ["--local", str(self.job), *options], {})
        if connect:
            self.connect()

    def commits(self) -> list[Path]:
        return sorted(self.job.glob("local/run-*/checkpoints/*/*/commit.json"))

    def wait_for_commits(self, count: int) -> None:
        self.wait(lambda: len(self.commits()) >= count, f"{count} commits")

    def last_commit(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.commits()[-1].read_text())
        return found

    def check_sent(self, count: int) -> None:
        """A save that leaves out what was there already would be compared with others that write everything."""
        sent = self.last_commit()["bytes_sent"]
        assert sent >= count, f"the last save has sent {sent} of {count} bytes"

    @property
    def arena(self) -> Path:
        """A folder in shared memory named after the job's uid."""
        uid = json.loads((self.job / ".holdfast/job.json").read_text())["uid"]
        shared = Path(f"/dev/shm/holdfast-{os.getuid()}-{uid.replace('-', '')[:8]}")
        return shared if shared.exists() else self.job / ".holdfast/arena"

    def close(self) -> None:
        super().close()
        if not self._keep:
            shutil.rmtree(self.job, ignore_errors=True)


class Pod(Measured):
    """An agent as a pod runs it, with the operator played by whoever measures: signed orders over HTTP. `memory`: a folder for the arena, in memory."""

    def __init__(
        self,
        folder: Path,
        memory: Path,
        storage: StorageConfig,
        *,
        rank: dict[str, Any],
        environ: dict[str, str],
        job_uid: str = "",
        **config: Any,
    ) -> None:
        self._arena = memory / f"arena-{secrets.token_hex(4)}"
        self._master, self.uid = secrets.token_bytes(32), str(uuid.uuid4())
        self.job_uid, self.attempt = job_uid or str(uuid.uuid4()), 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        keys, local = folder / "keys", folder / "local"
        for place in (keys, local):
            place.mkdir(parents=True, exist_ok=True)
        for role in signing.Role:
            (keys / role.value).write_text(signing.derive_key(self._master, self.job_uid, role).hex())
        described = AgentConfig(
            namespace="bench", job="bench", job_uid=self.job_uid, worker=0, serial=1, workers=1, processes_per_worker=1, storage=storage,
            memory_dir=str(self._arena), local_dir=str(local), **config,
        )  # fmt: skip
        super().__init__(
            folder, rank, [],
            {
                **environ, names.ENV_CONFIG: codec.to_json(described).decode(), names.ENV_POD_UID: self.uid, names.ENV_POD_IP: "127.0.0.1",
                names.ENV_POD_NAME: "bench-0", "HOLDFAST_AGENT_LISTEN": f"127.0.0.1:{self.port}", "HOLDFAST_KEYS_DIR": str(keys),
                "HOLDFAST_TOKEN_PATH": str(folder / "token"), "HOLDFAST_TERMINATION_PATH": str(folder / "termination"),
            },
        )  # fmt: skip
        self.wait(self._answers, "the agent answers")

    @property
    def arena(self) -> Path:
        return self._arena

    def begin(self, attempt: int = 1) -> None:
        """An attempt, accepted and allowed to claim."""
        self.attempt = attempt
        member = Member(0, "bench-0", self.uid, 1, "node", f"127.0.0.1:{self.port}")
        for may_claim in (False, True):
            self._order("/v1/attempt", AttemptOrder(self.job_uid, attempt, (member,), 1, may_claim, RestoreOrder()))

    def notice(self, seconds: float) -> None:
        """The node goes in so many seconds."""
        now = datetime.now(UTC)
        notice = Notice("taint:bench", Cause.SPOT, 0, "node", now, now + timedelta(seconds=seconds), True, True, False)
        self._order("/v1/notice", NoticeOrder(self.job_uid, self.attempt, (notice,)))

    def report(self) -> AgentReport:
        return codec.from_json(AgentReport, self._call("GET", "/v1/status", b"", 0))

    def _answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2) as answer,
        ):
            return bool(answer.status == 200)
        return False

    def _order(self, path: str, message: Any) -> None:
        self._call("POST", path, codec.to_json(message), message.attempt)

    def _call(self, method: str, path: str, body: bytes, attempt: int) -> bytes:
        key = signing.derive_key(self._master, self.job_uid, signing.Role.OPERATOR)
        envelope = signing.Envelope(
            method=method, path=path, receiver_pod_uid=self.uid, attempt=attempt, job_uid=self.job_uid
        )
        signed = signing.sign(key, envelope, body, now=time.time(), nonce=secrets.token_bytes(16))
        headers = {signing.HEADER: signed, signing.HEADER_ATTEMPT: str(attempt)}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=body or None, headers=headers, method=method
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())
