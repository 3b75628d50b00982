"""Makes the Python environments of `make test-train` and prints the path of the python of one: the project's own environment, and beside it the frameworks that
Holdfast has integrations for; or, with the argument `streaming`, beside those MosaicML streaming, whose bounds contradict theirs (hack/streaming.exclude).
Made as the benchmark's peers are (hack/peers.py). The project's environment must exist; called by its python.
"""

import sys
from pathlib import Path

from hack import peers, venv
from hack.cluster.artefacts.artefact import Artefact
from hack.cluster.build import build
from hack.cluster.cache import Cache
from hack.cluster.paths import REPOSITORY

LOCK = REPOSITORY / "hack/frameworks.lock"
STREAMING = REPOSITORY / "hack/streaming.lock"


def ensure() -> Path:
    """Raises ClusterError."""
    return _built("frameworks", "the frameworks", LOCK, peers.shared_paths())


def ensure_streaming() -> Path:
    """Raises ClusterError."""
    (frameworks,) = (ensure().parents[1] / "lib").glob("python3.*/site-packages")
    shared = (str(frameworks), *peers.shared_paths())
    return _built("streaming", "MosaicML streaming", STREAMING, shared)


def _built(name: str, what: str, lock: Path, shared: tuple[str, ...]) -> Path:
    cache = Cache()
    part: Artefact = peers.environment(cache, Path(sys.prefix), shared, name=name, what=what, lock=lock)
    venv.forget_if_lost(part, cache)
    build([part], cache)
    return venv.python_of(part, cache)


if __name__ == "__main__":
    print(venv.said_in_one_line(ensure_streaming if sys.argv[1:] == ["streaming"] else ensure))
