"""One small SVG per question: medians as bars, every round as a dot, ours in another colour, floors as lines."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.contender import Kind
from benchmarks.harness.crew import Outcome
from benchmarks.harness.figures import Figure, median

COLOURS = {Kind.OURS: "#1f77b4", Kind.FLOOR: "#2ca02c", Kind.PEER: "#b0b0b0"}


def bars(path: Path, outcomes: Sequence[Outcome], of: Figure, label: str) -> None:
    """Horizontal bars, in the order given."""
    shown = [o for o in outcomes if o.samples and not o.failure]
    rows = [(o.contender.name, median(o, of), [of(s) for s in o.samples], COLOURS[o.contender.kind]) for o in shown]
    draw(path, rows, label)


def draw(path: Path, rows: Sequence[tuple[str, float, Sequence[float], str]], label: str) -> None:
    """(name, value, single values, colour) per bar."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "holdfast"
    plt.rcParams["svg.fonttype"] = "none"
    figure, axes = plt.subplots(figsize=(7, 0.35 * len(rows) + 0.9))
    for at, (_, value, single, colour) in enumerate(rows):
        axes.barh(at, value, color=colour, height=0.6)
        axes.plot(single, [at] * len(single), "k.", markersize=3)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def lines(path: Path, series: dict[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> None:
    """Name -> (x values, y values)."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "holdfast"
    plt.rcParams["svg.fonttype"] = "none"
    figure, axes = plt.subplots(figsize=(7, 2.6))
    for name, (at, values) in series.items():
        axes.plot(at, values, label=name, linewidth=1)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    axes.tick_params(labelsize=8)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
