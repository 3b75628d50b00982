"""Outside Kubernetes the attempt is known at once (A10), so the ranks begin before the rest of the agent is imported.

What a rank imports takes a second or more, what the agent imports a third of one, and neither needs the other. Who comes first waits: the socket is open
before the first rank runs. In a pod the attempt comes with the operator's order, for which the whole server is needed.

This module and what it imports are all that lies before a rank's own start: no event loop, no HTTP, no store (test_agent_headstart).
"""

from dataclasses import dataclass
from pathlib import Path

from holdfast_agent import rank_socket, spawning
from holdfast_agent.errors import ConfigurationWrong
from holdfast_agent.laptop import Laptop
from holdfast_agent.rank_socket import Listening
from holdfast_agent.settings import Settings
from holdfast_agent.spawning import Spawned
from holdfast_api.messages import AttemptOrder


@dataclass(frozen=True, slots=True)
class HeadStart:
    """What the agent takes over."""

    held: Laptop
    """Its lock is held as long as this lives."""
    order: AttemptOrder
    listening: Listening
    processes: tuple[Spawned, ...]


def begin(held: Laptop, settings: Settings, order: AttemptOrder) -> HeadStart:
    """Starts every rank of `order`, whose number has been written down (A1). They die with this process, so nothing has to be ended if the rest of the agent
    cannot start. Raises ConfigurationWrong."""
    listening = rank_socket.listen(Path(settings.config.memory_dir))
    try:
        specs = spawning.specs(settings, order, str(listening.path))
        return HeadStart(held, order, listening, tuple(spawning.spawn(s, settings.command) for s in specs))
    except OSError as e:
        raise ConfigurationWrong(f"the training processes cannot be started: {e.strerror}") from e
