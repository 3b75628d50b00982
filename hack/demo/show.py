"""How the demo shows figures: tables, the timeline of a resume, a progress line. Pure functions from values to text."""

from collections.abc import Sequence

BAR = "█"
PHASES = {
    "quiesce": "notice until every rank stands at one step and has copied its state",
    "flush": "copied state until the commit record is in the object store",
    "start": "sealed until all agents of the new attempt have accepted it",
    "claim": "accepted until the new attempt has claimed what it continues",
    "fetch": "claimed until every byte is in memory and verified",
    "import": "what Python, torch and the process group still need after that",
    "load": "until it is in the tensors of every rank",
    "first-step": "loaded until the first new step",
}
"""Phases of a time to resume, in order, with what they mean."""


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned; numbers to the right."""
    cells = [[str(c) for c in header], *[[str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    numeric = [all(row[i][:1].isdigit() for row in cells[1:]) for i in range(len(header))]
    lines = []
    for n, row in enumerate(cells):
        lines.append(
            "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, numeric, strict=True)).rstrip()
        )
        if n == 0:
            lines.append("  ".join("-" * w for w in widths))
    return "\n".join(lines)


def timeline(phases: Sequence[tuple[str, int]], *, width: int = 60) -> str:
    """One bar per phase (name, milliseconds), each beginning where the one before ended."""
    total = sum(ms for _, ms in phases) or 1
    lines, begin = [], 0
    for name, ms in phases:
        left = begin * width // total
        length = max(1, (begin + ms) * width // total - left) if ms else 0
        lines.append(f"{name:>11} {ms:>7} ms |{' ' * left}{BAR * length}{' ' * (width - left - length)}|")
        begin += ms
    lines.append(f"{'together':>11} {begin:>7} ms")
    return "\n".join(lines)


def phase_table(phases: Sequence[tuple[str, int]]) -> str:
    """Each phase with its meaning, and their sum."""
    rows: list[tuple[object, ...]] = [(name, ms, PHASES.get(name, "")) for name, ms in phases]
    return table(("phase", "ms", "from, until"), [*rows, ("together", sum(ms for _, ms in phases), "")])


def progress(done: int, whole: int, note: str = "", *, width: int = 30) -> str:
    """`[#####.....] 12/60 note`."""
    filled = min(width, done * width // max(1, whole))
    return f"[{'#' * filled}{'.' * (width - filled)}] {done}/{whole} {note}".rstrip()
