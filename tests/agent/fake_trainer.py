"""A training script without torch, for tests of the agent: speaks the rank's half of holdfast_api.ranks, over real sockets and real shared memory.

Named fake because the state is only bytes: 8 KiB that are a function of (rank, boundary), so that any mixture of two boundaries is seen. It behaves as the
library does: votes from a helper thread, captures at boundaries only, waits for a free slot, stands still at a round's target.

    fake_trainer.py STEPS [--step-seconds S] [--log FILE] [--crash-at N] [--exit-code N] [--fail-load N] [--finish-seconds S] [--silent] [--copies]
                    [--together FILE]
"""

import argparse
import hashlib
import mmap
import os
import socket
import sys
import threading
import time

from holdfast_api import names, ranks
from holdfast_api.manifest import MetricPoint, TensorEntry
from holdfast_rank import stacks

STATE_BYTES = 300_000
STABLE_BYTES = 200_000
"""The first part never changes, as frozen layers do not."""


def state(rank: int, boundary: int) -> bytes:
    def stream(seed: str, count: int) -> bytes:
        return hashlib.shake_256(seed.encode()).digest(count)

    return stream(f"frozen {rank}", STABLE_BYTES) + stream(f"{rank}/{boundary}", STATE_BYTES - STABLE_BYTES)


class FakeTrainer:
    def __init__(self, options):
        self.o = options
        self.rank = int(os.environ["RANK"])
        self.holder = 0 if options.copies else self.rank
        """Whose state it has."""
        self.world = int(os.environ["WORLD_SIZE"])
        self.attempt = int(os.environ[names.ENV_ATTEMPT])
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(os.environ[names.ENV_SOCKET])
        self.changed = threading.Condition()
        self.mail = []
        self.boundary = 0
        self.held = set()
        self.holds = {}
        self.slots = None
        self.plan_sent = False
        self.closed = self.captured = self.done = self.at_boundary = False
        self.round, self.target, self.lease = 0, None, 0.0
        self.every = 0
        threading.Thread(target=self.read, daemon=True).start()

    def send(self, message):
        self.socket.sendall(ranks.to_line(message))

    def read(self):
        with self.socket.makefile("rb") as lines:
            for line in lines:
                with self.changed:
                    self.take(ranks.from_line(line))
                    self.changed.notify_all()
        os._exit(99)  # the agent is gone

    def take(self, m):
        if isinstance(m, ranks.CloseGate):
            if m.round > self.round:
                self.closed, self.captured, self.round, self.target = True, False, m.round, None
            self.lease = time.monotonic() + m.lease_seconds
            vote = self.boundary if self.at_boundary or self.done else self.boundary + 1
            self.send(ranks.Vote(m.round, vote, self.done))
        elif isinstance(m, ranks.ReleaseGate) and m.round == self.round:
            self.target = m.target
        elif isinstance(m, ranks.OpenGate) and m.round >= self.round:
            self.closed = False
        elif isinstance(m, ranks.SlotFree):
            self.held.discard(m.slot)
        else:
            self.mail.append(m)

    def expect(self, *types):
        with self.changed:
            while True:
                for m in self.mail:
                    if isinstance(m, (*types, ranks.Refused)):
                        self.mail.remove(m)
                        if isinstance(m, ranks.Refused):
                            print("refused:", m.message, file=sys.stderr)
                            sys.exit(3)
                        return m
                self.changed.wait()

    def run(self):
        path = stacks.path_beside(os.environ[names.ENV_SOCKET], self.rank)
        number = stacks.register(path)
        self.send(
            ranks.Hello(
                self.rank, int(os.environ["LOCAL_RANK"]), self.world, self.attempt, os.getpid(), {}, number, path
            )
        )
        self.every = self.expect(ranks.Welcome).every_steps
        self.restore()
        if self.boundary:
            self.plan()
        while self.boundary < self.o.steps:
            time.sleep(self.o.step_seconds)
            self.step()
            if self.boundary == self.o.hang_at and self.rank == self.o.hang_rank and self.attempt == 1:
                self.hang()
            if self.boundary == self.o.crash_at and (not self.o.crash_once or self.attempt == 1):
                print("Traceback: something broke at", self.boundary, file=sys.stderr, flush=True)
                os._exit(self.o.exit_code)
        time.sleep(self.o.finish_seconds)
        self.finish()

    def hang(self):
        """Stands still where a round cannot catch it: it never reaches its next boundary."""
        self.log(f"hangs after {self.boundary}")
        if self.o.hang_doing:
            self.send(ranks.Doing(self.o.hang_doing))
        time.sleep(self.o.hang_seconds)

    def restore(self):
        self.send(ranks.RestoreWanted())
        failures = self.o.fail_load or int(self.o.fail_load_rank == self.rank)
        if self.o.fail_load_rank >= 0 and failures:
            time.sleep(0.5)  # the other rank is done by then
        while True:
            m = self.expect(ranks.RestoreReady, ranks.StartFresh)
            if isinstance(m, ranks.StartFresh):
                self.log("fresh")
                return
            with open(m.path, "rb") as file:
                content = file.read(m.image_bytes)
            if failures > 0:
                failures -= 1
                self.log(f"refused {m.boundary}")
                self.send(ranks.LoadFailed("a tensor is not finite", of_checkpoint=True))
                continue
            if content != state(self.holder, m.boundary):
                self.log(f"TORN {m.boundary}")
                sys.exit(66)
            self.boundary = m.boundary
            self.log(f"restored {m.boundary}")
            self.send(ranks.Loaded(m.boundary))
            return

    def plan(self):
        self.plan_sent = True
        group = f"0-{self.world - 1}" if self.o.copies and self.world > 1 else ""
        tensors = (TensorEntry("state", "uint8", (STATE_BYTES,), 0, STATE_BYTES, group=group),)
        self.send(ranks.Plan(1, STATE_BYTES, tensors))

    def meet(self):
        """A collective in the middle of each step: nobody comes out of it before all ranks are in it. Its window is the whole step, as ZeRO-1's holds one."""
        path = f"{self.o.together}-{self.attempt}"
        with open(path, "ab") as file:
            file.truncate(8 * self.world)
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8 * self.world) as shared:
            shared[8 * self.rank : 8 * self.rank + 8] = (self.boundary + 1).to_bytes(8, "big")
            while any(int.from_bytes(shared[8 * r : 8 * r + 8], "big") < self.boundary + 1 for r in range(self.world)):
                time.sleep(0.001)

    def step(self):
        if self.o.together:
            self.meet()
        with self.changed:
            self.boundary += 1
            self.at_boundary = True
        self.send(ranks.Passed(self.boundary, self.o.step_seconds, 0, {"loss": 1.0 / self.boundary}))
        if not self.plan_sent:
            self.plan()
        while (number := self.settle()) is not None:
            self.capture("round", number)
            with self.changed:
                self.captured = self.round == number
        if self.every and self.boundary % self.every == 0 and self.boundary not in self.holds.values():
            self.capture("periodic", 0)

    def settle(self):
        """The round to capture for, or None to go on."""
        with self.changed:
            while self.closed:
                if not self.captured:
                    if time.monotonic() >= self.lease:
                        self.closed = False
                        break
                    if self.target == self.boundary:
                        return self.round
                    if self.target is not None:
                        break
                self.changed.wait(0.2)
            self.at_boundary = False
            return None

    def capture(self, kind, number):
        if self.slots is None:
            self.slots = self.expect(ranks.Slots)
        again = [s for s, b in self.holds.items() if b == self.boundary]
        with self.changed:
            while not again and len(self.held) == len(self.slots.paths):
                self.changed.wait()
            free = [s for s in range(len(self.slots.paths)) if s not in self.held]
            slot = again[0] if again else min(free, key=lambda s: self.holds.get(s, 0))
        if not again:
            self.holds.pop(slot, None)
            self.write(self.slots.paths[slot])
        self.holds[slot] = self.boundary
        self.held.add(slot)
        self.send(
            ranks.CapturedSlot(
                slot,
                1,
                self.boundary,
                kind,
                number,
                0.001,
                self.boundary,
                0,
                self.boundary * 4,
                {"loss": 1.0 / self.boundary},
                {"run": "r1"},
                {"lr": "0.1"},
                (MetricPoint(self.boundary, {"loss": 1.0 / self.boundary}),),
            )
        )

    def write(self, path):
        """In pieces with pauses, so that a kill finds it half done."""
        content = state(self.holder, self.boundary)
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), STATE_BYTES) as memory:
            for at in range(0, STATE_BYTES, 50_000):
                memory[at : at + 50_000] = content[at : at + 50_000]
                time.sleep(0.0005)

    def finish(self):
        with self.changed:
            self.done = True
            voted = self.round if self.closed else None
        if voted is not None:
            self.send(ranks.Vote(voted, self.boundary, True))
        if self.boundary not in self.holds.values() and self.o.no_final_rank != self.rank:
            self.capture("final", 0)
        self.send(ranks.Done(self.boundary))
        self.expect(ranks.FinishAllowed)
        self.log(f"finished {self.boundary}")

    def log(self, text):
        if self.o.log:
            with open(self.o.log, "a") as file:
                file.write(f"{self.attempt} {self.rank} {text}\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", type=int)
    parser.add_argument("--step-seconds", type=float, default=0.02)
    parser.add_argument("--log", default="")
    parser.add_argument("--crash-at", type=int, default=-1)
    parser.add_argument("--exit-code", type=int, default=5)
    parser.add_argument("--fail-load", type=int, default=0)
    parser.add_argument("--fail-load-rank", type=int, default=-1)
    parser.add_argument("--environment", default="")
    parser.add_argument("--finish-seconds", type=float, default=0.0, help="between the last step and finish()")
    parser.add_argument("--no-final-rank", type=int, default=-1, help="ends without capturing its last boundary")
    parser.add_argument(
        "--copies", action="store_true", help="all ranks hold one state, as under DistributedDataParallel"
    )
    parser.add_argument("--together", default="", help="a file in which all ranks meet in every step")
    parser.add_argument("--crash-once", action="store_true", help="in the first attempt only")
    parser.add_argument("--hang-at", type=int, default=-1, help="in the first attempt, after this boundary")
    parser.add_argument("--hang-rank", type=int, default=0)
    parser.add_argument("--hang-doing", default="", help="what it says that it does")
    parser.add_argument("--hang-seconds", type=float, default=10000.0)
    parser.add_argument("--silent", action="store_true", help="never speaks to the agent")
    options = parser.parse_args()
    if options.environment:
        with open(options.environment, "w") as file:
            file.write("\n".join(f"{k}={v}" for k, v in os.environ.items()))
    if options.silent:
        time.sleep(options.step_seconds * options.steps)
        return
    FakeTrainer(options).run()


if __name__ == "__main__":
    main()
