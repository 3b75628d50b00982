"""Training processes that are started before their attempt is known, so that an attempt need not wait for Python to import torch (`spec.warmStart`).

They wait in a pod that has no attempt yet, as a replacement has while the old pod saves (F5), and beside ranks that train, for the next start in place.
The process, its imports and what they cost in memory are all there is: which rank of which attempt it becomes is told to it with the command
(holdfast_rank.standby). A command that cannot be prepared is started as ever.
"""

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from holdfast_agent import spawning
from holdfast_agent.settings import environment_of_ranks, process_environment
from holdfast_agent.spawning import RankSpec, Spawned
from holdfast_agent.tunables import with_large_copies
from holdfast_rank import standby

PROGRAM = standby.__file__
MODULES = ("torch.distributed", "torch.nn.parallel", "torch.utils.data", "holdfast")
"""What nearly every script imports, and what takes the time."""
_PYTHON = re.compile(r"python(3(\.\d+)?)?")
_FLAGS = frozenset({"-u", "-B", "-I", "-s", "-E", "-O"})
"""Flags of Python that are passed on. With any other the command is not prepared."""


@dataclass(frozen=True, slots=True)
class Script:
    """A command of the form `python [FLAG…] SCRIPT [ARGUMENT…]`."""

    python: tuple[str, ...]
    """With its flags."""
    command: tuple[str, ...]
    """From the script on."""


def script_of(command: tuple[str, ...]) -> Script | None:
    """None for what only the command itself knows how to start: modules (-m), launchers, shells. Pure."""
    if not command or not _PYTHON.fullmatch(Path(command[0]).name):
        return None
    count = 1
    while count < len(command) and command[count] in _FLAGS:
        count += 1
    if count == len(command) or command[count].startswith("-") or not command[count].endswith(".py"):
        return None
    return Script(command[:count], command[count:])


def spawn(command: tuple[str, ...], local_rank: int) -> Spawned | None:
    """A process that waits; None if this command cannot be prepared. On the main thread, as `spawning.spawn`. Raises OSError."""
    script = script_of(command)
    if script is None:
        return None
    nobody = RankSpec(-1, local_rank, 0, 0, 0, 0, "", 0, "")
    return spawning.started(nobody, (*script.python, PROGRAM, *MODULES), _base(), stdin=subprocess.PIPE)


def become(popen: "subprocess.Popen[bytes]", spec: RankSpec, command: tuple[str, ...]) -> bool:
    """Makes a waiting process the rank. False if it is not there any more: then it never was one."""
    script = script_of(command)
    if script is None or popen.stdin is None:
        return False
    order = {"environment": spec.environment(_base()), "command": script.command}
    try:
        with popen.stdin as pipe:
            pipe.write(json.dumps(order).encode() + b"\n")
    except OSError:
        return False
    return True


def _base() -> Mapping[str, str]:
    return with_large_copies(environment_of_ranks(process_environment()))
