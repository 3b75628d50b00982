"""What a training process writes down, so that it survives a SIGKILL, and how it is read: one line per boundary, and what the state was at the end."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Record:
    """One rank in one life."""

    start: int | None = None
    """The boundary that it was restored to."""
    moment: int | None = None
    """The boundary passed last when the moment came."""
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By boundary: loss, samples, checksum of the state."""
    end: dict[str, str] | None = None
    """Digests by name, if it got there."""


class Journal:
    def __init__(self, folder: Path, rank: int) -> None:
        self._fd = os.open(folder / f"rank-{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, **what: Any) -> None:
        os.write(self._fd, json.dumps(what).encode() + b"\n")


def read(folder: Path, rank: int) -> Record:
    found = Record()
    path = folder / f"rank-{rank}.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        entry = json.loads(line)
        if "step" in entry:
            found.steps[entry.pop("step")] = entry
        for name in ("start", "moment", "end"):
            if name in entry:
                setattr(found, name, entry[name])
    return found
