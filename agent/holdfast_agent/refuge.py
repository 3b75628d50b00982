"""Where this worker can put what another one must leave behind: its node's directory where there is room, else the memory volume (E6, G2). Blocking.

Room is looked at before anything is written, and what training may still need is left alone: a survivor that dies of another's bytes would lose both parts.
"""

import os
from pathlib import Path

from holdfast_agent import memory
from holdfast_api.layout import CheckpointRef
from holdfast_store.local import LocalTier

FOLDER = "rescued"
"""On the memory volume: it outlives the container, and goes with the pod."""


class Refuge:
    """The agent's. `own_bytes` everywhere: what this worker's own images take, which may still be written."""

    def __init__(self, node: LocalTier | None, memory_dir: Path, namespace: str, job: str, job_uid: str) -> None:
        self.node = node
        self._memory_dir = memory_dir
        self.in_memory = LocalTier(memory_dir / FOLDER, namespace, job, job_uid)

    def room(self, own_bytes: int) -> int:
        """Bytes that could be taken now."""
        return max(0, self._on_node(own_bytes), self._in_memory())

    def choose(self, size: int, own_bytes: int) -> LocalTier | None:
        """The place for a part of so many bytes; None if there is none."""
        if self.node is not None and size <= self._on_node(own_bytes):
            return self.node
        if size > self._in_memory():
            return None
        (self._memory_dir / FOLDER).mkdir(mode=0o700, exist_ok=True)
        return self.in_memory

    def drop(self, ref: CheckpointRef, worker: int) -> None:
        """Another worker's part of a save that was given up. Absent is fine. Raises StoreError."""
        tiers = [self.node, self.in_memory if self.in_memory.root.is_dir() else None]
        for tier in tiers:
            if tier is not None:
                tier.drop_pending(ref, worker)

    def settled(self, committed: CheckpointRef) -> None:
        """Nothing up to this checkpoint is finished any more (A8): what lies in memory for it is given back. Raises StoreError."""
        if self.in_memory.root.is_dir():
            self.in_memory.drop_older(committed)
            if not self.in_memory.left():
                self.in_memory.prune(set())

    def _on_node(self, own_bytes: int) -> int:
        if self.node is None:
            return 0
        try:
            stat = os.statvfs(self.node.root)
        except OSError:
            return 0
        return stat.f_bavail * stat.f_frsize - own_bytes

    def _in_memory(self) -> int:
        try:
            return memory.left(memory.read(self._memory_dir))
        except OSError:
            return 0
