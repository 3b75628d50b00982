"""`holdfast.Checkpointer`: what a training script holds.

It owns the conversation with the agent and the order of things at a boundary; what the state consists of, how it lies in the image, and when the
gate stops the loop are other modules' business. Every public method is called by the thread that trains.
"""

import logging
import os
import platform
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

import holdfast_api
from holdfast import device
from holdfast.allowed import Allowed
from holdfast.conditions import exactness
from holdfast.ddp import settle_buckets
from holdfast.describe import Dataset, facts, fingerprint, flat, of_loaders
from holdfast.errors import LinkLost, RestoreError
from holdfast.midstep import MidStep
from holdfast.own_time import OwnTime
from holdfast.progress import Progress
from holdfast.restorer import Restorer
from holdfast.saver import Saver
from holdfast.state import Ended, Registry
from holdfast_api import names, ranks
from holdfast_rank import stacks
from holdfast_rank.agent_link import AgentLink
from holdfast_rank.doing import Doing
from holdfast_rank.gate import Gate

log = logging.getLogger("holdfast")
T = TypeVar("T")
SAY_SECONDS = 60


class Checkpointer:
    """Saves, restores and stops a training loop, together with the agent of its pod.

        ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)
        ckpt.restore()
        for batch in ckpt.batches(loader, epochs=3):
            ...
            ckpt.step(loss=loss)
        ckpt.finish()

    Register by keyword everything that training changes: modules, optimizers, schedulers, scalers, loaders, generators, anything with `state_dict`
    and `load_state_dict`, plain values in a `holdfast.Value`. Names must stay the same from run to run. Random generators of Python, NumPy and
    torch need not be registered.

    Without an agent (HOLDFAST_SOCKET is not set) every method works and nothing is saved.
    """

    def __init__(self, **parts: Any) -> None:
        """Raises TypeError or ValueError for what cannot be registered, UnsupportedState for what this release refuses by kind."""
        self._targets = parts
        self._registry = Registry(parts)
        self._progress = Progress()
        self._gate = Gate()
        self._run: dict[str, str] = {}
        self._config: dict[str, str] = {}
        self._run_id = ""
        self._every = 0
        self._restored = self._stepped = self._finished = False
        self._window_closed = False
        """An optimizer had stepped before the last boundary: gradients since then are no part of its state (I2)."""
        self._generators: dict[str, Any] | None = None
        self._settings: dict[str, Any] | None = None
        """The small state as it was restored, until a pass really begins; without what the script itself has set before it called `batches`."""
        self._asked = self._told_of_graph = False
        self._wanted = False
        """The next boundary is saved, whatever the interval: an integration knows that it had better be."""
        self._ended: Ended | None = None
        """The newest end of a pass."""
        self._stepped_at: float | None = None
        self._step_seconds = 0.0
        self._doing = Doing(self._say_doing, self._look)
        self._own = OwnTime()
        self._listens = False
        """The agent wants to know what the main thread does."""
        self._link, self._trouble = self._connect()
        self._saver: Saver | None = None
        self._mid: MidStep | None = None
        if self._link is not None:
            self._saver = Saver(
                self._link,
                self._registry,
                self._progress,
                self._run,
                awaited=lambda: self._gate.awaited,
                doing=self._doing,
            )
            self._mid = MidStep(
                self._registry, self._progress, self._gate, self._saver, self._link, self._run, self._own.enters
            )
            self._link.tick = self._tick
            self._link.start()

    @property
    def boundary(self) -> int:
        """Boundaries passed since the very first start: the number of `step` calls (I1)."""
        return self._progress.boundary

    @property
    def epoch(self) -> int:
        """Epochs of the loader that are over: the number of the one that runs, from 0."""
        self._read_positions()
        return self._progress.epoch

    def describe(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        run_id: str = "",
        dataset: str = "",
        data_files: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        """What people will want to know of every checkpoint of this run; call it before `restore`, if at all. `config`: the hyper-parameters.
        `run_id`: the run's name elsewhere. `dataset`: a fingerprint of the data, or `data_files`: files and directories of which one is computed;
        `restore` then refuses a checkpoint that was made with more files. Git commit, packages and machine are found out without being told.
        Raises ValueError, OSError."""
        if self._restored:
            raise RuntimeError("describe() is called before restore(): the first checkpoint should have it already")
        if config is not None:
            self._config = flat(config)
        self._run_id = run_id or self._run_id
        files = [data_files] if isinstance(data_files, str | os.PathLike) else list(data_files)
        if dataset and files:
            raise ValueError(
                "dataset is a fingerprint that you have, data_files are what one is computed from: give one of them"
            )
        if dataset:
            self._registry.dataset = Dataset(dataset)
        elif files:
            self._registry.dataset = fingerprint(files)

    def restore(self, *, allow: Collection[str] = ()) -> int:
        """Loads the newest checkpoint that validates and returns its boundary, 0 for a fresh start. Call it once, on every rank, after everything
        has been built (DistributedDataParallel included) and before the first batch. Blocks until the agent knows what to load.

        `allow`: "sample-order" accepts that the order of samples in the epoch at hand differs from the one the checkpoint was made with; "data-files",
        that there are fewer data files than then; "missing:NAME" that the checkpoint lacks that part, or key of a module, which then stays as the script
        made it; "extra:NAME" that it holds one which the program lacks, and which is left out. The error prints the names. Where the number
        of ranks has changed: "epoch-start" begins the epoch at hand again if the loader cannot say which samples are left, "open-window" leaves out the
        gradients of an accumulation window.
        Raises RestoreError; training must not go on then.
        """
        if self._restored:
            raise RuntimeError("restore() has been called already; it is called once, before the loop")
        self._registry.allowed = allowed = Allowed.of(allow)
        unsettled = settle_buckets(self._targets)
        self._run |= _versions() | {"exact": exactness(self._targets, unsettled)}
        if self._trouble:
            raise RestoreError(f"the agent cannot be reached, so it is unknown what to restore: {self._trouble}")
        if self._saver is not None and self._link is not None:
            self._saver.config = self._config
            # Not beside the restore: a loader may fork workers there, and one that inherits the pipes of `git` keeps its reader waiting.
            self._run |= self._facts()
            self._restore_from_agent(self._saver, self._link)
        if "sample-order" in allowed:
            for position in self._registry.positions.values():
                position.allow_other_order()
        self._gate.start(self.boundary)
        self._restored = True
        if self._saver is not None and not self._saver.possible:  # it broke after the state was loaded
            self._saver.lose("the connection to the agent broke")
        return self.boundary

    def batches(self, loader: Iterable[T], epochs: int | None = 1) -> Iterator[T]:
        """The batches of `epochs` epochs in all (None: without end), going on after the last batch that a boundary followed. In a loop of your own
        over epochs call it once per epoch with epochs=1. Leaving the loop early ends the epoch: the next call begins the next one. Raises
        RestoreError when the order of samples cannot be met again."""
        self._must_be_restored("batches()")
        if epochs is not None and epochs < 0:
            raise ValueError(f"epochs={epochs}; it must not be negative")
        if self._settings is not None and not self._asked:
            self._settings = self._registry.unchanged(self._settings)
        self._asked = True
        return self._own.timed(
            self._registry.position(loader).run(epochs, self._take_generators, self._note_end), self._doing
        )

    def step(self, **metrics: Any) -> None:
        """The boundary (I1): call it at the end of every iteration, after everything that changes state. Blocks while a capture is copied, while
        both slots are in use, and while a round holds the gate closed; usually it costs microseconds. `metrics` are numbers or tensors of one
        element; the newest are reported and stored with the checkpoint."""
        progress, registry = self._progress, self._registry
        self._must_be_restored("step()")
        progress.boundary += 1
        progress.updates += registry.updated or not registry.optimizers
        if not self._stepped:
            self._stepped = True
            self._warn_of_unread_loaders()
        if metrics:
            progress.note_metrics(metrics)
            progress.history.note(progress.boundary, progress.metrics)
        for position in registry.positions.values():
            position.at_boundary()
        if self._saver is not None:
            self._at_boundary(self._saver, metrics)
        self._window_closed, registry.updated = registry.updated, False
        registry.open_gradients.passed()

    def finish(self) -> None:
        """Training has ended: captures the last boundary if it is not saved yet and waits until the agent lets the process go. After it nothing may
        be stepped."""
        self._must_be_restored("finish()")
        if self._finished:
            return
        self._finished = True
        self._doing.now = "finish"
        if self._saver is not None and self._link is not None:
            self._say_goodbye(self._saver, self._link)
        # Workers that wait for another epoch end when nobody holds the loader; freed by the garbage collector they take seconds (torch).
        self._registry.positions.clear()
        self._targets = {}

    def _say_goodbye(self, saver: Saver, link: AgentLink) -> None:
        self._read_positions()
        voted = self._gate.finish()
        if self._mid is not None:
            self._mid.close()
        saver.beside.settle()
        if voted is not None:
            link.send(ranks.Vote(round=voted, boundary=self.boundary, done=True))
        if self.boundary > saver.newest:
            ended = self._ended if not self._registry.updated else None
            self._go_back_to_boundary()
            at_boundary = ended is not None and ended.small.progress.boundary == self.boundary
            saver.capture("final", ended=ended if at_boundary else None)
        link.flush_passed()
        if link.send(ranks.Done(boundary=self.boundary)):
            self._wait_for_leave(link)
        saver.close()
        link.close()

    def _note_end(self) -> None:
        """A pass over a loader has ended right after a boundary. What the script does from here on (schedulers, evaluation) it does again if it is
        started again and goes on from this boundary, for more epochs perhaps: it is no part of the boundary's state."""
        known = self._ended is not None and self._ended.small.progress.boundary == self.boundary
        if self._saver is None or not self._saver.possible or self._finished or self._registry.updated or known:
            return
        try:
            self._ended = self._registry.note_end(self._progress)
        except Exception as e:  # training must not end because of it: the state at `finish` is saved instead
            log.warning("holdfast: the state at the end of a pass cannot be noted: %s: %s", type(e).__name__, e)

    def _go_back_to_boundary(self) -> None:
        """What is captured at the end is the last boundary's state: a batch read since is read again, and its gradients are no state (I1, I2)."""
        if not self._registry.updated:
            self._registry.updated = self._window_closed
            self._registry.open_gradients.go_back()
            return
        # An update without a boundary: the parameters hold these batches already.
        for position in self._registry.positions.values():
            position.note_boundary()

    def _facts(self) -> dict[str, str]:
        """For commit records, which take rank 0's."""
        if os.environ.get("RANK", "0") != "0":
            return {}
        loaders = [p.loader for p in self._registry.positions.values()]
        return facts(self._registry.dataset or of_loaders(loaders), self._run_id)

    def _take_generators(self) -> dict[str, Any] | None:
        """The checkpoint's, for the first pass that really begins. What a loop over epochs has done to schedulers and the like after passes without a
        batch, in a life before which they had been stepped already, is undone."""
        taken, self._generators = self._generators, None
        settings, self._settings = self._settings, None
        skipped = any(p.skipped for p in self._registry.positions.values())
        if settings is not None and skipped and (changed := self._registry.put_settings_back(settings)):
            log.warning(
                "holdfast: %s had been changed after epochs that were over before the restart; put back to what the checkpoint says",
                ", ".join(changed),
            )
        return taken

    # At a boundary

    def _at_boundary(self, saver: Saver, metrics: dict[str, Any]) -> None:
        link, gate, mid, boundary = self._link, self._gate, self._mid, self.boundary
        if link is None or mid is None or not link.alive:
            return
        if device.capturing():
            self._refuse_capture()
            return
        self._read_positions()
        now = time.monotonic()
        if self._stepped_at is not None and not mid.held:
            self._step_seconds = now - self._stepped_at
        self._own.boundary(interrupted=mid.held)
        self._stepped_at, mid.held = now, False
        self._doing.passed()
        link.send_passed(self._passed, now)
        if not saver.planned and self._registry.planned:
            saver.plan()
        saver.open_slots()
        round = gate.arrive(boundary)
        mid.arrived()
        if round is not None:
            self._stop_for_round(saver, round, metrics)
        due = self._wanted or (bool(self._every) and boundary % self._every == 0) or saver.beside.owed
        self._wanted = False
        due = due and saver.newest < boundary
        beside = due and not saver.beside.owed and mid.goes_beside
        if due and not beside:
            self._capture(saver, mid, metrics)
        mid.passed(self._step_seconds)
        if beside and not mid.save_beside(metrics):
            self._capture(saver, mid, metrics)
        self._own.goes_on()

    def _capture(self, saver: Saver, mid: MidStep, metrics: dict[str, Any]) -> None:
        self._progress.note_metrics(metrics, now=True)
        with self._doing.during("save"):
            saver.capture("periodic")
        mid.audit_save()

    def _refuse_capture(self) -> None:
        """Nothing that is given to a device now is executed now, so there is no state to copy."""
        if not self._told_of_graph:
            self._told_of_graph = True
            log.error(
                "holdfast: step() was called while a CUDA graph is captured: NOTHING IS SAVED THERE. Call it outside of torch.cuda.graph, after each replay"
            )

    def _stop_for_round(self, saver: Saver, round: int | None, metrics: dict[str, Any]) -> None:
        """The boundary is the target of a round (E2): captures it, then stands still until the gate opens."""
        self._progress.note_metrics(metrics, now=True)
        while round is not None:
            with self._doing.during("save"):
                saver.capture("round", round)
            round = self._gate.hold(round)
        self._stepped_at = time.monotonic()  # standing still is no step time

    def _passed(self) -> ranks.Passed:
        """Any thread: reads whole values only."""
        own = self._own
        return ranks.Passed(
            self.boundary,
            self._step_seconds,
            self._progress.epoch,
            self._progress.metrics.copy(),
            own.busy_seconds,
            own.update_seconds,
            own.data_seconds,
        )

    # Helper thread

    def _tick(self) -> None:
        if self._mid is not None:
            self._mid.tick()
        if self._listens:
            self._doing.tick()

    def _look(self, what: str) -> str:
        """What the main thread does not say: it waits at the gate, or the script evaluates."""
        if self._gate.standing:
            return "gate"
        return "evaluation" if what in ("step", "data") and self._mid is not None and self._mid.evaluating else what

    def _say_doing(self, what: str) -> None:
        if self._link is not None:
            self._link.flush_passed()  # first: a boundary ends what was said before it
            self._link.send(ranks.Doing(what))

    def _warn_of_unread_loaders(self) -> None:
        for name, position in self._registry.positions.items():
            if isinstance(position.loader, DataLoader) and not position.used and name not in self._registry.parts:
                log.warning(
                    "holdfast: the position in %s is NOT SAVED, because it is not read through ckpt.batches(%s, epochs=...)",
                    name,
                    name,
                )

    def _read_positions(self) -> None:
        used = [p for p in self._registry.positions.values() if p.used]
        if used:
            self._progress.epoch, self._progress.samples = used[0].epoch, sum(p.samples for p in used)

    # The agent

    def _restore_from_agent(self, saver: Saver, link: AgentLink) -> None:
        restorer = Restorer(link, self._registry, self._progress)
        welcome, self._generators = restorer.run()
        if self._generators is not None:
            self._settings = self._registry.settings()
        self._every, saver.chunk_bytes = welcome.every_steps, welcome.chunk_bytes
        self._listens = welcome.listens
        if self.boundary:
            saver.newest = self.boundary
            saver.plan()

    def _connect(self) -> tuple[AgentLink | None, str]:
        path = os.environ.get(names.ENV_SOCKET)
        if not path:
            if os.environ.get("RANK", "0") == "0":
                log.warning("holdfast: no agent (%s is not set): training runs, NOTHING IS SAVED", names.ENV_SOCKET)
            return None, ""
        try:
            link = AgentLink(path, self._take, self._lose)
        except OSError as e:
            return None, f"{path}: {e}"
        rank = int(os.environ.get("RANK", "0"))
        stack_path = stacks.path_beside(path, rank)
        stack_signal = stacks.register(stack_path)
        link.send(
            ranks.Hello(
                rank=rank,
                local_rank=int(os.environ.get("LOCAL_RANK", "0")),
                world_size=int(os.environ.get("WORLD_SIZE", "1")),
                attempt=int(os.environ.get(names.ENV_ATTEMPT, "1")),
                pid=os.getpid(),
                versions=_versions(),
                stack_signal=stack_signal,
                stack_path=stack_path if stack_signal else "",
            )
        )
        return link, ""

    def _take(self, message: ranks.FromAgent) -> bool:
        """Helper thread. Gate orders are answered at once (E2)."""
        if isinstance(message, ranks.CloseGate):
            live = self._mid is not None and self._mid.ready()
            answer = self._gate.close(message.round, message.lease_seconds, live=live)
            if answer is not None and self._link is not None:
                self._link.flush_passed()  # a vote for the boundary passed last: nobody has to wait for the end of a step
                self._link.send(ranks.Vote(round=message.round, boundary=answer[0], done=answer[1]))
        elif isinstance(message, ranks.ReleaseGate):
            self._gate.release(message.round, message.target)
        elif isinstance(message, ranks.OpenGate):
            self._gate.open(message.round)
        elif isinstance(message, ranks.SlotFree):
            if self._saver is not None:
                self._saver.take(message)
        else:
            return False
        return True

    def _lose(self, reason: str) -> None:
        """Any thread: the connection broke. While restoring, `restore` raises; later, training goes on unsaved."""
        if self._saver is not None and self._restored and not self._finished:
            self._saver.lose(f"the connection to the agent broke: {reason}")
        elif self._saver is not None:
            self._saver.abandon()
        self._gate.lose()

    def _wait_for_leave(self, link: AgentLink) -> None:
        while True:
            try:
                link.expect(ranks.FinishAllowed, timeout=SAY_SECONDS)
                return
            except TimeoutError:
                log.warning("holdfast: training has ended; waiting for the agent to make the last checkpoint durable")
            except LinkLost as e:
                log.error("holdfast: the agent is gone before it said that the last checkpoint is durable: %s", e)
                return

    def _must_be_restored(self, what: str) -> None:
        if not self._restored:
            raise RuntimeError(
                f"call restore() before {what}: otherwise training would start from zero beside its own checkpoints"
            )
        if self._finished and what != "finish()":
            raise RuntimeError(f"{what} after finish()")


def _versions() -> dict[str, str]:
    numpy = sys.modules.get("numpy")
    # Asking for the name starts CUDA on the current device, which the script may not have chosen yet.
    device = torch.cuda.get_device_name() if torch.cuda.is_initialized() else platform.machine()
    return {
        "holdfast": holdfast_api.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "numpy": str(getattr(numpy, "__version__", "")),
        "device": device,
    }
