"""Settings of the whole machine that a cluster changes, kept so that the last one to go puts them back.

The kubelet writes some of these itself (protectKernelDefaults is off); the others are too low for two nodes of pods.
"""

import json
import shutil
from pathlib import Path

from hack.cluster.state import locked

#: The lowest value a cluster can work with; None: written by the kubelet, only to be put back.
SYSCTLS: dict[str, int | None] = {
    "net/ipv4/ip_forward": 1,
    "fs/inotify/max_user_instances": 8192,
    "vm/overcommit_memory": None,
    "vm/panic_on_oom": None,
    "kernel/panic": None,
    "kernel/panic_on_oops": None,
    "kernel/keys/root_maxkeys": None,
    "kernel/keys/root_maxbytes": None,
}

#: Under /run, because after a restart of the machine the old values are back by themselves.
KEPT = Path("/run/holdfast-clusters")
#: A directory that is always there: a lock file of our own would be left behind, or be removed under a waiter.
_LOCK = Path("/run")


def raise_limits(cluster: str) -> None:
    """Keeps the old values once per machine, then raises those that are too low."""
    with locked(_LOCK):
        KEPT.mkdir(exist_ok=True)
        old = KEPT / "sysctl.json"
        if not old.exists():
            old.write_text(json.dumps({name: _sysctl(name).read_text().strip() for name in SYSCTLS}))
        (KEPT / f"{cluster}.up").touch()
        for name, least in SYSCTLS.items():
            if least is not None and int(_sysctl(name).read_text()) < least:
                _sysctl(name).write_text(str(least))


def put_back(cluster: str) -> None:
    """Puts the old values back if this was the last cluster; harmless when done twice."""
    with locked(_LOCK):
        mine = KEPT / f"{cluster}.up"
        if not mine.exists():
            return
        mine.unlink()
        if list(KEPT.glob("*.up")):
            return
        for name, value in json.loads((KEPT / "sysctl.json").read_text()).items():
            if _sysctl(name).read_text().strip() != value:
                _sysctl(name).write_text(value)
        shutil.rmtree(KEPT)


def _sysctl(name: str) -> Path:
    return Path("/proc/sys", name)
