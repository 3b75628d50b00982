"""A rank of the agent's whose state is files: each whole checkpoint of the script's is a boundary, numbered 1, 2, … in the order in which they are taken.

The reader thread answers for the gate at once (holdfast_rank.gate); the main thread looks at the directory, copies, and waits where a round says so; a
helper hands a boundary that lies in a slot already over to a round that wants it.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast_api import __version__, names, ranks
from holdfast_directory import packing, processes
from holdfast_directory.finding import (
    OWN,
    POINTERS,
    Candidate,
    Rule,
    Taken,
    Watched,
    is_named,
    is_newer,
    look,
    names_none,
    passed_over,
)
from holdfast_directory.restoring import restore
from holdfast_directory.script import Script
from holdfast_directory.slots import Slots
from holdfast_directory.survey import CannotKeep, pointer, survey
from holdfast_rank.agent_link import AgentLink
from holdfast_rank.errors import LinkLost
from holdfast_rank.gate import Gate, LoopClass

log = logging.getLogger("holdfast")
LOOK_SECONDS, SOON_SECONDS = 1.0, 0.2
AFTER_FAILURE_SECONDS = 60.0
"""A script has failed; what it wrote before is made durable first."""
LAST_TRIES = 3
"""Nothing makes up for the last checkpoint: a copy that fails is made again."""
HELPERS_SECONDS = 30.0
HELPERS_AT_A_NOTICE_SECONDS = 2.0
"""So long processes that the script has started are waited for when it has ended well."""
STOPPED_FOR_A_NOTICE = 75
"""EX_TEMPFAIL: the script ended well, because it was told to, and has not finished."""


@dataclass(frozen=True, slots=True)
class Options:
    root: Path
    rule: Rule
    answer_seconds: float
    """How long the script takes to write a checkpoint when it is told to: what an evacuation reckons with."""


class DirectoryRank:
    """`run` is the whole life."""

    def __init__(self, options: Options, script: Script) -> None:
        self._o, self._script = options, script
        self._gate = Gate(LoopClass.MID_STEP)
        self._on_request = False
        """The script has been told to write a checkpoint: the next boundary is worth waiting for."""
        self._slots: Slots | None = None
        self._plan: tuple[Any, ...] = ()
        self._plans = 0
        self._boundary = 0
        self._taken = Taken()
        self._watched = Watched()
        self._pause = LOOK_SECONDS
        self._taken_at = time.monotonic()
        self._said: dict[str, str] = {}
        self._impossible = ""
        self._lacking: dict[str, str] = {}
        """What is newer than what was taken and cannot be saved, and why."""

    def run(self) -> int:
        """The exit status of this process. Raises LinkLost, CannotStart."""
        self._link = AgentLink(os.environ[names.ENV_SOCKET], self._take, self._lost)
        self._link.start()
        rank, local, world = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        versions = {"holdfast": __version__, "mode": "directory"}
        self._link.send(ranks.Hello(rank, local, world, int(os.environ[names.ENV_ATTEMPT]), os.getpid(), versions))
        self._chunk_bytes = self._link.expect(ranks.Welcome).chunk_bytes
        self._script.end_strays()
        self._boundary, self._taken = restore(self._link, self._o.root, self._o.rule)
        self._gate.start(self._boundary)
        if self._boundary:
            self._gate.rest(self._boundary)
        self._watched = Watched.leftovers(self._candidates())
        threading.Thread(target=self._hand_over_to_rounds, name="holdfast-rounds", daemon=True).start()
        self._script.start(self._o.root / self._taken.name if self._taken.name else None)
        # Nobody sees a step of the script's: to have been started counts as training. The next boundary is as far as an answer to a signal.
        self._link.send(ranks.Passed(self._boundary, self._o.answer_seconds, 0, self._metrics()))
        while (code := self._script.poll()) is None:
            self._look()
            time.sleep(self._pause)
        return self._ended(code)

    # ---- the reader

    def _take(self, message: Any) -> bool:
        match message:
            case ranks.CloseGate():
                if message.evacuating:
                    self._script.tell(message.seconds)
                    self._on_request = self._script.asked
                answer = self._gate.close(message.round, message.lease_seconds, live=not self._on_request)
                if answer is not None:
                    self._link.send(ranks.Vote(message.round, *answer))
            case ranks.ReleaseGate():
                self._gate.release(message.round, message.target)
            case ranks.OpenGate():
                self._gate.open(message.round)
                self._script.untell()
                self._on_request = False
            case ranks.SlotFree():
                if self._slots is not None:
                    self._slots.free(message.slot)
            case _:
                return False
        return True

    def _lost(self, reason: str) -> None:
        log.error("holdfast: the agent is gone (%s): NOTHING IS SAVED FROM NOW ON", reason)
        self._impossible = reason
        self._gate.lose()
        if self._slots is not None:
            self._slots.lose()

    # ---- the helper

    def _hand_over_to_rounds(self) -> None:
        """What a round wants lies in a slot, or in the directory unchanged."""
        while (wanted := self._gate.await_copy()) is not None:
            number, boundary = wanted
            if not self._gate.begin_copy(number, boundary):
                continue
            clean = False
            try:
                clean = self._hand_over(boundary, number)
                if not clean:
                    log.warning(
                        "holdfast: boundary %d cannot be had any more; the round waits for the next checkpoint",
                        boundary,
                    )
            finally:
                self._gate.end_copy(number, clean=clean)

    def _hand_over(self, boundary: int, number: int) -> bool:
        began = time.monotonic()
        slot = self._holding(boundary)
        if slot is None:
            slot = self._copy(self._taken.name, self._taken.print)
        if slot is None:
            return False
        self._offer(slot, boundary, "round", number, time.monotonic() - began)
        return True

    # ---- the main thread

    def _look(self, ended: bool | None = None) -> None:
        """Takes the newest whole checkpoint out, if there is one that is not taken yet."""
        if self._impossible:
            return
        ripe = self._find(ended)
        if ripe is None:
            return
        self._gate.enter()  # a round may want the boundary before
        began = time.monotonic()
        slot = self._copy(ripe.name, ripe.print)
        if slot is not None:
            now = time.monotonic()
            self._period, self._taken_at = now - self._taken_at, now
            self._boundary += 1
            self._taken = Taken(ripe.name, self._o.rule.number(ripe.name), ripe.print, ripe.files)
            log.info("holdfast: %s is whole: boundary %d", ripe.name, self._boundary)
        round_ = self._gate.arrive(self._boundary)
        if slot is not None:
            seconds = self._o.answer_seconds if self._script.can_be_told else self._period
            self._link.send(ranks.Passed(self._boundary, seconds, 0, self._metrics()))
            self._offer(slot, self._boundary, "periodic", 0, now - began)
        while round_ is not None and (held := self._holding(self._boundary)) is not None:
            self._offer(held, self._boundary, "round", round_, 0.0)
            round_ = self._gate.hold(round_)
        if self._boundary:
            self._gate.rest(self._boundary)

    def _find(self, ended: bool | None) -> Candidate | None:
        root, rule, taken = self._o.root, self._o.rule, self._taken
        candidates = self._candidates()
        pointed = [text for p in POINTERS if (text := pointer(root / p)) is not None]
        for text in pointed:
            if names_none(text, rule):
                self._say(
                    "pointer",
                    f"holdfast: NOTHING IS SAVED as long as a file {' or '.join(POINTERS)} names {text[:200]!r}, which is no checkpoint's name by "
                    f"--pattern {rule.pattern.pattern}; set --pattern, or remove that file",
                )
        for c in passed_over(self._watched, candidates, taken, rule):
            self._say(
                c.name,
                f"holdfast: {c.name} IS NOT SAVED: its number {rule.number(c.name)} is not above that of {taken.name}, which was saved before; "
                "set --pattern so that its first group is the step, or remove what is left over of another run",
            )
        self._watched, ripe = look(self._watched, candidates, pointed, taken, time.monotonic(), rule, ended=ended)
        # A pointer may move on within a second: what it names is looked at again before that.
        soon = ripe is None and any(is_named(c, pointed, rule) and is_newer(c, taken, rule) for c in candidates)
        self._pause = SOON_SECONDS if soon else LOOK_SECONDS
        return ripe

    def _candidates(self) -> list[Candidate]:
        root, rule, taken = self._o.root, self._o.rule, self._taken
        candidates = []
        self._lacking.clear()
        for name in _names(root):
            if not rule.takes(name, folder=(root / name).is_dir()):
                continue
            try:
                seen = survey(root, name)
            except CannotKeep as e:
                number = rule.number(name)
                if number is None or taken.number is None or number >= taken.number:  # else it is being removed
                    self._say(name, f"holdfast: {name} IS NOT SAVED: {e}")
                    self._lacking[name] = str(e)
                continue
            except OSError:
                continue  # it is being written, or removed
            marked = bool(rule.marker) and (root / name / rule.marker).exists()
            candidates.append(Candidate(name, seen.print, len(seen.files), marked))
        return candidates

    def _copy(self, name: str, print: str) -> int | None:
        """Copies the checkpoint into a slot, which is held for the boundary only once it is offered. None where that cannot be: it looks otherwise than
        `print`, has changed meanwhile, or cannot be kept."""
        root, rule = self._o.root, self._o.rule
        try:
            seen = survey(root, name)
            if seen.print != print:
                raise packing.Changed(f"{name} has changed")
            beside = [f for p in POINTERS if (root / p).is_file() for f in survey(root, p).files]
            packed = packing.pack(seen, rule.number(name), beside, chunk_bytes=self._chunk_bytes)
            slots = self._slots_for(packed)
            if slots is None:
                return None
            slot = slots.acquire()
            with slots.open(slot) as memory:
                packing.fill(packed, root, memory)
            if survey(root, name) != seen:
                raise packing.Changed(f"{name} has changed")
        except packing.Changed as e:
            log.info("holdfast: %s while it was copied: it was not whole yet", e)
        except (CannotKeep, ValueError) as e:
            self._say(name, f"holdfast: {name} IS NOT SAVED: {e}")
        except OSError as e:
            log.info("holdfast: %s cannot be read: %s", name, e)
        else:
            return slot
        return None

    def _slots_for(self, packed: packing.Packed) -> Slots | None:
        """Other files, or other lengths, are another plan (I9)."""
        layout = packed.layout
        shape = (layout.image_bytes, layout.entries)
        if self._slots is not None and shape == self._plan:
            return self._slots
        while self._slots is not None and not self._slots.all_free_within(SOON_SECONDS):
            if (
                self._gate.awaited
            ):  # the agent keeps what it has in hand until this rank has come to the round's boundary (E4, A8)
                break
        self._plans += 1
        self._link.send(ranks.Plan(self._plans, layout.image_bytes, layout.entries))
        answer = self._link.expect(ranks.Slots, ranks.Refused)
        if isinstance(answer, ranks.Refused):
            self._impossible = answer.message
            log.error("holdfast: NOTHING IS SAVED FROM NOW ON: %s", answer.message)
            return None
        self._slots, self._plan = Slots(answer.plan, answer.paths, answer.slot_bytes), shape
        return self._slots

    def _holding(self, boundary: int) -> int | None:
        return self._slots.holding(boundary) if self._slots is not None else None

    def _offer(self, slot: int, boundary: int, kind: str, number: int, seconds: float) -> None:
        assert self._slots is not None
        self._slots.hand_over(slot, boundary)
        self._link.send(
            ranks.CapturedSlot(
                slot=slot,
                plan=self._slots.plan,
                boundary=boundary,
                kind=kind,
                round=number,
                copy_seconds=seconds,
                updates=self._taken.number or 0,
                epoch=0,
                samples=0,
                metrics=self._metrics(),
                run={"loop": "directory", "loop_kind": "directory", "directory": self._taken.name},
            )
        )

    def _metrics(self) -> dict[str, float]:
        return {} if self._taken.number is None else {"step": float(self._taken.number)}

    # ---- the end

    def _ended(self, code: int) -> int:
        """The script has ended. Returns what this process ends with."""
        told = self._script.told
        ended = code == 0 and self._helpers_ended()
        self._look(ended=ended)
        for _ in range(LAST_TRIES):
            if self._impossible or self._find(ended) is None:
                break
            time.sleep(LOOK_SECONDS)
            self._look(ended=ended)
        if code == 0 and not told:
            return self._finish()
        if code == 0:
            log.warning(
                "holdfast: the script has ended because it was told to: it is started again where the job goes on"
            )
            code = STOPPED_FOR_A_NOTICE
        if self._slots is not None:
            self._slots.settled(AFTER_FAILURE_SECONDS)
        return code

    def _helpers_ended(self) -> bool:
        """What the script has forked may write its checkpoint still. Of helpers that do not end, only what keeps quiet counts."""
        end = time.monotonic() + max(HELPERS_SECONDS, self._o.rule.quiet_seconds + 5 * LOOK_SECONDS)
        if self._on_request:
            end = time.monotonic() + HELPERS_AT_A_NOTICE_SECONDS
        while left := processes.others_of_this_session():
            if time.monotonic() >= end:
                log.warning("holdfast: the script has ended, and processes that it started have not: %s", left[:16])
                return self._on_request
            self._look()
            time.sleep(SOON_SECONDS)
        return True

    def _finish(self) -> int:
        if not self._boundary:
            log.error(
                "holdfast: NOTHING WAS SAVED: the script has ended, and nothing in %s matches %s, or it cannot be kept",
                self._o.root,
                self._o.rule.pattern.pattern,
            )
        number = self._gate.finish()
        if number is not None:
            self._link.send(ranks.Vote(number, self._boundary, True))
        self._link.send(ranks.Done(self._boundary, self._not_saved()))
        try:
            self._link.expect(ranks.FinishAllowed)
        except LinkLost as e:
            log.error("holdfast: the agent was lost before it said that the last checkpoint is durable: %s", e)
            return 1
        self._link.close()
        return 0

    def _not_saved(self) -> str:
        if self._impossible:
            return self._impossible
        if (ripe := self._find(True)) is not None:
            self._lacking.setdefault(ripe.name, "it cannot be read, or changes; the log says more")
        if not self._boundary and not self._lacking:
            return f"nothing in {self._o.root} matches {self._o.rule.pattern.pattern}"
        return "; ".join(f"{name}: {why}" for name, why in self._lacking.items())

    def _say(self, about: str, text: str) -> None:
        """Once for each cause."""
        if self._said.get(about) != text:
            self._said[about] = text
            log.error("%s", text)


def _names(root: Path) -> Sequence[str]:
    try:
        return sorted(n for n in os.listdir(root) if n != OWN)
    except OSError:
        return ()
