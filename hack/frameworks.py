"""Makes the Python environment of `make test-train` and prints the path of its python: the project's own, and beside it the frameworks that Holdfast has
integrations for. Made as the benchmark's peers are (hack/peers.py). The project's environment must exist; called by its python.
"""

import sys
from pathlib import Path

from hack import peers, venv
from hack.cluster.build import build
from hack.cluster.cache import Cache
from hack.cluster.paths import REPOSITORY

LOCK = REPOSITORY / "hack/frameworks.lock"


def ensure() -> Path:
    """Raises ClusterError."""
    cache = Cache()
    part = peers.environment(
        cache, Path(sys.prefix), peers.shared_paths(), name="frameworks", what="the frameworks", lock=LOCK
    )
    venv.forget_if_lost(part, cache)
    build([part], cache)
    return venv.python_of(part, cache)


if __name__ == "__main__":
    print(venv.said_in_one_line(ensure))
