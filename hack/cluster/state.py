"""The state file: what was started and what was changed, so that `down` needs nothing else.

Several programs change it (`up`, a test that cuts a node's power, the demo that starts the S3 server), so every change
reads, changes and replaces the file under a lock, and the file is replaced in one step.
"""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hack.cluster.errors import ClusterError, Interrupted
from hack.cluster.processes import Recorded, spawn
from hack.cluster.settings import Settings

#: Begins the name of every process that is not part of Kubernetes, such as the S3 server.
SERVICE_PREFIX = "service/"


@dataclass
class State:
    """One cluster as the file has it."""

    settings: Settings
    processes: dict[str, Recorded] = field(default_factory=dict)
    #: Small facts of services beside the cluster, such as the S3 server's credentials.
    notes: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "State":
        raw: dict[str, Any] = json.loads(text)
        settings = raw["settings"]
        for listed in ("archives", "apiserver_arguments"):
            settings[listed] = tuple(settings[listed])
        processes = {name: Recorded(**process) for name, process in raw["processes"].items()}
        return cls(Settings(**settings), processes, dict(raw["notes"]))

    def missing_processes(self) -> list[str]:
        """Parts of the cluster that should run and do not; services beside it are not counted."""
        parts = {name: process for name, process in self.processes.items() if not name.startswith(SERVICE_PREFIX)}
        return [name for name, process in parts.items() if not process.alive()]


class Store:
    """A cluster's state directory and the state file in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.file = self.directory / "state.json"

    def exists(self) -> bool:
        return self.file.exists()

    def read(self) -> State:
        try:
            return State.from_json(self.file.read_text())
        except FileNotFoundError:
            raise ClusterError(f"no cluster in {self.directory}: start one with hack/cluster/up") from None

    def create(self, settings: Settings) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        replace_file(self.file, State(settings).to_json())

    @contextlib.contextmanager
    def changing(self) -> Iterator[State]:
        """The newest state, to be changed by the block; kept only if the block ends well."""
        with locked(self.directory / "lock"):
            state = self.read()
            yield state
            replace_file(self.file, state.to_json())

    def spawn(self, name: str, argv: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Recorded:
        """Starts a process and writes it down before anyone else can change the file."""
        with self.changing() as state:
            known = state.processes.get(name)
            if known is not None and known.alive():
                return known
            process = state.processes[name] = spawn(argv, self.log(name), environment)
        return process

    def forget(self, name: str) -> None:
        with self.changing() as state:
            state.processes.pop(name, None)

    def log(self, name: str) -> Path:
        return self.directory / "log" / f"{name}.log"

    def node_directory(self, node: str) -> Path:
        return self.directory / "nodes" / node

    @property
    def pki(self) -> Path:
        return self.directory / "pki"

    @property
    def bin(self) -> Path:
        return self.directory / "bin"

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"


def replace_file(path: Path, text: str) -> None:
    """Readers see the old content or the new one, never a part; only the owner may read it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    fresh.write_text(text)
    fresh.chmod(0o600)
    fresh.replace(path)


@contextlib.contextmanager
def locked(
    path: Path, patience_seconds: float = math.inf, give_up: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Holds an exclusive lock on a file or directory; the kernel drops it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + patience_seconds
        while not _acquired(handle):
            if give_up():
                raise Interrupted(f"stopped while waiting for {path}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{path} is held by another program for over {patience_seconds:.0f} s")
            time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def _acquired(handle: int) -> bool:
    """Not waiting in the kernel, where only a signal to this very thread would end it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
