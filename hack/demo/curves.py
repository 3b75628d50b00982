"""What a training run printed, read back and compared with another run's. Pure.

`train.py` prints `step <n> loss <float.hex()> ...` for every step, and `digest <64 hex>` of weights and optimizer state at the end. Hex floats are
exact: equal text is equal bits.
"""

import re
from dataclasses import dataclass

_STEP = re.compile(r"^(?:\[rank0\] |\[0\] )?step (\d+) loss (\S+)", re.MULTILINE)
_DIGEST = re.compile(r"^(?:\[rank0\] |\[0\] )?digest ([0-9a-f]{64})", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Run:
    """Losses by step (hex), the digest of the final state, and steps that were printed twice with different losses."""

    losses: dict[int, str]
    digest: str
    contradictions: tuple[int, ...] = ()

    def loss(self, step: int) -> float:
        return float.fromhex(self.losses[step])


def read_run(*logs: str) -> Run:
    """Reads the logs of one job, oldest first. A step that was done again after a resume must have given the same loss again."""
    losses: dict[int, str] = {}
    contradictions = []
    digest = ""
    for log in logs:
        for step, loss in _STEP.findall(log):
            if losses.setdefault(int(step), loss) != loss:
                contradictions.append(int(step))
                losses[int(step)] = loss
        for found in _DIGEST.findall(log):
            digest = found
    return Run(losses, digest, tuple(sorted(set(contradictions))))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side."""

    steps: int
    missing: tuple[int, ...]
    """Steps that only one of the runs has."""
    different: tuple[int, ...]
    """Steps whose losses differ in any bit."""
    digests_equal: bool

    @property
    def exact(self) -> bool:
        return self.steps > 0 and not self.missing and not self.different and self.digests_equal


def compare(ours: Run, reference: Run) -> Comparison:
    """Bitwise. An empty run or a missing digest is never equal to anything."""
    both = ours.losses.keys() & reference.losses.keys()
    return Comparison(
        steps=len(both),
        missing=tuple(sorted(ours.losses.keys() ^ reference.losses.keys())),
        different=tuple(sorted(s for s in both if ours.losses[s] != reference.losses[s]) + sorted(ours.contradictions)),
        digests_equal=bool(ours.digest) and ours.digest == reference.digest,
    )
