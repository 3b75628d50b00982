"""From outcomes to a page: results/latest.json, the table and the plots in the README, the entries of summary.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.harness import figures, plot
from benchmarks.harness.contender import Kind
from benchmarks.harness.crew import Outcome
from benchmarks.harness.figures import Figure
from benchmarks.harness.settings import Scale

COLUMNS: tuple[tuple[str, Figure, str], ...] = (
    ("GB/s", figures.rate, ".2f"),
    ("seconds, median", figures.seconds, ".3f"),
    ("CPU s/GB", figures.cpu, ".2f"),
)


class Report:
    """Collected first, written at the end. A trial run (settings.py) is shown and leaves the files alone."""

    def __init__(self, question: str, folder: Path, outcomes: Sequence[Outcome], scale: Scale) -> None:
        self._question, self._folder, self._outcomes, self._scale = question, folder, outcomes, scale
        self._measures: list[dict[str, Any]] = []
        self._tables: list[str] = []
        self._plots: list[tuple[str, Any]] = []
        self.more: dict[str, Any] = {}
        """Goes into results/latest.json beside the outcomes."""
        self.size = f"State: {scale.mebibytes} MiB; {scale.rounds} rounds{' (QUICK=1)' if scale.quick else ''}."

    def add(self, measure: dict[str, Any]) -> None:
        self._measures.append(measure)

    def table(self, outcomes: Sequence[Outcome], columns: Sequence[tuple[str, Figure, str]] = COLUMNS) -> None:
        """One row per contender, medians with the range of the first column; who was left out stands below with the reason."""
        if outcomes:
            self._tables.append(rows(outcomes, columns))

    def text(self, text: str) -> None:
        self._tables.append(text)

    def bars(self, name: str, of: Figure, label: str, outcomes: Sequence[Outcome] | None = None) -> None:
        self._plots.append((name, lambda path: plot.bars(path, outcomes or self._outcomes, of, label)))

    def lines(self, name: str, series: dict[str, Any], x: str, y: str) -> None:
        self._plots.append((name, lambda path: plot.lines(path, series, x, y)))

    def write(self) -> None:
        """Raises RuntimeError if Holdfast itself could not be measured: earlier results stay."""
        goals = [(m["what"], results.measured(m), results.goal(m)) for m in self._measures]
        if not self._tables:
            self.table(self._outcomes)
        text = "\n\n".join([results.markdown(("measure", "measured", "goal"), goals), *self._tables, self.size])
        print(text, flush=True)
        if broken := [
            f"{o.contender.name}: {o.failure}" for o in self._outcomes if o.contender.kind is Kind.OURS and o.failure
        ]:
            raise RuntimeError("; ".join(broken))
        if self._scale.trial:
            print("   a trial: nothing is written", flush=True)
            return
        (self._folder / "results").mkdir(exist_ok=True)
        for name, draw in self._plots:
            draw(self._folder / "results" / name)
        data = {"mebibytes": self._scale.mebibytes, "rounds": self._scale.rounds, "quick": self._scale.quick}
        outcomes = [o.plain() for o in self._outcomes]
        results.write(self._question, {**data, **self.more, "contenders": outcomes}, text, self._measures)


def rows(outcomes: Sequence[Outcome], columns: Sequence[tuple[str, Figure, str]]) -> str:
    header = ("", "version", *(name for name, *_ in columns), "range", "beside the state, MB", "settings")
    lines = []
    for o in outcomes:
        c = o.contender
        name = f"**{c.name}**" if c.kind is Kind.OURS else f"*{c.name}*" if c.kind is Kind.FLOOR else c.name
        if o.failure or not o.samples:
            lines.append((name, c.version, *("-" for _ in columns), "", "", f"not measured: {o.failure}"))
            continue
        first = [columns[0][1](s) for s in o.samples]
        cells = [format(figures.median(o, of), form) for _, of, form in columns]
        spread = f"{min(first):{columns[0][2]}}-{max(first):{columns[0][2]}}"
        lines.append((name, c.version, *cells, spread, f"{o.anonymous_bytes / 1e6:.0f}", c.settings))
    return results.markdown(header, lines)
