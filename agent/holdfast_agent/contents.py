"""What this process has itself verified in its slots during one attempt, so that no byte is hashed twice and nothing is fetched that is there (C3).

Content addresses make two checkpoints of one lineage mostly the same: what was fetched for one counts for the other where the digest at the same place is
the same. Good only while nobody else writes into the slots: until the ranks get them.
"""

import threading


class Contents:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[int, int], dict[int, tuple[str, int]]] = {}

    def holds(self, rank: int, slot: int, offset: int, digest: str, length: int) -> bool:
        with self._lock:
            return self._known.get((rank, slot), {}).get(offset) == (digest, length)

    def about_to_write(self, rank: int, slot: int, offset: int, length: int) -> None:
        """Whatever was known about these bytes is void, also what began before them and reaches into them."""
        with self._lock:
            known = self._known.get((rank, slot), {})
            for at in [a for a, (_, n) in known.items() if a < offset + length and offset < a + n]:
                del known[at]

    def verified(self, rank: int, slot: int, offset: int, digest: str, length: int) -> None:
        with self._lock:
            self._known.setdefault((rank, slot), {})[offset] = (digest, length)

    def slot_of(self, rank: int) -> int | None:
        """The rank's slot of which most is known."""
        with self._lock:
            sizes = {slot: sum(n for _, n in known.values()) for (r, slot), known in self._known.items() if r == rank}
        return max(sizes, key=lambda s: sizes[s]) if any(sizes.values()) else None
