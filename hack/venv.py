"""Makes the Python environment in which demo and tests run, and prints the path of its python.

Standard library only: it runs before there is anything else. The environment lies in the cache under a key of the lock
file, so another checkout or an older revision does not disturb it. On a machine without a GPU torch is not installed into
it but found, through a .pth file, in the directory that pods share; on one with a GPU the real one is installed.
"""

import shutil
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hack.cluster import api
from hack.cluster.cache import Cache, digest_of
from hack.cluster.errors import ClusterError
from hack.cluster.paths import REPOSITORY
from hack.cluster.python import interpreter
from hack.cluster.state import locked

DEVELOPMENT_LOCK = REPOSITORY / "requirements-dev.lock"
TORCH_LOCK = REPOSITORY / "requirements-torch.lock"
BUILD_LOCK = REPOSITORY / "hack/image/requirements-build.lock"


def has_gpu() -> bool:
    """The driver's device is there, whatever is installed."""
    return Path("/dev/nvidiactl").exists()


def ensure() -> Path:
    """The python of an environment that is complete; made if need be."""
    gpu = has_gpu()
    cache = Cache()
    torch = None if gpu else api.torch_directory(_say)
    locks = [DEVELOPMENT_LOCK, BUILD_LOCK, *([TORCH_LOCK] if gpu else [])]
    key = digest_of((sys.version, str(REPOSITORY), str(torch), *locks))
    home = cache.directory / f"venv-{key}"
    with locked(cache.directory / "locks" / "venv"):
        # Not built beside and renamed: scripts of an environment hold its path. The mark says that it is complete.
        if not (home / "complete").exists():
            _say(f"Python environment from {DEVELOPMENT_LOCK.name}, usually 60 s")
            _make(home, locks, torch)
        _install_project(home)
    return home / "bin" / "python"


def _make(home: Path, locks: list[Path], torch: Path | None) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    _run(interpreter(), "-m", "venv", str(home))
    for lock in locks:
        _pip(home, "install", "--require-hashes", "-r", str(lock))
    if torch is not None:
        (packages,) = home.glob("lib/python3*/site-packages")
        (packages / "torch-cpu.pth").write_text(f"{torch}\n")
    (home / "complete").touch()


def _install_project(home: Path) -> None:
    """Editable, so sources need nothing; again only when names of packages or programs change."""
    mark = home / "project"
    wanted = digest_of((REPOSITORY / "pyproject.toml",))
    if mark.exists() and mark.read_text() == wanted:
        return
    _pip(home, "install", "--no-build-isolation", "--no-deps", "--editable", str(REPOSITORY))
    mark.write_text(wanted)


def _pip(home: Path, *argv: str) -> None:
    _run(str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", *argv)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, stdout=sys.stderr, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(argv[:5])} ended with {done.returncode}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        print(ensure())
    except ClusterError as problem:
        sys.exit(str(problem))
