"""Makes the Python environment in which `make bench` runs the engine's questions: the project's own, and beside it the programs it is compared with.

It lies in the cache as the project's environment does (hack/venv.py) and finds torch and everything else of that one through a .pth file, so nothing is
there twice. The project's environment must exist.
"""

import shutil
import sys
from pathlib import Path

from hack import venv
from hack.cluster.artefacts.artefact import Artefact, Workshop
from hack.cluster.build import build
from hack.cluster.cache import Cache, digest_of
from hack.cluster.errors import ClusterError
from hack.cluster.paths import REPOSITORY
from hack.cluster.python import interpreter

LOCK = REPOSITORY / "benchmarks/requirements-peers.lock"
NAME = "peers"


def ensure() -> tuple[Path | None, str]:
    """(its python, "") or (None, why there is none). Called by the project's own python; never raises: without peers the rest is measured all the same."""
    if sys.prefix == sys.base_prefix:
        return None, "it is made beside the project's own environment: start with `make bench` or scripts/run"
    cache = Cache()
    part = environment(cache, Path(sys.prefix), shared_paths())
    venv.forget_if_lost(part, cache)
    try:
        build([part], cache)
    except ClusterError as e:
        return None, f"the peers could not be installed: {e}"
    return venv.python_of(part, cache), ""


def shared_paths() -> tuple[str, ...]:
    """Where the project's environment finds its packages: torch's directory, if it has one of its own, and site-packages."""
    inside = [p for p in sys.path if Path(p).is_relative_to(sys.prefix) and p.endswith("site-packages")]
    torch = [p for p in sys.path if (Path(p) / "torch/__init__.py").exists() and p not in inside]
    return tuple(dict.fromkeys([*inside, *torch]))


def environment(
    cache: Cache,
    project: Path,
    shared: tuple[str, ...],
    *,
    name: str = NAME,
    what: str = "the benchmark's peers",
    lock: Path = LOCK,
) -> Artefact:
    """As in hack/venv.py, the artefact stands for a directory of its own, which cannot be moved."""
    home = cache.directory / f"{name}-{digest_of((sys.version, str(project), *shared, lock))}"

    def make(workshop: Workshop, directory: Path) -> None:
        if not (home / "complete").exists():
            _make(workshop, home, shared, lock)
        (directory / "home").symlink_to(home)

    return Artefact(
        name=name,
        what=f"{what} from {lock.name}",
        usual_seconds=40,
        made_from=(str(home),),
        make=make,
        mostly_waits=True,
    )


def _make(workshop: Workshop, home: Path, shared: tuple[str, ...], lock: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    try:
        workshop.run(interpreter(), "-m", "venv", home)
        python = home / "bin/python"
        # What the lock names is installed with all it needs but torch, which pip would not find through a .pth file.
        pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet")
        workshop.run(*pip, "install", "--no-deps", "--require-hashes", "-r", lock)
        (packages,) = (home / "lib").glob("python3.*/site-packages")
        (packages / "project.pth").write_text("".join(f"{path}\n" for path in shared))
        (home / "complete").touch()
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
