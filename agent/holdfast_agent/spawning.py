"""A training process, as torchrun would start it: what it is told, and the start. No event loop, so that it can begin before there is one (headstart.py).

Each rank is the leader of its own session: SIGTERM to the container reaches the agent only, ranks and their data-loader workers are shielded (E7), and a
whole group can be killed at once.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from holdfast_agent import address, tunables
from holdfast_agent.settings import Settings, environment_of_ranks, process_environment
from holdfast_api import names
from holdfast_api.messages import AttemptOrder
from holdfast_rank import shield

SHIELD = shield.__file__


@dataclass(frozen=True, slots=True)
class RankSpec:
    """Where one process stands in the job."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    group_rank: int
    attempt: int
    master_addr: str
    master_port: int
    socket: str
    global_batch: int = 0
    """Samples of an update, of all ranks together; 0: not said."""

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Exactly what torchrun sets, and the names of ours. `base` has been stripped of the agent's own configuration."""
        told = {names.ENV_GLOBAL_BATCH: str(self.global_batch)} if self.global_batch else {}
        return (
            dict(base)
            | told
            | {
                "RANK": str(self.rank),
                "LOCAL_RANK": str(self.local_rank),
                "WORLD_SIZE": str(self.world_size),
                "LOCAL_WORLD_SIZE": str(self.local_world_size),
                "GROUP_RANK": str(self.group_rank),
                "GROUP_WORLD_SIZE": str(self.world_size // self.local_world_size),
                "MASTER_ADDR": self.master_addr,
                "MASTER_PORT": str(self.master_port),
                names.ENV_SOCKET: self.socket,
                names.ENV_ATTEMPT: str(self.attempt),
            }
        )


@dataclass(eq=False, slots=True)
class Spawned:
    """A process that was started and that nobody watches yet."""

    spec: RankSpec
    popen: subprocess.Popen[bytes]
    stderr: int
    """The end of a pipe from which what it says is read; owned by whoever takes the process."""


def specs(settings: Settings, order: AttemptOrder, socket: str) -> list[RankSpec]:
    """Of this worker's ranks in one attempt, in their order. Pure."""
    port = settings.rendezvous_port or names.rendezvous_port(order.attempt)
    lead = min(order.members, key=lambda m: m.worker)
    return [
        RankSpec(
            rank=number,
            local_rank=local,
            world_size=order.world_size,
            local_world_size=settings.config.processes_per_worker,
            group_rank=number // settings.config.processes_per_worker,
            attempt=order.attempt,
            master_addr=address.split(lead.address)[0] if lead.address else settings.pod_ip,
            master_port=port,
            socket=socket,
            global_batch=order.global_batch,
        )
        for local, number in enumerate(order.ranks_of(settings.config.worker))
    ]


def spawn(spec: RankSpec, command: tuple[str, ...]) -> Spawned:
    """Returns at once; a command that cannot be run shows as exit status 126 or 127. On the main thread: the process dies with the thread that started it
    (holdfast_rank.shield). Raises OSError."""
    base = tunables.with_large_copies(environment_of_ranks(process_environment()))
    return started(spec, command, spec.environment(base), stdin=subprocess.DEVNULL)


def started(spec: RankSpec, command: tuple[str, ...], environment: Mapping[str, str], *, stdin: int) -> Spawned:
    """The same with all of what the process is given."""
    read, write = os.pipe()
    try:
        popen = subprocess.Popen(
            [sys.executable, "-I", "-S", SHIELD, str(os.getpid()), *command],
            env=environment,
            stdin=stdin,
            stderr=write,
            start_new_session=True,
        )
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    return Spawned(spec, popen, read)
