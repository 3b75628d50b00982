"""The newest attempt that this pod has joined, on the memory volume (A2): after joining n+1, everything of n is refused, also after a restart in place."""

import contextlib
from pathlib import Path

from holdfast_api import codec
from holdfast_api.errors import ContractError
from holdfast_api.messages import AttemptOrder

FILE = "membership.json"


def remember(memory_dir: Path, order: AttemptOrder) -> None:
    """Atomic; called before the ranks of the attempt are started."""
    memory_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = memory_dir / (FILE + ".tmp")
    temporary.write_bytes(codec.to_json(order))
    temporary.replace(memory_dir / FILE)


def newest(memory_dir: Path, job_uid: str) -> int:
    """The attempt joined last, 0 if none. A file that cannot be read counts as none: the operator's number and the claim still fence (A4)."""
    with contextlib.suppress(OSError, ContractError):
        order = codec.from_json(AttemptOrder, (memory_dir / FILE).read_bytes())
        if order.job_uid == job_uid:
            return order.attempt
    return 0
