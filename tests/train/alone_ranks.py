"""Ranks that never speak to each other, run one after the other in this process: checkpoints of any number of ranks without process groups."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast_store.samples import STATE_NAME
from tests.train.fake_agent import FakeAgent, Image


def life(agent: FakeAgent, world: int, script: Callable[[int, int], Any]) -> list[Any]:
    """What `script(rank, world)` gives for each rank."""
    found = []
    for rank in range(world):
        with agent.as_environment(rank, world):
            found.append(script(rank, world))
    return found


def images_of(folder: Path, world: int, script: Callable[[int, int], Any]) -> list[Image]:
    """What a first life of `world` ranks has captured last."""
    with FakeAgent(folder) as agent:
        life(agent, world, script)
        return [agent.newest(rank) for rank in range(world)]


def after(
    folder: Path, images: list[Image], world: int, script: Callable[[int, int], Any]
) -> tuple[list[Any], FakeAgent]:
    """The next life, of another number of ranks: what the script gave, and the agent that it had."""
    with FakeAgent(folder) as agent:
        agent.other_world = images
        return life(agent, world, script), agent


def rewritten(image: Image, change: Callable[[Any], Any]) -> Image:
    """The same image with another state, as a release with other words would have written it."""
    entry = next(e for e in image.entries if e.name == STATE_NAME)
    data = bytearray(image.path.read_bytes())
    document = json.loads(data[entry.offset_bytes : entry.offset_bytes + entry.length_bytes])
    change(document)
    text = json.dumps(document, separators=(",", ":")).encode()
    assert len(text) <= entry.length_bytes
    data[entry.offset_bytes : entry.offset_bytes + entry.length_bytes] = text.ljust(entry.length_bytes)
    image.path.write_bytes(data)
    return image
