"""Makes the Python environment in which demo and tests run, and prints the path of its python.

Standard library only: it runs before there is anything else. The environment lies in the cache under a key of the lock
file, so another checkout or an older revision does not disturb it. On a machine without a GPU torch is not installed into
it but found, through a .pth file, in the directory that pods share; on one with a GPU the real one is installed.

It is made beside everything else that is missing, as one of the builds of `hack/cluster/build.py`: those end pip with all it
started when they are stopped, and what pip had not finished is removed.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn, TypeVar

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hack.cluster import preflight, programs
from hack.cluster.artefacts.artefact import Artefact, Workshop
from hack.cluster.artefacts.torch_cpu import torch_cpu
from hack.cluster.build import build, stops_on_signal
from hack.cluster.cache import Cache, digest_of
from hack.cluster.errors import ClusterError
from hack.cluster.paths import REPOSITORY
from hack.cluster.python import interpreter
from hack.cluster.state import locked

DEVELOPMENT_LOCK = REPOSITORY / "requirements-dev.lock"
TORCH_LOCK = REPOSITORY / "requirements-torch.lock"
BUILD_LOCK = REPOSITORY / "hack/image/requirements-build.lock"
PROJECT = REPOSITORY / "pyproject.toml"

NAME = "environment"
T = TypeVar("T")


def has_gpu() -> bool:
    """The driver's device is there, whatever is installed."""
    return Path("/dev/nvidiactl").exists()


def ensure(beside: Callable[[], Iterable[Artefact]] = tuple) -> Path:
    """The python of an environment that is complete; made if need be, and whatever else `beside` names, all at once.

    Raises ClusterError with what the machine lacks before anything is built.
    """
    others = list(beside())
    preflight.require_toolchain({} if has_gpu() else programs.TORCH_PACKAGES)
    cache = Cache()
    torch = None if has_gpu() else torch_cpu()
    part = environment(cache, None if torch is None else torch.path(cache))
    forget_if_lost(part, cache)
    build([part, *([torch] if torch else []), *others], cache)
    return python_of(part, cache)


def become(*arguments: str, beside: Callable[[], Iterable[Artefact]] = tuple) -> NoReturn:
    """Goes on as the environment's python with these arguments, in the checkout; what stands in the way is said in one line."""
    python = str(said_in_one_line(lambda: ensure(beside)))
    os.chdir(REPOSITORY)
    os.execv(python, [python, *arguments])


def said_in_one_line(work: Callable[[], T]) -> T:
    """The result of `work`; what a person can do nothing about but read it ends the program without a traceback. SIGTERM unwinds like Ctrl-C."""
    try:
        with stops_on_signal():
            return work()
    except ClusterError as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)


def environment(cache: Cache, torch: Path | None) -> Artefact:
    """The environment as something to build; `torch` is where torch lies or will lie, None for one with torch installed.

    The artefact itself is empty: scripts of an environment hold its path, so it cannot be made beside and renamed. It lies in
    a directory of its own whose file `complete` says that it is.
    """
    locks = [DEVELOPMENT_LOCK, BUILD_LOCK, *([] if torch else [TORCH_LOCK])]
    home = cache.directory / f"venv-{digest_of((sys.version, str(REPOSITORY), str(torch), *locks))}"

    def make(workshop: Workshop, directory: Path) -> None:
        if not (home / "complete").exists():
            _make(workshop, home, locks, torch)
        _install_project(workshop, home)
        (directory / "home").symlink_to(home)

    return Artefact(
        name=NAME,
        what=f"the Python environment from {DEVELOPMENT_LOCK.name}",
        usual_seconds=60,
        made_from=(str(home), PROJECT),
        make=make,
        mostly_waits=True,
        keep=16,
    )


def python_of(part: Artefact, cache: Cache) -> Path:
    return (part.path(cache) / "home").readlink() / "bin" / "python"


def forget_if_lost(part: Artefact, cache: Cache) -> None:
    """Somebody deleted the environment and not the artefact that stands for it."""
    with locked(cache.directory / "locks" / NAME):
        if part.is_built(cache) and not (part.path(cache) / "home" / "complete").exists():
            shutil.rmtree(part.path(cache))


def _make(workshop: Workshop, home: Path, locks: list[Path], torch: Path | None) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    try:
        workshop.run(interpreter(), "-m", "venv", home)
        for lock in locks:
            _pip(workshop, home, "install", "--require-hashes", "-r", lock)
        if torch is not None:
            (packages,) = (home / "lib").glob("python3.*/site-packages")
            # Read when Python starts, not now: torch may still be on its way.
            (packages / "torch-cpu.pth").write_text(f"{torch}\n")
        (home / "complete").touch()
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise


def _install_project(workshop: Workshop, home: Path) -> None:
    """Editable, so sources need nothing; again only when names of packages or programs change."""
    mark = home / "project"
    wanted = digest_of((PROJECT,))
    if mark.exists() and mark.read_text() == wanted:
        return
    _pip(workshop, home, "install", "--no-build-isolation", "--no-deps", "--editable", REPOSITORY)
    mark.write_text(wanted)


def _pip(workshop: Workshop, home: Path, *argv: str | Path) -> None:
    workshop.run(home / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", *argv)


if __name__ == "__main__":
    print(said_in_one_line(ensure))
