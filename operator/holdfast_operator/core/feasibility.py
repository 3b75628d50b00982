"""Whether an emergency save is done in the time that an announcement leaves, and which number to change if it is not (condition FlushFits). Pure.

The time that there is: the least of what could be announced about the job's workers where they are now. The time that is needed: what their agents have
measured; before that an estimate from the size of the state. A verdict gets worse as soon as it is so and better only with a fifth to spare, and numbers that
have changed by less than a quarter are not told again: neither status nor condition flutters with the speed of a store.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from holdfast_operator.core.membership import members
from holdfast_operator.core.observed import NodeSeen, Observed
from holdfast_operator.core.pods import grace_seconds
from holdfast_operator.core.signals import shutdown_seconds
from holdfast_operator.crd.v1alpha1 import FlushGrade, FlushStatus, TrainingJobSpec, TrainingJobStatus

RESERVE_SECONDS = 1.5
"""Kept of every announcement: its way to the agents, and the end of the agent after the commit record (EXIT_MARGIN and COMMIT_MARGIN of its plan)."""
TO_SPARE = 0.8
"""A better verdict, and the number that is advised, leave a fifth free."""
CHANGED = 0.25
"""Numbers that differ by so much from those in status are new ones."""
ESTIMATED_BYTES_PER_SECOND = 200e6
"""To a store that nobody has measured, as the agents' own first guess; it may be wrong by ESTIMATED_DOUBT either way."""
ESTIMATED_DOUBT = 5.0
GRACE = "spec.template.spec.terminationGracePeriodSeconds"
DEFAULT = "spec.notices.defaultDeadlineSeconds"
EVERY = "spec.checkpoint.every"
HOST_PATH = "spec.checkpoint.local.hostPath"
KUBELET = "shutdownGracePeriod of the kubelets, and the node label or chart value that tells it,"
ANSWER = "spec.checkpoint.directory.answerSeconds"


@dataclass(frozen=True, slots=True)
class Window:
    """Time that an announcement leaves."""

    seconds: int
    what: str
    """With the number, for people."""
    knob: str
    """How it is made longer, up to the new number; empty: nobody can."""


@dataclass(frozen=True, slots=True)
class _Spot:
    """A kind of node that a cloud may take back."""

    label: str
    value: str
    seconds: int
    words: str


SPOTS: tuple[_Spot, ...] = (
    _Spot("eks.amazonaws.com/capacityType", "SPOT", 120, "AWS gives a spot instance 120 s"),
    _Spot("cloud.google.com/gke-spot", "true", 30, "Google gives a spot machine 30 s"),
    _Spot("cloud.google.com/gke-provisioning", "spot", 30, "Google gives a spot machine 30 s"),
    _Spot("cloud.google.com/gke-preemptible", "true", 30, "Google gives a preemptible machine 30 s"),
    _Spot("kubernetes.azure.com/scalesetpriority", "spot", 30, "Azure gives a spot machine 30 s"),
    # Karpenter runs on several clouds: its own label tells only of one that it does not give less than AWS does.
    _Spot("karpenter.sh/capacity-type", "spot", 120, "a spot notice is 120 s at most"),
)


def update(seen: Observed, status: TrainingJobStatus) -> TrainingJobStatus:
    """`status.flush` anew, if there is something new to say."""
    before, available = status.flush, min(w.seconds for w in windows(seen))
    found = _measured(seen, status) or before or _estimated(seen, status)
    if found is None:
        return status
    same_time = before is not None and before.available_seconds == available
    graded = grade(
        found.seconds, found.sure_seconds, available, before.grade if before is not None and same_time else None
    )
    new = found.model_copy(update={"available_seconds": available, "grade": graded})
    if before is not None and same_time and not _has_changed(before, new):
        return status
    return status if new == before else status.model_copy(update={"flush": new})


def grade(seconds: float, sure_seconds: float, available_seconds: float, before: FlushGrade | None) -> FlushGrade:
    """`before`: what was said of the same time that there is."""
    leaves_slow = TO_SPARE if before is FlushGrade.TOO_SLOW else 1.0
    becomes_well = TO_SPARE if before in (FlushGrade.TOO_SLOW, FlushGrade.TIGHT) else 1.0
    if seconds > available_seconds * leaves_slow:
        return FlushGrade.TOO_SLOW
    return FlushGrade.TIGHT if sure_seconds > available_seconds * becomes_well else FlushGrade.FITS


def windows(seen: Observed) -> tuple[Window, ...]:
    """The shortest first; each once."""
    found = dict.fromkeys((*_of_job(seen.spec), *_of_nodes(seen)))
    return tuple(sorted(found, key=lambda w: w.seconds))


def _of_job(spec: TrainingJobSpec) -> Iterator[Window]:
    grace, default = grace_seconds(spec), spec.notices.default_deadline_seconds
    yield Window(grace, f"{GRACE} is {grace}", GRACE)
    yield Window(default, f"{DEFAULT} is {default}", DEFAULT)


def _of_nodes(seen: Observed) -> Iterator[Window]:
    used = {w.node for w in seen.status.workers if w.node} | {p.node for p in seen.pods if p.node}
    for name in sorted(used):
        if (node := seen.nodes.get(name)) is None:
            continue
        if seconds := shutdown_seconds(node, seen.signal_rules):
            yield Window(seconds, f"a shutdown of its node leaves a pod {seconds} s", KUBELET)
        if (spot := _spot(node)) is not None:
            yield Window(spot.seconds, spot.words, "")


def _spot(node: NodeSeen) -> _Spot | None:
    return next((s for s in SPOTS if node.labels.get(s.label) == s.value), None)


# ---- how long it takes


def _measured(seen: Observed, status: TrainingJobStatus) -> FlushStatus | None:
    """Of the slowest worker that has said it in this attempt."""
    told = [(w.member.worker, w.report.flush) for w in members(seen, status.attempt) if w.report and w.report.flush]
    if not told:
        return None
    worker, f = max(told, key=lambda t: (_finite(t[1].sure_seconds), -t[0]))
    parts = [_finite(x) for x in (f.step_seconds, f.copy_seconds, f.store_seconds, f.commit_seconds)]
    return FlushStatus(
        worker=worker,
        seconds=_short(sum(parts) + RESERVE_SECONDS),
        sure_seconds=_short(max(_finite(f.sure_seconds), sum(parts)) + RESERVE_SECONDS),
        step_seconds=_short(parts[0]),
        copy_seconds=_short(parts[1]),
        store_seconds=_short(parts[2]),
        node_seconds=_short(_finite(f.node_seconds)) if f.node_seconds is not None else None,
        bytes=f.bytes,
        sent_bytes=f.sent_bytes,
        measured=all(t.measured for _, t in told),
        available_seconds=0,
        grade=FlushGrade.FITS,
    )  # the last two are the caller's


def _estimated(seen: Observed, status: TrainingJobStatus) -> FlushStatus | None:
    """Before anybody has measured: from the size of the newest checkpoint, else from what the user lets the slots take, of which there are two."""
    newest, memory = status.last_checkpoint, seen.spec.checkpoint.memory_mi_b << 20
    size = newest.bytes // seen.spec.workers if newest is not None and newest.bytes else memory // 2
    if not size:
        return None
    store = size / ESTIMATED_BYTES_PER_SECOND
    return FlushStatus(
        seconds=_short(store + RESERVE_SECONDS),
        sure_seconds=_short(store * ESTIMATED_DOUBT + RESERVE_SECONDS),
        store_seconds=_short(store),
        bytes=size,
        sent_bytes=size,
        available_seconds=0,
        grade=FlushGrade.FITS,
    )


def _has_changed(before: FlushStatus, new: FlushStatus) -> bool:
    if (before.grade, before.measured) != (new.grade, new.measured):
        return True
    return any(
        abs(a - b) > CHANGED * max(a, b)
        for a, b in ((before.seconds, new.seconds), (before.sure_seconds, new.sure_seconds))
    )


def _finite(seconds: float) -> float:
    """What an agent says is not known, or never, is a long time; nonsense is as well."""
    return min(max(seconds, 0.0), 1e9) if math.isfinite(seconds) else 1e9


def _short(seconds: float) -> float:
    return float(f"{seconds:.3g}")


# ---- in words


@dataclass(frozen=True, slots=True)
class Verdict:
    """For the condition FlushFits."""

    status: str
    reason: str
    message: str


def verdict(seen: Observed, status: TrainingJobStatus) -> Verdict:
    least = windows(seen)[0]
    if least.seconds <= RESERVE_SECONDS:
        return Verdict(
            "False", "NoTime", f"nothing can be saved when a worker goes: {least.what}; {_raise((least,), 30)}"
        )
    if (answer := _answer(seen.spec)) and answer + RESERVE_SECONDS > least.seconds:
        needed = math.ceil((answer + RESERVE_SECONDS) / TO_SPARE)
        short = tuple(w for w in windows(seen) if w.seconds < answer + RESERVE_SECONDS)
        return Verdict(
            "False", "AnswerTooSlow",
            f"the script takes {answer} s to write a checkpoint when it is told to ({ANSWER}), and {least.what}; {_raise(short, needed)}",
        )  # fmt: skip
    f = status.flush
    if f is None:
        return Verdict("Unknown", "NotMeasured", f"how long a save takes is not known yet; {least.what}")
    found = f"{_taken(f)}, and {f.available_seconds} s are there: {least.what}"
    if f.grade is FlushGrade.FITS:
        return Verdict("True", "Measured" if f.measured else "Estimated", found)
    if not f.measured:
        return Verdict("Unknown", "Estimated", f"{found}. That is an estimate; the first save measures it")
    if f.grade is FlushGrade.TIGHT:
        return Verdict("Unknown", "Tight", f"{found}. {_advice(seen, f)}")
    return Verdict("False", "TooSlow", f"{found}. {_advice(seen, f)}")


def _taken(f: FlushStatus) -> str:
    parts = (
        (f.step_seconds, "until the step has ended"),
        (f.copy_seconds, "to copy the state"),
        (f.store_seconds, f"to send {_size(f.sent_bytes)} of {_size(f.bytes)}{_at_speed(f)}"),
    )
    told = ", ".join(f"{_seconds(s)} {words}" for s, words in parts if s >= 0.05)
    how = "takes" if f.measured else "may take"
    return f"worker {f.worker} {how} {_seconds(f.seconds)} as a rule and {_seconds(f.sure_seconds)} to be sure ({told or 'hardly anything'})"


def _advice(seen: Observed, f: FlushStatus) -> str:
    """Every number that would do, the one to change first; and what a loss costs until then."""
    short = tuple(w for w in windows(seen) if w.seconds < f.sure_seconds)
    words = [_raise(short, math.ceil(f.sure_seconds / TO_SPARE))]
    factor = _faster(f)
    if factor is not None:
        workers = seen.spec.workers
        words.append(f"or send faster: {_size(factor * _speed(f))}/s of each worker")
        words.append(
            f"or use {math.ceil(workers * factor)} workers (now {workers}), as each sends its share of what all hold"
        )
    if f.step_seconds > f.seconds / 2:
        shorter = "shorter steps, or a loop that can be copied in mid-step (docs/loops.md)"
        words.append(f"most of it is one step of {_seconds(f.step_seconds)}: {shorter}")
    if f.node_seconds is not None and seen.spec.checkpoint.local.host_path is None:
        copy = f"a copy on the node takes {_seconds(f.node_seconds)}"
        words.append(f"or {HOST_PATH} on a local NVMe, where machines come back: {copy}")
    cost = "a worker that goes may cost the steps since the last periodic checkpoint"
    words.append(f"until then {cost} ({EVERY}: {_every(seen.spec)})")
    return "; ".join(words)


def _faster(f: FlushStatus) -> float | None:
    """How many times as fast the store would have to take it; None where that alone would not do, or is not what is missing."""
    surely = f.sure_seconds / max(f.seconds, RESERVE_SECONDS)
    sending = f.store_seconds * surely
    left = f.available_seconds * TO_SPARE - (f.sure_seconds - sending)
    return sending / left if left > 0 and sending > left else None


def _raise(short: tuple[Window, ...], needed: int) -> str:
    """What to do about each time that is too short."""
    can = [f"{w.knob} to {needed}" for w in short if w.knob]
    cannot = [w.what for w in short if not w.knob]
    words = ["set " + " and ".join(dict.fromkeys(can))] if can else []
    words += [f"no setting makes this longer: {', '.join(dict.fromkeys(cannot))}"] if cannot else []
    return "; ".join(words)


def _answer(spec: TrainingJobSpec) -> int:
    """Of a script that writes its own checkpoints and can be told to."""
    d = spec.checkpoint.directory
    return d.answer_seconds if d is not None and d.signal else 0


def _every(spec: TrainingJobSpec) -> str:
    e = spec.checkpoint.every
    return f"{e.steps} steps" if e.steps else f"{e.seconds} s" if e.seconds else "auto"


def _speed(f: FlushStatus) -> float:
    return f.sent_bytes / f.store_seconds if f.store_seconds > 0 else 0.0


def _at_speed(f: FlushStatus) -> str:
    return f" at {_size(_speed(f))}/s" if f.sent_bytes and f.store_seconds > 0 else ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 1e6 else "for ever"


def _size(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"
