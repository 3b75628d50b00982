"""When a checkpoint is whole, as a table over what a scan sees."""

import re

import pytest

from holdfast_directory.finding import Candidate, Rule, Taken, Watched, look, names_none, passed_over

ANY, NONE = Rule(), Taken()


def scans(
    *steps: tuple[float, list[Candidate], list[str]],
    rule: Rule = ANY,
    taken: Taken = NONE,
    ended: bool | None = None,
) -> list[str | None]:
    """What each scan at (seconds, candidates, pointers) finds; `ended` at the last."""
    watched, found = Watched(), []
    for n, (at, candidates, pointed) in enumerate(steps):
        last = n == len(steps) - 1
        watched, ripe = look(watched, candidates, pointed, taken, at, rule, ended=ended if last else None)
        found.append(ripe.name if ripe else None)
    return found


def c(name: str, print: str = "p", files: int = 3, marked: bool = False) -> Candidate:
    return Candidate(name, print, files, marked)


QUIET = Rule(quiet_seconds=10)


def test_quiet_is_counted_from_the_last_change() -> None:
    a, b = c("checkpoint-10", "a"), c("checkpoint-10", "b")
    assert scans((0, [a], []), (9, [a], []), (11, [b], []), (20, [b], []), (21, [b], []), rule=QUIET) == [
        None,
        None,
        None,
        None,
        "checkpoint-10",
    ]


def test_of_several_the_newest_is_taken_and_none_that_was() -> None:
    both = [c("checkpoint-9"), c("checkpoint-10")]
    assert scans((0, both, []), (10, both, []), rule=QUIET)[-1] == "checkpoint-10"
    assert scans((0, both, []), (10, both, []), rule=QUIET, taken=Taken("checkpoint-10", 10, "p"))[-1] is None
    assert scans((0, both, []), (10, both, []), rule=QUIET, taken=Taken("checkpoint-9", 9, "p"))[-1] == "checkpoint-10"


def test_where_a_pointer_is_nothing_else_counts() -> None:
    both = [c("global_step100"), c("global_step200")]
    assert scans((0, both, ["global_step100"]), (99, both, ["global_step100"]), rule=QUIET)[-1] == "global_step100"
    assert scans((0, both, ["100"]), (1, both, ["100\n"]), rule=QUIET)[-1] == "global_step100"  # as Megatron writes it
    # DeepSpeed: rank 0 writes `latest` while another rank is at its part still
    growing = [c("global_step100", "a"), c("global_step100", "b")]
    named = ["global_step100"]
    assert scans((0, growing[:1], named), (1, growing[1:], named), (2, growing[1:], named)) == [
        None,
        None,
        "global_step100",
    ]
    assert scans((0, both, ["else"]), (99, both, ["else"]), rule=QUIET)[-1] is None


def test_where_a_marker_is_named_nothing_else_counts() -> None:
    rule = Rule(marker="done", quiet_seconds=10)
    assert scans((0, [c("step-1")], []), (99, [c("step-1")], []), rule=rule)[-1] is None
    marked = [c("step-1", marked=True)]
    assert scans((0, marked, []), (1, marked, []), rule=rule) == ["step-1", "step-1"]


@pytest.mark.parametrize(("well", "found"), [(True, "step-1"), (False, None)])
def test_a_script_that_has_ended_well_has_written_what_there_is(well: bool, found: str | None) -> None:
    assert scans((0, [c("step-1")], []), (1, [c("step-1", "q")], []), rule=QUIET, ended=well)[-1] == found


def test_a_failed_script_leaves_what_its_marker_or_pointer_says() -> None:
    marked = [c("step-1", marked=True)]
    assert scans((0, marked, []), rule=Rule(marker="m"), ended=False) == ["step-1"]
    assert scans((0, [c("step-1")], ["step-1"]), ended=False) == ["step-1"]


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (c("checkpoint-10", "more", files=4), "checkpoint-10"),
        (c("checkpoint-10", "other", files=3), "checkpoint-10"),
        (c("checkpoint-10", "less", files=2), None),
        (c("checkpoint-10", "p", files=3), None),
    ],
)
def test_what_changes_after_it_was_taken_was_not_whole_and_is_taken_again(now: Candidate, found: str | None) -> None:
    """A script that paused for longer than quiet_seconds; what loses files is being removed."""
    taken = Taken("checkpoint-10", 10, "p", 3)
    assert scans((0, [now], []), (10, [now], []), rule=QUIET, taken=taken)[-1] == found


def test_what_was_there_before_the_script_is_not_whole_because_it_keeps_quiet() -> None:
    """It may be what a killed one has left."""
    old, new = c("checkpoint-10"), c("checkpoint-10", "q")
    watched = Watched.leftovers([old])
    watched, ripe = look(watched, [old], [], NONE, 99.0, QUIET)
    assert ripe is None
    assert look(watched, [old], ["checkpoint-10"], NONE, 100.0, QUIET)[1] == old
    assert look(watched, [old], [], NONE, 100.0, QUIET, ended=True)[1] == old
    watched, ripe = look(watched, [new], [], NONE, 100.0, QUIET)
    assert ripe is None
    assert look(watched, [new], [], NONE, 110.0, QUIET)[1] == new


def test_what_will_never_be_taken_is_found_when_it_comes() -> None:
    taken = Taken("epoch=1-val_loss=0.52.ckpt", 52, "p", 1)
    before = Watched({taken.name: ("p", 0.0)})
    worse, better = c("epoch=2-val_loss=0.61.ckpt"), c("epoch=2-val_loss=0.41.ckpt")
    assert passed_over(before, [worse, better], taken, ANY) == [better]
    assert passed_over(Watched({better.name: ("p", 0.0)}), [better], taken, ANY) == []
    assert passed_over(before, [better], NONE, ANY) == []


def test_a_pointer_to_what_no_pattern_matches_names_none() -> None:
    assert [names_none(t, ANY) for t in ("best", "release", "global_step5", "500")] == [True, True, False, False]


@pytest.mark.parametrize(
    ("name", "folder", "taken"),
    [
        ("checkpoint-5", True, True),
        ("last-5.ckpt", False, True),
        ("core.12345", False, False),
        ("events.out.tfevents.17.host.5.0", False, False),
    ],
)
def test_without_a_pattern_a_file_is_a_checkpoint_only_if_it_is_called_so(name: str, folder: bool, taken: bool) -> None:
    assert ANY.takes(name, folder=folder) is taken
    assert Rule(re.compile(r".*?(\d+)")).takes(name, folder=False) is ("ckpt" not in name)


def test_an_empty_folder_is_no_checkpoint() -> None:
    empty = [c("step-1", files=0)]
    assert scans((0, empty, []), (99, empty, []), rule=QUIET, ended=True)[-1] is None


def test_a_checkpoint_without_number_is_new_when_it_has_changed() -> None:
    rule = Rule(re.compile(r"last\.pt"), quiet_seconds=5)
    old, new = [c("last.pt", "a")], [c("last.pt", "b")]
    assert scans((0, old, []), (5, old, []), (6, new, []), (11, new, []), rule=rule) == [
        None,
        "last.pt",
        None,
        "last.pt",
    ]
    assert scans((0, old, []), (5, old, []), rule=rule, taken=Taken("last.pt", None, "a"))[-1] is None


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("checkpoint-500", 500),
        ("global_step100", 100),
        ("iter_0000100", 100),
        ("1000", 1000),
        ("epoch=3-step=1200.ckpt", 1200),
    ],
)
def test_names_of_frameworks(name: str, number: int) -> None:
    assert Rule().is_one(name)
    assert Rule().number(name) == number


@pytest.mark.parametrize(
    "name",
    ["1000.orbax-checkpoint-tmp-1699", "tmp-checkpoint-5", ".holdfast", "runs", "model.safetensors", "checkpoint-"],
)
def test_what_is_no_checkpoint(name: str) -> None:
    assert not Rule().is_one(name)
