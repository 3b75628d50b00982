"""The Python that the trainer image has, and what this machine has of the same minor version.

torch is installed once on the host and mounted into pods, so both sides must agree on the version of Python.
"""

import shutil
import sys

from hack.cluster.errors import ClusterError

MINOR = (3, 11)
WANTED = "python3.11"


def interpreter() -> str:
    """A Python of the wanted version: the one that runs this, else one on the search path."""
    if sys.version_info[:2] == MINOR:
        return sys.executable
    found = shutil.which(WANTED)
    if found is None:
        raise ClusterError(f"{WANTED} is needed and this is Python {sys.version.split()[0]}: install {WANTED}")
    return found
