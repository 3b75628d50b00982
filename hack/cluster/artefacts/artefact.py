"""One thing that is built once and kept, and the tools its maker works with."""

import contextlib
import functools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.cache import Cache, digest_of
from hack.cluster.errors import ClusterError, Interrupted


@dataclass(frozen=True)
class Artefact:
    """A directory of the cache, and how it comes to be."""

    name: str
    #: For the progress line: "Kubernetes 1.36.2 from source".
    what: str
    #: Measured on two cores, for the progress line and the order of builds.
    usual_seconds: int
    #: Everything the result depends on: texts, files, trees.
    made_from: tuple[str | Path, ...]
    #: Fills the directory it is given.
    make: Callable[["Workshop", Path], None]
    #: Artefacts whose directories the maker reads.
    needs: tuple["Artefact", ...] = ()
    #: Waits for the network most of the time, so it may run beside others.
    mostly_waits: bool = False
    #: How many versions stay in the cache.
    keep: int = 2

    @functools.cached_property
    def key(self) -> str:
        """Worked out once: sources may change while they are built, and the result must be found again."""
        return digest_of((self.name, *self.made_from, *(need.key for need in self.needs)))

    def path(self, cache: Cache) -> Path:
        return cache.path(self.name, self.key)

    def is_built(self, cache: Cache) -> bool:
        return cache.has(self.name, self.key)


class Workshop:
    """Runs the programs of one build; when it is closed, all of them end at once and no further one starts."""

    def __init__(self, cache: Cache, artefact: Artefact, children: "Children") -> None:
        self.cache = cache
        self.log = cache.log(artefact.name)
        self._children = children
        self._scratch = cache.directory / "scratch" / artefact.name

    @property
    def scratch(self) -> Path:
        """For temporary files; gone when the build ends."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    def run(self, *argv: str | Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        """Runs a program with its output in the artefact's log."""
        with self.log.open("ab") as log:
            log.write(f"+ {' '.join(map(str, argv))}\n".encode())
            log.flush()
            began = time.monotonic()
            code = self._children.run(argv, cwd, self._environment(environment), log.fileno(), log.fileno())
            log.write(f"= ended with {code} after {time.monotonic() - began:.1f} s\n".encode())
        if code:
            raise ClusterError(f"{argv[0]} ended with {code}; {self._last_words()}")

    def read(self, *argv: str | Path) -> str:
        """Runs a program and returns what it prints."""
        output = self.scratch / "output"
        with output.open("wb") as out, self.log.open("ab") as log:
            code = self._children.run(argv, None, self._environment(None), out.fileno(), log.fileno())
        if code:
            raise ClusterError(f"{argv[0]} ended with {code}; {self._last_words()}")
        return output.read_text()

    def isolated(self, *argv: str | Path) -> list[str | Path]:
        """The command in mount and PID namespaces of its own: killed, it leaves neither mounts nor processes."""
        return ["unshare", "-m", "-p", "--fork", "--kill-child=KILL", "--mount-proc", "--propagation", "private", *argv]

    def _environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        # Compilers and pip leave their temporary files behind when they are killed.
        return {**os.environ, "TMPDIR": str(self.scratch), **(extra or {})}

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()[-4:-1]
        return f"see {self.log}: {' | '.join(lines)[-500:]}"


class Children:
    """The running programs of all builds, so that one call ends every one of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def run(
        self, argv: Sequence[str | Path], cwd: Path | None, environment: Mapping[str, str], out: int, err: int
    ) -> int:
        with self._started([str(word) for word in argv], cwd, environment, out, err) as child:
            code = child.wait()
        if self._closed:
            raise Interrupted(f"{argv[0]} was stopped")
        return code

    def are_ended(self) -> bool:
        return self._closed

    def end_all(self) -> None:
        """Kills the process group of each running program; they hold nothing worth a gentler end."""
        with self._lock:
            self._closed = True
            for child in self._running:
                # Not yet waited for, so the number is still this program's.
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)

    @contextlib.contextmanager
    def _started(
        self, argv: list[str], cwd: Path | None, environment: Mapping[str, str], out: int, err: int
    ) -> Iterator[subprocess.Popen[bytes]]:
        with self._lock:
            if self._closed:
                raise Interrupted("stopped")
            # A session, and so a process group, of its own; the lowest claim on the processor but one.
            child = subprocess.Popen(
                ["nice", "-n", "10", *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env=dict(environment),
                start_new_session=True,
            )
            self._running.add(child)
        try:
            yield child
        finally:
            with self._lock:
                self._running.discard(child)
