"""What an agent and the training processes of its worker say over the Unix socket: newline-delimited JSON, one object a line.

Each line is `{"type": <class name>, ...fields}`. Bulk data never passes here: it lies in slot files in shared memory, named by message (J5).

    rank                                   agent
    Hello                            ->
                                     <-    Welcome
    RestoreWanted                    ->                         blocks until the attempt is claimed and the bytes are verified
                                     <-    RestoreBegun         to ranks that prepare: now and again until one of these:
                                     <-    RestoreReady | StartFresh | Refused | OtherWorld
    PartsWanted                      ->                         answers OtherWorld; RestoreReady follows
    Loaded | LoadFailed              ->                         LoadFailed of the checkpoint: an older one follows, as another RestoreReady
    Plan                             ->
                                     <-    Slots | Refused      slot files exist, prefaulted
    Passed (rate-limited)            ->
    CapturedSlot                     ->                         at a periodic boundary, at the target of a round, at the end
                                     <-    SlotFree             the slot may be overwritten
                                     <-    CloseGate            Vote answers it
    Vote                             ->
                                     <-    ReleaseGate          capture at the target, then stop
                                     <-    OpenGate
    Doing                            ->                         only if Welcome says `listens`; when it has done so for a second
    Done                             ->                         `finish()` was called; the process may end after FinishAllowed
                                     <-    FinishAllowed
"""

import json
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from holdfast_api import codec
from holdfast_api.errors import Malformed
from holdfast_api.manifest import MetricPoint, TensorEntry

MAX_LINE_BYTES = 64 << 20
"""A plan names every tensor; nothing else comes near this."""


@dataclass(frozen=True, slots=True)
class Hello:
    rank: int
    local_rank: int
    world_size: int
    attempt: int
    pid: int
    versions: dict[str, str]
    """holdfast, torch, python, device."""
    stack_signal: int = 0
    """At this signal the process writes what its threads are doing to `stack_path`, whoever holds the interpreter's lock. 0: there is no such way."""
    stack_path: str = ""


@dataclass(frozen=True, slots=True)
class Welcome:
    attempt: int
    chunk_bytes: int
    every_steps: int
    """0: the agent asks for saves itself."""
    slots: int = 2
    """At most; Slots says how many there are."""
    listens: bool = False
    """This agent understands `Doing`."""


@dataclass(frozen=True, slots=True)
class RestoreWanted:
    reshards: bool = False
    """It can answer OtherWorld."""
    prepares: bool = False
    """It can use RestoreBegun."""


@dataclass(frozen=True, slots=True)
class SourceRank:
    """One rank of a checkpoint that another number of ranks has made: where its state (JSON) and its manifest's tensors (JSON) lie in a file."""

    rank: int
    state_at: int
    state_bytes: int
    tensors_at: int
    tensors_bytes: int


@dataclass(frozen=True, slots=True)
class OtherWorld:
    """The checkpoint was made by another number of ranks. `path` holds what each of them says of its state, verified; the rank answers with what it
    needs of their images. The file is the agent's and stays until RestoreReady."""

    path: str
    attempt: int
    save: int
    boundary: int
    sources: tuple[SourceRank, ...]
    """All ranks of the checkpoint, in order."""


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a tensor of the checkpoint, that a rank wants as a tensor of its own."""

    name: str
    """In the image that the rank is given."""
    source: str
    """In the checkpoint's images."""
    ranks: tuple[int, ...]
    """Of the checkpoint, from whose images it may be taken; empty: any."""
    dtype: str
    shape: tuple[int, ...]
    global_shape: tuple[int, ...]
    """Of the whole tensor that `source` names, or is a part of."""
    global_offset: tuple[int, ...]
    """Where the box begins in it."""


@dataclass(frozen=True, slots=True)
class PartsWanted:
    """Everything that this rank needs of the checkpoint `attempt/save`."""

    attempt: int
    save: int
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class RestoreBegun:
    """The image of a checkpoint is being brought into `path`, a file that is as long already. Its bytes mean nothing yet: not one may reach a tensor (C3). But
    it may be mapped, page-locked and the like. What is loaded in the end is said by RestoreReady alone, and may be another file."""

    path: str
    image_bytes: int


@dataclass(frozen=True, slots=True)
class RestoreReady:
    """`path` holds the verified image of this rank; the file belongs to the rank until it answers."""

    path: str
    image_bytes: int
    attempt: int
    save: int
    boundary: int
    tensors: tuple[TensorEntry, ...]
    finite: bool = False
    """Trained parameters and optimizer state were seen to be finite when this image was saved (C4), and its bytes are those: no second look is needed."""


@dataclass(frozen=True, slots=True)
class StartFresh:
    pass


@dataclass(frozen=True, slots=True)
class Refused:
    """The agent cannot do what was asked. `message` names the setting and the remedy; the library raises it."""

    message: str


@dataclass(frozen=True, slots=True)
class Loaded:
    boundary: int


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """`of_checkpoint`: non-finite or undecodable content (C4), try the next older; False: keys do not match and the like, stop and tell."""

    message: str
    of_checkpoint: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The layout of this rank's image is fixed (I9). A later one replaces it, at a boundary."""

    plan: int
    image_bytes: int
    tensors: tuple[TensorEntry, ...]
    must_be_finite: tuple[str, ...] | None = None
    """Names of those that a load refuses if they are not (C4): trained parameters and optimizer state. None: unknown."""


@dataclass(frozen=True, slots=True)
class Slots:
    """Files of at least `slot_bytes`, prefaulted, to be mapped by the rank."""

    plan: int
    paths: tuple[str, ...]
    slot_bytes: int


@dataclass(frozen=True, slots=True)
class Passed:
    """Boundaries passed so far. Sent for the first one at once, then at most five times a second."""

    boundary: int
    step_seconds: float
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    busy_seconds: float = 0.0
    """Of `step_seconds`, as RankPace says; 0: not known."""
    update_seconds: float = 0.0
    data_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Doing:
    """What the main thread is busy with, so that a long wait of its kind is not taken for a hang. The next boundary that is passed ends it."""

    what: str
    """`start` (before the first boundary), `step`, `data` (waiting for a batch), `evaluation`, `save` (copying), `slot` (waiting for the agent), `gate`
    (standing in a round), `finish`."""


@dataclass(frozen=True, slots=True)
class CapturedSlot:
    """Slot `slot` holds boundary `boundary` completely and is now the agent's until SlotFree."""

    slot: int
    plan: int
    boundary: int
    kind: str
    """periodic, round or final."""
    round: int
    """Of the round, else 0."""
    copy_seconds: float
    updates: int
    epoch: int
    samples: int
    metrics: dict[str, float]
    run: dict[str, str]
    config: dict[str, str] = field(default_factory=dict)
    history: tuple[MetricPoint, ...] = ()
    stall_seconds: float | None = None
    """For which training stood still; None: for `copy_seconds`."""


@dataclass(frozen=True, slots=True)
class SlotFree:
    slot: int
    boundary: int
    committed: bool


@dataclass(frozen=True, slots=True)
class CloseGate:
    round: int
    lease_seconds: float
    evacuating: bool = False
    """This worker is to go, not only to save: directory mode tells its script."""
    seconds: float | None = None
    """Until the deadline, where one is known."""


@dataclass(frozen=True, slots=True)
class Vote:
    round: int
    boundary: int
    """e of E2."""
    done: bool = False


@dataclass(frozen=True, slots=True)
class ReleaseGate:
    round: int
    target: int


@dataclass(frozen=True, slots=True)
class OpenGate:
    round: int


@dataclass(frozen=True, slots=True)
class Done:
    boundary: int
    not_saved: str = ""
    """Directory mode: the script has written something newer than `boundary`, and why that cannot be saved."""


@dataclass(frozen=True, slots=True)
class FinishAllowed:
    pass


FromRank: TypeAlias = (
    Hello | RestoreWanted | PartsWanted | Loaded | LoadFailed | Plan | Passed | Doing | CapturedSlot | Vote | Done
)
FromAgent: TypeAlias = (
    Welcome
    | OtherWorld
    | RestoreBegun
    | RestoreReady
    | StartFresh
    | Refused
    | Slots
    | SlotFree
    | CloseGate
    | ReleaseGate
    | OpenGate
    | FinishAllowed
)

_TYPES: dict[str, type[Any]] = {
    c.__name__: c
    for c in (
        Hello, Welcome, RestoreWanted, OtherWorld, PartsWanted, RestoreBegun, RestoreReady, StartFresh, Refused, Loaded, LoadFailed, Plan, Slots, Passed,
        Doing, CapturedSlot, SlotFree, CloseGate, Vote, ReleaseGate, OpenGate, Done, FinishAllowed,
    )
}  # fmt: skip


def to_line(message: FromRank | FromAgent) -> bytes:
    """One line, newline included."""
    plain = {"type": type(message).__name__} | {
        f.name: codec.to_plain(getattr(message, f.name)) for f in fields(message)
    }
    return json.dumps(plain, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def from_line(line: bytes) -> FromRank | FromAgent:
    """Reads one line. Raises Malformed for an unknown type or a missing field, TooLarge beyond `MAX_LINE_BYTES`."""
    data = codec.parse(line, max_bytes=MAX_LINE_BYTES)
    name = data.get("type") if isinstance(data, dict) else None
    cls = _TYPES.get(name) if isinstance(name, str) else None
    if cls is None:
        raise Malformed("a line on the socket has no known type")
    message: FromRank | FromAgent = codec.from_plain(cls, data)
    return message
