"""When is a checkpoint in the script's directory whole? Pure: what is seen and the time in, the checkpoint to take out.

Nothing says it for all frameworks. In this order:

1. A pointer file names it (`latest` of DeepSpeed, `latest_checkpointed_iteration.txt` of Megatron) and it looks as it did at the last look: the pointer
   is written last, but other processes of the script may be at their parts still. Where there is one, nothing else counts.
2. A marker file that the user has named lies in it. Where one is named, nothing else counts.
3. Nothing in it has changed for `quiet_seconds`, or the script has ended well.

In every case it is compared again after it has been copied (packing.py), and taken again if it changes later: it was not whole then. What lost files
is being removed.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

DEFAULT_PATTERN = r"(?:.*\D)?(\d+)(?:\.ckpt)?"
POINTERS = ("latest", "latest_checkpointed_iteration.txt")
OWN = ".holdfast"


@dataclass(frozen=True, slots=True)
class Rule:
    """`pattern` must match a whole name below the directory; its first group, if it has one, is the number by which checkpoints are ordered."""

    pattern: re.Pattern[str] = re.compile(DEFAULT_PATTERN)
    marker: str = ""
    quiet_seconds: float = 15.0

    def is_one(self, name: str) -> bool:
        """Names of temporary files are never a checkpoint's, whatever they end with."""
        return not name.startswith(".") and "tmp" not in name.lower() and self.pattern.fullmatch(name) is not None

    def takes(self, name: str, *, folder: bool) -> bool:
        """Where nobody has said what a checkpoint is called, a file that ends with digits is a log, an event file or a core dump, unless it is a .ckpt."""
        return self.is_one(name) and (folder or self.pattern.pattern != DEFAULT_PATTERN or name.endswith(".ckpt"))

    def number(self, name: str) -> int | None:
        """None where the pattern has no group that is a number: such a checkpoint is written over by the next one."""
        found = self.pattern.fullmatch(name)
        text = found.group(1) if found is not None and self.pattern.groups else None
        return int(text) if text is not None and text.isascii() and text.isdigit() else None


@dataclass(frozen=True, slots=True)
class Candidate:
    """What matches. `print` changes with every file's path, size, times and inode."""

    name: str
    print: str
    files: int
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """The newest one that is an image already, or was restored."""

    name: str = ""
    number: int | None = None
    print: str = ""
    files: int = 0


@dataclass(frozen=True, slots=True)
class Watched:
    """Since when each candidate looks as it does (seconds of a monotonic clock)."""

    since: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    @classmethod
    def leftovers(cls, candidates: Iterable[Candidate]) -> "Watched":
        """What lay there before the script was started, and no commit knows it: somebody may have been killed while writing it, so that it keeps quiet
        says nothing."""
        return cls({c.name: (c.print, float("inf")) for c in candidates})


def look(
    watched: Watched,
    candidates: Iterable[Candidate],
    pointed: Iterable[str],
    taken: Taken,
    now: float,
    rule: Rule,
    *,
    ended: bool | None = None,
) -> tuple[Watched, Candidate | None]:
    """`pointed`: what pointer files say, one text each. `ended`: None while the script runs, else whether it has ended well."""
    pointed = [text.strip() for text in pointed]
    since: dict[str, tuple[str, float]] = {}
    ripe: list[Candidate] = []
    for c in candidates:
        before = watched.since.get(c.name)
        same = before is not None and before[0] == c.print
        since[c.name] = before if before is not None and same else (c.print, now)
        if c.files and is_newer(c, taken, rule):
            quiet = same and now - since[c.name][1] >= rule.quiet_seconds
            if pointed:
                whole = is_named(c, pointed, rule) and (same or ended is not None)
            elif rule.marker:
                whole = c.marked
            else:
                whole = quiet if ended is None else ended
            if whole:
                ripe.append(c)
    return Watched(since), max(ripe, key=lambda c: (rule.number(c.name) or 0, since[c.name][1]), default=None)


def is_named(candidate: Candidate, pointed: Iterable[str], rule: Rule) -> bool:
    return any(candidate.name == text or _same_number(rule.number(candidate.name), text) for text in pointed)


def is_newer(candidate: Candidate, taken: Taken, rule: Rule) -> bool:
    number = rule.number(candidate.name)
    if number is None or taken.number is None:
        return (candidate.name, candidate.print) != (taken.name, taken.print)
    if candidate.name == taken.name:
        return candidate.print != taken.print and candidate.files >= taken.files
    return number > taken.number


def passed_over(watched: Watched, candidates: Iterable[Candidate], taken: Taken, rule: Rule) -> list[Candidate]:
    """Those that have come since the look before and will never be taken, because their number is below that of what was taken: either the number is no
    step, or the script has gone back."""
    return [
        c
        for c in candidates
        if c.files
        and c.name not in watched.since
        and c.name != taken.name
        and taken.name
        and not is_newer(c, taken, rule)
    ]


def names_none(text: str, rule: Rule) -> bool:
    """A pointer to something that no pattern matches: nothing would ever be taken."""
    return not rule.is_one(text) and not (text.isascii() and text.isdigit())


def _same_number(number: int | None, text: str) -> bool:
    return number is not None and text.isascii() and text.isdigit() and int(text) == number
