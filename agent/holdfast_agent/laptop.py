"""Outside Kubernetes the agent is its own operator: a lock on the directory and an attempt file stand for the job's status (A10).

DIR/.holdfast/lock          held while an agent runs
DIR/.holdfast/job.json      {"uid": ..., "attempt": ...}; the number is written before the attempt starts, so none is used twice (A1)
DIR/.holdfast/arena/        slots, unless /dev/shm is large enough
"""

import dataclasses
import fcntl
import json
import os
import secrets
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from holdfast_agent.errors import ConfigurationWrong
from holdfast_agent.settings import Settings, check
from holdfast_api.config import AgentConfig, StorageConfig
from holdfast_api.errors import BadName
from holdfast_api.layout import checked_uid
from holdfast_api.messages import AttemptOrder, Member, RestoreOrder
from holdfast_api.names import uid8
from holdfast_api.signing import Role

NAMESPACE = "local"
JOB = "run"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the system's shared memory; the folder below it is made with mode 0700
SMALLEST_SHARED_MEMORY_BYTES = 1 << 30
"""Containers by default get 64 MiB of /dev/shm, which no model fits."""


@dataclass(slots=True)
class Laptop:
    """Holds the lock as long as it lives."""

    folder: Path
    uid: str
    attempt: int
    lock: IO[str]

    def next_attempt(self) -> int:
        """Written down before it is used (A1)."""
        self.attempt += 1
        _write(self.folder / "job.json", {"uid": self.uid, "attempt": self.attempt})
        return self.attempt


def _free_port() -> int:
    """Nobody on this machine listened there a moment ago. Other runs here count their attempts from 1 as well, and no other worker has to know the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def take(directory: Path) -> Laptop:
    """Raises ConfigurationWrong if the directory cannot be used or another agent holds it."""
    folder = directory / ".holdfast"
    try:
        _make(folder)
        lock = (folder / "lock").open("a+")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationWrong(
            f"another holdfast-agent runs on {directory}; wait for it or use another directory"
        ) from None
    except OSError as e:
        raise ConfigurationWrong(f"--local {directory} cannot be used: {e.strerror}") from e
    path = folder / "job.json"
    try:
        if path.exists():
            state = json.loads(path.read_text())
            attempt = int(state["attempt"])
            if attempt < 0:
                raise ValueError(f"attempt is {attempt}")
            return Laptop(folder, checked_uid(state["uid"]), attempt, lock)
    except (OSError, ValueError, KeyError, TypeError, BadName) as e:
        # Guessing a number could give one a second life (A4); a person has to look.
        raise ConfigurationWrong(f"{path} cannot be read ({e}); restore it or use another directory") from e
    laptop = Laptop(folder, str(uuid.uuid4()), 0, lock)
    _write(path, {"uid": laptop.uid, "attempt": 0})
    return laptop


def settings(
    laptop: Laptop,
    directory: Path,
    command: tuple[str, ...],
    *,
    processes: int,
    every_steps: int,
    every_seconds: int,
    every_auto: bool = False,
    chunk_bytes: int,
    background_bytes_per_second: int = 0,
) -> Settings:
    config = AgentConfig(
        namespace=NAMESPACE,
        job=JOB,
        job_uid=laptop.uid,
        worker=0,
        serial=laptop.attempt + 1,
        workers=1,
        processes_per_worker=processes,
        storage=StorageConfig(uri=directory.resolve().as_uri()),
        every_steps=every_steps,
        every_seconds=every_seconds,
        every_auto=every_auto,
        chunk_bytes=chunk_bytes,
        background_bytes_per_second=background_bytes_per_second,
        # Nobody waits with a SIGKILL behind a SIGTERM here; a second Ctrl-C ends hard.
        grace_seconds=120,
        sigterm_floor_seconds=120,
        memory_dir=str(_memory(laptop)),
        local_dir="",
    )
    check(config)
    return Settings(
        config=config,
        command=command,
        pod_name="laptop",
        pod_uid=str(uuid.uuid4()),
        pod_ip="127.0.0.1",
        node=os.uname().nodename,
        listen_host="127.0.0.1",
        listen_port=0,
        keys={role: secrets.token_bytes(32) for role in Role},
        token_path=Path("/nonexistent"),
        termination_path=None,
        rendezvous_port=_free_port(),
        laptop=True,
    )


def examined(directory: Path, processes: int) -> AgentConfig:
    """What `run --local` would use, without taking or making anything (doctor.py)."""
    storage = StorageConfig(uri=directory.resolve().as_uri())
    nobody = str(uuid.UUID(int=0))
    config = AgentConfig(NAMESPACE, JOB, nobody, 0, 1, 1, processes, storage, local_dir="")
    check(config)
    return dataclasses.replace(config, memory_dir=str(_memory_volume() or directory))


def order(settings: Settings, attempt: int, restore: RestoreOrder | None = None) -> AttemptOrder:
    """The lock is held, so no older attempt lives: it may be claimed at once (A3)."""
    config = settings.config
    member = Member(0, settings.pod_name, settings.pod_uid, config.serial, settings.node, "127.0.0.1")
    return AttemptOrder(
        config.job_uid,
        attempt,
        (member,),
        config.processes_per_worker,
        may_claim=True,
        restore=restore or RestoreOrder(),
    )


def _memory(laptop: Laptop) -> Path:
    volume = _memory_volume()
    return volume / f"holdfast-{os.getuid()}-{uid8(laptop.uid)}" if volume is not None else laptop.folder / "arena"


def _memory_volume() -> Path | None:
    """The system's shared memory, if it is worth using."""
    try:
        stat = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    large = stat.f_blocks * stat.f_frsize >= SMALLEST_SHARED_MEMORY_BYTES
    return SHARED_MEMORY if large and os.access(SHARED_MEMORY, os.W_OK) else None


def _write(path: Path, value: dict[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(json.dumps(value))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _flush(path.parent)


def _make(folder: Path) -> None:
    """The folder with its name and those above it durable (B9): a number that was given out must not be given again after the power has failed (A1)."""
    above = folder.parent
    fresh = [folder, *(p for p in (above, *above.parents) if not p.exists())]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for made in fresh:
        _flush(made.parent)


def _flush(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
