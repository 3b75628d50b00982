"""A simulated rank: the agent tests' training script (its state is a few bytes that name its boundary), which also notes when it is told what.

One line for each, in the file that BENCHMARK_TIMES names: `what rank round boundary monotonic-seconds`. All processes are on one machine, so all
clocks are one.
"""

import os
import time

from holdfast_api import ranks
from tests.agent import fake_trainer

_TIMES = os.open(os.environ["BENCHMARK_TIMES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


class Rank(fake_trainer.FakeTrainer):
    def take(self, m: object) -> None:
        at = time.monotonic()
        if isinstance(m, ranks.CloseGate) and m.round > self.round:
            super().take(m)
            self.note("closed", m.round, self.boundary, time.monotonic())  # the vote is sent
        elif isinstance(m, ranks.ReleaseGate):
            self.note("told", m.round, m.target, at)
            super().take(m)
        else:
            super().take(m)

    def note(self, what: str, number: int, boundary: int, at: float) -> None:
        os.write(_TIMES, f"{what} {self.rank} {number} {boundary} {at:.6f}\n".encode())


if __name__ == "__main__":
    fake_trainer.FakeTrainer = Rank
    fake_trainer.main()
