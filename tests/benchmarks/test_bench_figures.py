"""The pure parts of the harness: who goes when, medians and ratios, goals in both directions, entries of the summary."""

import json
import statistics
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.harness import figures
from benchmarks.harness.contender import Contender, Kind, Sample
from benchmarks.harness.crew import Outcome
from benchmarks.harness.figures import Goal
from benchmarks.harness.order import rotated


def outcome(name: str, kind: Kind, *seconds: float, failure: str = "") -> Outcome:
    contender = Contender(name, kind, lambda: iter(()), "1.0")
    return Outcome(contender, [Sample(s, 10**9, s / 2) for s in seconds], failure=failure)


def test_everybody_is_at_every_place_equally_often_and_once_per_round() -> None:
    names = ["ours", "floor", "a", "b"]
    rounds = [rotated(names, n) for n in range(8)]
    assert all(sorted(r) == sorted(names) for r in rounds)
    for place in range(4):
        assert sorted(r[place] for r in rounds) == sorted(names * 2)
    assert rotated([], 3) == []


def test_a_ratio_is_taken_within_a_round_so_a_slow_round_does_not_count_against_anybody() -> None:
    ours, floor = outcome("ours", Kind.OURS, 1.1, 11.0, 1.1), outcome("floor", Kind.FLOOR, 1.0, 10.0, 1.0)
    assert figures.paired(ours, floor, figures.seconds) == pytest.approx([1.1, 1.1, 1.1])
    assert figures.paired(ours, floor, figures.rate) == pytest.approx([1 / 1.1] * 3)


def test_contenders_of_unequal_rounds_are_never_compared() -> None:
    with pytest.raises(ValueError, match="shorter"):
        figures.paired(outcome("a", Kind.OURS, 1, 2), outcome("b", Kind.FLOOR, 1), figures.seconds)


def test_the_best_peer_counts_and_one_that_failed_does_not() -> None:
    peers = [
        outcome("slow", Kind.PEER, 3, 3),
        outcome("fast", Kind.PEER, 2, 2),
        outcome("broken", Kind.PEER, 0.1, failure="EINVAL"),
        outcome("silent", Kind.PEER),
    ]
    assert figures.best(peers, figures.seconds, larger=False).contender.name == "fast"
    assert figures.best(peers, figures.rate, larger=True).contender.name == "fast"
    assert figures.best([peers[2]], figures.seconds, larger=False) is None
    assert [o.contender.name for o in figures.running(peers, Kind.PEER)] == ["slow", "fast"]


def test_a_peer_that_did_not_run_stands_in_the_summary_with_its_reason() -> None:
    table = figures.table_of_peers(
        [
            outcome("broken", Kind.PEER, failure="EINVAL"),
            outcome("fast", Kind.PEER, 2.0),
            outcome("f", Kind.FLOOR, 1.0),
        ],
        figures.seconds,
    )
    assert table == {"broken": {"version": "1.0", "not_measured": "EINVAL"}, "fast": {"version": "1.0", "value": 2.0}}


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (Goal(1.08), 1.08, True),
        (Goal(1.08), 1.09, False),
        (Goal(0.97, at_least=True), 0.97, True),
        (Goal(0.97, at_least=True), 0.96, False),
        (Goal(3.3, at_least=True), 3.4, True),
    ],
)
def test_a_goal_is_a_bound_in_its_own_direction(goal: Goal, value: float, met: bool) -> None:
    assert goal.met(value) is met
    measure = figures.measure("q.m", "what", "GB/s", 5.0, goal=goal, ratios=[value] * 3, floor=4.0, floor_name="raw")
    assert (measure["met"], measure["at_least"], measure["goal_on"]) == (met, goal.at_least, "ratio")


def test_without_ratios_the_goal_is_about_the_figure_itself() -> None:
    measure = figures.measure("q.m", "what", "us", 48.0, goal=Goal(50), values=[47.0, 48.0, 90.0])
    assert (measure["ratio"], measure["goal_on"], measure["met"], measure["spread"]["max"]) == (
        None,
        "ours",
        True,
        90.0,
    )


def test_the_ratio_of_an_entry_is_the_median_of_the_rounds_with_their_spread() -> None:
    ratios = [1.0, 1.3, 1.05]
    measure = figures.measure("q.m", "what", "s", 1.0, goal=Goal(1.08), ratios=ratios)
    assert measure["ratio"] == statistics.median(ratios)
    assert (measure["spread"]["min"], measure["spread"]["max"], measure["met"]) == (1.0, 1.3, True)


def test_what_could_not_be_measured_is_neither_met_nor_missed() -> None:
    measure = figures.measure("q.m", "what", "GB/s", None, goal=Goal(1.08), skipped="no CUDA device")
    assert measure["met"] is None
    assert results.measured(measure) == "not measured: no CUDA device"
    assert results.goal(measure) == "≤ 1.08 GB/s: not measured"
    ratio = figures.measure("q.m", "what", "GB/s", None, goal=Goal(1.08), skipped="no CUDA device", of_ratio=True)
    assert results.goal(ratio) == "≤ 1.08 ×: not measured"


def test_the_words_of_a_goal_and_of_a_figure() -> None:
    ratio = figures.measure("q.m", "w", "GB/s", 2.9, goal=Goal(0.97, at_least=True), ratios=[0.98], floor=3.0)
    assert results.measured(ratio) == "0.98 × (2.9 GB/s; floor 3.0)"
    assert results.goal(ratio) == "≥ 0.97 ×: met"
    older = {"id": "a.b", "what": "w", "unit": "ms", "ours": 77, "goal": 250, "met": True}
    assert (results.measured(older), results.goal(older)) == ("77 ms", "≤ 250 ms: met")


def test_the_summary_keeps_what_others_have_measured_and_replaces_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "HERE", tmp_path)
    (tmp_path / "q").mkdir()
    for page in (tmp_path / "README.md", tmp_path / "q/README.md"):
        page.write_text(f"before\n{results.BEGIN}\n{results.END}\nafter\n")
    older = {
        "id": "z.other",
        "what": "another",
        "unit": "ms",
        "ours": 1,
        "goal": None,
        "met": None,
        "machine": {"commit": "a1"},
    }
    (tmp_path / "summary.json").write_text(json.dumps([older, {**older, "id": "q.m", "ours": 9}]))
    results.begin()
    new = figures.measure("q.m", "mine", "s", 2.0, goal=Goal(3))
    results.write("q", {"rounds": []}, "| table |", [new])
    found = {m["id"]: m for m in json.loads((tmp_path / "summary.json").read_text())}
    assert older.items() <= found["z.other"].items()
    assert (found["z.other"]["commit"], found["q.m"]["ours"]) == ("a1", 2.0)
    assert found["q.m"]["commit"] == found["q.m"]["machine"]["commit"]
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "| mine | 2.0 s | ≤ 3 s: met |" in text
    assert "| another | 1 ms | none set |" in text


FIELDS = {"id", "unit", "ours", "floor", "peers", "ratio", "goal", "met", "spread", "machine", "commit"}


def test_an_entry_has_every_field_whatever_its_question_knows() -> None:
    bare = {"id": "q.m", "what": "w", "unit": "ms", "ours": 3, "goal": None, "met": None, "median": 2, "max": 3}
    entry = results.entry(bare, {"commit": "a1"})
    assert entry.keys() >= FIELDS
    assert (entry["spread"], entry["peers"], entry["commit"]) == ({"median": 2, "max": 3}, {}, "a1")
    whole = figures.measure("q.m", "w", "s", 1.0, goal=Goal(2), ratios=[1.0], peers={"p": {"version": "1", "value": 2}})
    assert whole.items() <= results.entry(whole, {}).items()


def test_every_entry_of_the_summary_has_every_field_and_peers_with_their_versions() -> None:
    found = json.loads((Path(results.__file__).parent / "summary.json").read_text())
    assert [m["id"] for m in found if not m.keys() >= FIELDS or not m["commit"] or not m["machine"]["cpu"]] == []
    nameless = [(m["id"], name) for m in found for name, p in m["peers"].items() if not p["version"]]
    assert nameless == []
