"""What is done about an evacuation, and by when each part of it must be. Pure and total: no clock, no I/O, any numbers.

Six things can be done (design.md, section 3): write the live state to node and store; write it to the store only; write the last clean slot; write the live
state to the node only; bring the doomed workers' parts of it to those that stay; nothing new. Whatever is chosen, the checkpoint that is committed stays, so
the question is only what to gain: the plan takes what promises the most boundaries, each weighed by the chance to be done in time. Nothing is begun whose
chance is 0, that is, which would be late even at the best speed that was ever likely (fault scenario 3). A later deadline never promises less.

While ranks run on to their boundary a clean slot loses nothing by waiting, up to the last moment from which it is still sure to be written: until then both
are open (E3).
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from holdfast_agent import spans
from holdfast_api.peers import Span

EXIT_MARGIN_SECONDS = 0.75
"""The agent ends at least this long before the deadline."""
COMMIT_MARGIN_SECONDS = 0.25
"""Between the last moment for the commit record and the exit: reports, termination message."""
WORTH_STARTING_SECONDS = 0.5
BESIDE_NODE = 1.1
"""The store's part takes so many times as long while the node is written too."""
NODE_MAY_COST = 0.05
"""Of the chance to be done in time, which a copy on the node is worth."""


RETURNS = 0.5
"""Of the jobs that have left a state on machines that stay, so many are taken to come back there, all pods, before the next claim: nobody promises it."""
STAYS = 0.9
"""Of the jobs whose surviving workers hold everything, so many are taken to finish it from there: they are not told to go, and may fall all the same."""
SHORTEST_WAIT_SECONDS = 0.05
TURN_SECONDS = 1.0
"""From giving up the wait for the ranks to writing the clean slot: they are asked once more, and a busy machine is late for everything."""
CONFIDENT = 0.8
"""A state that is at most one step old is what is promised; with this chance it is not given up for an older one that is surer still."""


class Choice(StrEnum):
    LIVE = "live"
    STORE_ONLY = "store-only"
    CLEAN = "clean-slot"
    NODE_ONLY = "node-only"
    RESCUE = "peer-rescue"
    NOTHING = "nothing-new"


@dataclass(frozen=True, slots=True)
class Situation:
    """What the coordinator knows. Spans are those of the slowest worker."""

    remaining_seconds: float
    """Until the deadline."""
    live_boundary: int
    """Where all ranks are, or are being let run to; 0 if they will not get to one."""
    committed_boundary: int
    clean_boundary: int = 0
    """The newest that every rank holds in a clean slot; 0 for none."""
    arrival: Span = spans.NONE
    """Until every rank has captured `live_boundary`."""
    store: Span = spans.UNKNOWN
    """To write a captured boundary into the store."""
    clean_store: Span | None = None
    """What is left of the clean slot's save, where one is under way already, at its own speed."""
    commit: Span = spans.NONE
    node: Span | None = None
    """To write it to the node's directory; None where not every worker has one."""
    node_survives: bool = False
    """The node's directory will be there for those who come next (F4)."""
    rescue: Span | None = None
    """Until survivors have the parts of those who go, and their own on their nodes; None where nobody stays, there is no room, or nobody has measured it."""


@dataclass(frozen=True, slots=True)
class Option:
    """One thing that could be done."""

    choice: Choice
    boundary: int
    seconds: Span
    available_seconds: float
    chance: float
    gain: int
    """Boundaries beyond the committed one."""
    joins: bool = False
    """The save of it that is under way is finished; else one is begun."""
    left: float = 0.0
    """Chance that it is late, and finished by those who return to the nodes, on which it lies by then (E6)."""

    @property
    def slack_seconds(self) -> float:
        return self.available_seconds - self.seconds.likely

    @property
    def promise(self) -> float:
        """Boundaries, on average."""
        return self.gain * self.kept * _FINISHED.get(self.choice, 1.0)

    @property
    def kept(self) -> float:
        return _counted(min(1.0, self.chance + self.left))


_FINISHED = {Choice.NODE_ONLY: RETURNS, Choice.RESCUE: STAYS}


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds are from now, each at least 0."""

    chosen: Option
    options: tuple[Option, ...]
    arrive_seconds: float
    """How long the ranks are waited for; then the clean slot is written, if it still can be, else nothing."""
    commit_seconds: float
    """The commit record is written before it, or not at all."""
    exit_seconds: float
    promise: float = 0.0
    """Boundaries that it gains, on average. Never less than what any option promises, but for what the node's copy may cost."""

    @property
    def choice(self) -> Choice:
        return self.chosen.choice

    @property
    def words(self) -> str:
        """One line for a person."""
        o = self.chosen
        if o.choice is Choice.NOTHING:
            best = max(self.options, key=lambda p: (p.gain, p.slack_seconds))
            if not best.gain:
                return "nothing new: what the ranks hold is committed, or nobody holds a boundary"
            return (
                f"nothing new: the least that could be written takes {best.seconds.best:.1f} s at best, "
                f"and there are {max(0.0, best.available_seconds):.1f} s"
            )
        return (
            f"{o.choice.value} at boundary {o.boundary}: {o.seconds.likely:.1f} s expected, {o.seconds.sure:.1f} s at most, "
            f"of {o.available_seconds:.1f} s ({o.chance * 100:.0f} % sure)"
        )


def gives_way(running: Option, live: Option) -> bool:
    """Whether a clean slot's flush that is under way is given up for the live state, both as of now: not if there is time for one after the other, nor
    if what it has nearly made durable promises more. Pure."""
    then = spans.chance(spans.then(running.seconds, live.seconds), live.available_seconds)
    return then < min(CONFIDENT, live.chance) and live.promise > running.promise


def needs_rescue(running: Option, rescue: Span, available_seconds: float) -> bool:
    """Whether an upload that is under way, as of now, may be late while survivors surely take the parts of those who go in time: then they do, beside it, and
    what has arrived in the store by the deadline need not be sent again (E6). Pure."""
    return running.chance < CONFIDENT <= spans.chance(rescue, available_seconds)


def choose(s: Situation) -> Plan:
    exit_at = max(0.0, _finite(s.remaining_seconds) - EXIT_MARGIN_SECONDS)
    commit_at = max(0.0, exit_at - COMMIT_MARGIN_SECONDS)
    options = _options(s, commit_at, exit_at)
    nothing = options[-1]
    plan = Plan(nothing, options, 0.0, commit_at, exit_at)
    if commit_at < WORTH_STARTING_SECONDS:
        return plan
    by_choice = {o.choice: o for o in options if o.chance > 0 and o.gain > 0}
    live, clean, on_node = _live_of(by_choice), by_choice.get(Choice.CLEAN), by_choice.get(Choice.NODE_ONLY)
    rescue = by_choice.get(Choice.RESCUE)
    if rescue is not None and _is_needed(rescue, s, live, clean, on_node, commit_at):
        waits = max(0.0, exit_at - spans.tidy(s.rescue or spans.NONE).best)
        return replace(plan, chosen=rescue, arrive_seconds=waits, promise=rescue.promise)
    if live is not None and (clean is None or clean.gain < live.gain):
        wait, promise = _patience(s, live, clean, commit_at)
        if on_node is not None and live.choice is Choice.STORE_ONLY and on_node.promise > promise:
            return _on_nodes(plan, s, on_node)
        if clean is None or wait > SHORTEST_WAIT_SECONDS or spans.tidy(s.arrival) == spans.NONE:
            return replace(plan, chosen=live, arrive_seconds=wait, promise=promise)
    if clean is not None and (on_node is None or clean.chance >= CONFIDENT or clean.promise >= on_node.promise):
        return replace(plan, chosen=clean, promise=clean.promise)
    return plan if on_node is None else _on_nodes(plan, s, on_node)


def _is_needed(
    rescue: Option, s: Situation, live: Option | None, clean: Option | None, on_node: Option | None, commit_at: float
) -> bool:
    """Only where it is in time as far as anybody can know and the newest state's upload is not, and where nothing else promises as much."""
    if rescue.chance < CONFIDENT or (live is not None and live.chance >= CONFIDENT):
        return False
    others = [o.promise for o in (live, clean, on_node) if o is not None]
    if live is not None:
        others.append(_patience(s, live, clean, commit_at)[1])
    return all(rescue.promise > promise for promise in others)


def _on_nodes(plan: Plan, s: Situation, on_node: Option) -> Plan:
    wait = max(0.0, plan.exit_seconds - spans.tidy(s.node or spans.NONE).best)
    return replace(plan, chosen=on_node, arrive_seconds=wait, promise=on_node.promise)


def _options(s: Situation, commit_at: float, exit_at: float) -> tuple[Option, ...]:
    gain = max(0, s.live_boundary - s.committed_boundary) if s.live_boundary > 0 else 0
    older = max(0, s.clean_boundary - s.committed_boundary) if s.clean_boundary > 0 else 0

    def option(choice: Choice, boundary: int, gain: int, available: float, *parts: Span, joins: bool = False) -> Option:
        seconds = spans.then(*parts)
        return Option(choice, boundary, seconds, available, spans.chance(seconds, available), gain, joins)

    found = [option(Choice.STORE_ONLY, s.live_boundary, gain, commit_at, s.arrival, s.store, s.commit)]
    if s.node is not None:
        beside = spans.longer(s.store, BESIDE_NODE)
        live = option(Choice.LIVE, s.live_boundary, gain, commit_at, s.arrival, beside, s.commit)
        found.insert(0, replace(live, left=_left(s, live, s.node, commit_at, exit_at)))
    clean = option(Choice.CLEAN, s.clean_boundary, older, commit_at, s.store, s.commit)
    if s.clean_store is not None:
        joined = option(Choice.CLEAN, s.clean_boundary, older, commit_at, s.clean_store, s.commit, joins=True)
        clean = joined if joined.chance >= clean.chance else clean
    found.append(clean)
    if s.node is not None and s.node_survives:
        found.append(option(Choice.NODE_ONLY, s.live_boundary, gain, exit_at, s.arrival, s.node))
    if s.rescue is not None:
        found.append(option(Choice.RESCUE, s.live_boundary, gain, exit_at, s.arrival, s.rescue))
    found.append(Option(Choice.NOTHING, s.committed_boundary, spans.NONE, commit_at, 1.0, 0))
    return tuple(found)


def _left(s: Situation, live: Option, node: Span, commit_at: float, exit_at: float) -> float:
    """Of the live state that goes to node and store and does not reach the store in time."""
    if not s.node_survives:
        return 0.0
    there = spans.chance(s.arrival, max(0.0, commit_at - spans.then(s.store, s.commit).best))
    durable = spans.chance(spans.then(s.arrival, node), exit_at)
    return max(0.0, min(there, live.chance + (1 - live.chance) * durable * RETURNS) - live.chance)


def _live_of(by_choice: dict[Choice, Option]) -> Option | None:
    """With the node's copy where that costs next to no chance, or where more is kept by it."""
    both, alone = by_choice.get(Choice.LIVE), by_choice.get(Choice.STORE_ONLY)
    if both is not None and (alone is None or both.chance + both.left >= alone.chance - NODE_MAY_COST):
        return both
    return alone


def _patience(s: Situation, live: Option, clean: Option | None, commit_at: float) -> tuple[float, float]:
    """How long the ranks are waited for, and what that promises; 0 if the clean slot is to be written at once."""
    last = max(0.0, commit_at - spans.then(s.store, s.commit).best)
    if clean is None:
        return last, live.promise
    writing = spans.then(s.store, s.commit)
    turn = commit_at - TURN_SECONDS
    moments = (0.0, turn - writing.sure, turn - writing.likely, last)
    tries = [(_promise(s, live, clean, commit_at, m), -m) for m in moments if m >= 0]
    promise, moment = max(tries)
    return -moment, promise


def _promise(s: Situation, live: Option, clean: Option, commit_at: float, moment: float) -> float:
    """Of waiting until `moment`, then writing the live state if it is there, else the clean slot."""
    there = spans.chance(s.arrival, moment)
    # A save of the clean slot that is under way goes on while the ranks are waited for.
    waits = spans.less(clean.seconds, moment) if clean.joins else clean.seconds
    older = _counted(spans.chance(waits, commit_at - moment - (TURN_SECONDS if moment else 0.0)))
    return _counted(min(there, live.chance + live.left)) * live.gain + (1 - _counted(there)) * older * clean.gain


def _counted(chance: float) -> float:
    return spans.SURE if chance >= CONFIDENT else chance


def _finite(seconds: float) -> float:
    return 0.0 if math.isnan(seconds) else min(max(seconds, 0.0), spans.LONG_SECONDS)
