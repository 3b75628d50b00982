"""A world from its first life to its end, under real agents that are started, taken away and started again, compared with a run that no agent knew."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from holdfast_agent import laptop
from holdfast_api.messages import Exit
from holdfast_api.names import EXIT_CODES
from tests.matrix import compare, journal, stub
from tests.matrix.journal import Record
from tests.matrix.worlds import BATCHES, Moment, World

TOP = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = float(os.environ.get("HOLDFAST_LIFE_SECONDS", "180"))
"""After which a life hangs: its stacks are printed. A life takes two seconds on a machine that has nothing else to do."""
STACKS_SECONDS = 3.0
STACKS_SIGNAL = signal.SIGUSR2

ENDS = {
    "notice": {Exit.PREEMPTED_SEALED, Exit.PREEMPTED_NOTHING_NEW, Exit.FINISHED},
    "killed trainer": {Exit.TRAINER_FAILED, Exit.FINISHED},
}
"""How an agent may end. It is finished where the moment came too late. One that is killed has no say."""


class Hangs(AssertionError):
    """A life took too long; the message holds the stacks of its processes."""


@dataclass
class Outcome:
    world: World
    wrong: list[str] = field(default_factory=list)
    """Empty: it was as if nothing had happened."""
    moments: list[Moment] = field(default_factory=list)
    """Those that came: the script may have ended before one."""
    classes: Counter[str] = field(default_factory=Counter)
    """What the saves of an evacuation say of their loop."""
    seconds: float = 0.0


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The socket of a server of training processes."""
    path = str(Path(tempfile.mkdtemp(prefix="hf-", dir=folder if len(str(folder)) < 60 else None)) / "s")
    log = (folder / "server.log").open("ab")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")} | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.matrix.server", path],
        cwd=TOP,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=log,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", (
            f"the server did not come up: {(folder / 'server.log').read_text()[-3000:]}"
        )
        yield path
    finally:
        process.kill()
        process.wait()
        log.close()


def run(world: World, folder: Path, server: str) -> Outcome:
    """Raises nothing: what goes wrong is in the outcome."""
    outcome, began = Outcome(world), time.monotonic()
    folder.mkdir(parents=True)
    try:
        _run(world, folder, server, outcome)
    except Hangs as e:
        outcome.wrong.append(str(e))
    except Exception as e:
        outcome.wrong.append(f"{type(e).__name__}: {e}")
    finally:
        _leave_nothing(folder / "job", outcome)
    if outcome.wrong:
        outcome.wrong.append(f"the newest agent's last words: {last_words(folder)}")
    outcome.seconds = time.monotonic() - began
    return outcome


def _run(world: World, folder: Path, server: str, outcome: Outcome) -> None:
    want = without_agent(world, folder / "whole", server)
    outcome.wrong += compare.lost_or_repeated(want, world.samples, world.epochs)
    assert BATCHES * world.epochs >= len(want[0].steps) == world.steps, f"the whole run took {len(want[0].steps)} steps"
    lives: list[list[Record]] = []
    told: list[bool] = []
    for number, moment in enumerate([*world.moments, None]):
        here = folder / f"life-{number}"
        fresh = not any(_commits(folder / "job"))  # the script begins again as it began
        code = one_life(
            world, here, folder / "job", server, moment, seed=world.seed if fresh else 1000 * world.number + number
        )
        ranks = [journal.read(here, r) for r in range(world.ranks)]
        lives.append(ranks)
        came = any(r.moment is not None for r in ranks)
        told.append(came and moment is not None and moment.how == "notice")
        if came and moment is not None:
            outcome.moments.append(moment)
        allowed = ENDS.get(moment.how) if came and moment is not None else {Exit.FINISHED}
        if code == -signal.SIGTERM and all(r.start is None for r in ranks):
            continue  # it came before the agent hears signals: nothing had begun, and nothing is lost
        if allowed is not None and code not in {EXIT_CODES[e] for e in allowed}:
            outcome.wrong.append(f"life {number} ({moment or 'the last one'}): the agent ended with {code}")
            return
        if code == EXIT_CODES[Exit.FINISHED] and all(r.end is not None for r in ranks):
            break
    outcome.wrong += compare.gone_back(lives, told)
    outcome.wrong += compare.differences(want, lives, world.steps)
    outcome.classes = _classes(folder / "job")


def without_agent(world: World, folder: Path, server: str) -> list[Record]:
    """An uninterrupted run that nobody saves."""
    _prepare(world, folder, None, world.seed)
    with (folder / "output").open("ab") as log:
        files = (log.fileno(), log.fileno())
        asked = [
            stub.ask(server, [str(folder)], _environment() | {"RANK": str(r), "WORLD_SIZE": str(world.ranks)}, 0, files)
            for r in range(world.ranks)
        ]
    try:
        ended = [_status(s, folder) for s in asked]
    finally:
        for s in asked:
            s.close()
    assert ended == [0] * world.ranks, f"the whole run ended with {ended}: {(folder / 'output').read_text()[-3000:]}"
    return [journal.read(folder, r) for r in range(world.ranks)]


def _status(asked: socket.socket, folder: Path) -> int | None:
    asked.settimeout(LIMIT_SECONDS)
    try:
        return stub.status(asked)
    except TimeoutError:
        raise Hangs(
            f"the whole run, without any agent, took more than {LIMIT_SECONDS:.0f} s\n{stacks(folder)}"
        ) from None


def one_life(world: World, folder: Path, job: Path, server: str, moment: Moment | None, *, seed: int) -> int:
    """Exit status of the agent. No process of it is left."""
    _prepare(world, folder, moment, seed)
    options = ["--processes", str(world.ranks), "--every-steps", str(world.every_steps), "--chunk-mib", "1"]
    ranks = [sys.executable, "-I", "-S", stub.__file__, server, str(folder)]
    with (folder / "agent.log").open("ab") as log:
        agent = subprocess.Popen(
            [sys.executable, "-m", "holdfast_agent", "run", "--local", str(job), *options, "--", *ranks],
            env=_environment() | {"PYTHONFAULTHANDLER": "1"}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        code = agent.wait(LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        said = stacks(folder)
        agent.send_signal(signal.SIGABRT)  # faulthandler writes its stacks into its log
        raise Hangs(
            f"{folder.name} ({moment or 'the last one'}) took more than {LIMIT_SECONDS:.0f} s\n{said}\n{_agent_stacks(agent, folder)}"
        ) from None
    finally:
        agent.kill()
        agent.wait()
        _until_gone(folder)
    return code


def _prepare(world: World, folder: Path, moment: Moment | None, seed: int) -> None:
    folder.mkdir(parents=True)
    told = {"world": asdict(world), "moment": asdict(moment) if moment else None, "seed": seed}
    (folder / "life.json").write_text(json.dumps(told))


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("HOLDFAST_", "RANK", "WORLD_SIZE"))} | {
        "OMP_NUM_THREADS": "1"
    }


def _pids(folder: Path) -> list[int]:
    return [int(p.read_text()) for p in folder.glob("rank-*.pid") if p.read_text()]


def _until_gone(folder: Path) -> None:
    """The server kills training processes, their workers too, as soon as it hears that their agent is dead: each of them holds a lock."""
    limit = time.monotonic() + LIMIT_SECONDS
    for path in folder.glob("rank-*.pid"):
        with path.open() as held:
            while not _free(held):
                assert time.monotonic() < limit, f"training process {path.read_text()} outlives its agent"
                time.sleep(0.002)


def _free(held: IO[str]) -> bool:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def stacks(folder: Path) -> str:
    """Of all threads of the training processes of a life."""
    for pid in _pids(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, STACKS_SIGNAL)
    time.sleep(STACKS_SECONDS)
    return "\n".join(f"-- {p.name}\n{p.read_text()}" for p in sorted(folder.glob("rank-*.stacks")))


def _agent_stacks(agent: subprocess.Popen[bytes], folder: Path) -> str:
    with suppress(subprocess.TimeoutExpired):
        agent.wait(STACKS_SECONDS)
    return f"-- agent\n{(folder / 'agent.log').read_text(errors='replace')[-12000:]}"


def last_words(folder: Path) -> str:
    logs = sorted(folder.glob("life-*/agent.log"), key=lambda p: int(p.parent.name.split("-")[1]))
    return logs[-1].read_text(errors="replace")[-2500:] if logs else "none has run"


def _commits(job: Path) -> Iterator[Path]:
    return job.glob("local/run-*/checkpoints/*/*/commit.json")


def _classes(job: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in _commits(job):
        record: dict[str, Any] = json.loads(path.read_text())
        found[str(record.get("run", {}).get("loop", "?"))] += 1
    return found


def _leave_nothing(job: Path, outcome: Outcome) -> None:
    """An agent that ends by itself removes its shared memory; the last one of a world has."""
    if not (job / ".holdfast/job.json").exists():
        return
    memory = laptop._memory(laptop.take(job))
    if memory.exists():
        if not outcome.wrong:
            outcome.wrong.append(f"the last agent has left {sorted(p.name for p in memory.iterdir())} in shared memory")
        shutil.rmtree(memory, ignore_errors=True)
