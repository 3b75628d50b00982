"""What the matrix would say: each kind of difference is found, with name, step and rank."""

from tests.matrix import compare
from tests.matrix.journal import Journal, Record, read


def record(start: int, *steps: int, end: bool = False, **changed: object) -> Record:
    entries = {n: {"loss": [f"l{n}"], "samples": [2 * n - 2, 2 * n - 1], "state": n} for n in steps}
    for name, value in changed.items():
        entries[steps[-1]][name] = value  # type: ignore[assignment]
    return Record(start=start, steps=entries, end={"model.w": "a", "next of torch": "b"} if end else None)  # type: ignore[arg-type]


WHOLE = [record(0, 1, 2, 3, 4, end=True)]


def test_a_run_that_did_a_step_twice_in_the_same_way_differs_in_nothing() -> None:
    lives = [[record(0, 1, 2)], [record(1, 2, 3)], [record(3, 4, end=True)]]
    assert compare.differences(WHOLE, lives, 4) == []


def test_another_loss_sample_or_state_is_named_with_life_rank_and_step() -> None:
    for name, value in (("loss", ["x"]), ("samples", [0]), ("state", 9)):
        lives = [[record(0, 1, 2)], [record(1, 2, **{name: value})], [record(2, 3, 4, end=True)]]  # type: ignore[arg-type]
        (words,) = compare.differences(WHOLE, lives, 4)
        assert words.startswith(f"life 1, rank 0, step 2: {name} is {value}"), words


def test_a_step_that_was_left_out_is_named() -> None:
    lives = [[record(0, 1)], [record(2, 3, 4, end=True)]]
    assert compare.differences(WHOLE, lives, 4) == ["rank 0: steps [2] were done in no life"]


def test_a_tensor_that_is_another_one_missing_or_too_many_is_named() -> None:
    last = record(0, 1, 2, 3, 4, end=True)
    last.end = {"model.w": "x", "new": "c"}
    assert compare.differences(WHOLE, [[last]], 4) == [
        "rank 0, at the end: model.w is x instead of a",
        "rank 0, at the end: next of torch is missing instead of b",
        "rank 0, at the end: new is c instead of missing",
    ]


def test_a_run_without_end_is_no_success() -> None:
    assert compare.differences(WHOLE, [[record(0, 1, 2, 3, 4)]], 4) == ["rank 0: the last life came to no end"]


def test_samples_that_are_lost_or_come_twice_are_counted() -> None:
    assert compare.lost_or_repeated(WHOLE, 8, 1) == []
    assert compare.lost_or_repeated(WHOLE, 9, 1) == ["in 1 epochs samples came so often: {8: 0}"]
    assert compare.lost_or_repeated([*WHOLE, record(0, 1)], 8, 1) == ["in 1 epochs samples came so often: {0: 2, 1: 2}"]


def test_a_notice_that_lost_a_step_is_found_and_a_kill_may() -> None:
    first = record(0, 1, 2, 3)
    first.moment = 3
    lives = [[first], [record(2, 3, 4, end=True)]]
    assert compare.gone_back(lives, [True, False]) == ["life 1 begins at boundary 2, and 3 was reached before it"]
    assert compare.gone_back(lives, [False, False]) == []


def test_a_life_that_begins_before_the_one_before_it_began_is_found() -> None:
    lives = [[record(0, 1)], [record(2, 3)], [record(1, 2)]]
    assert compare.gone_back(lives, [False] * 3) == ["life 2 begins at boundary 1, and 2 was reached before it"]


def test_ranks_that_begin_apart_are_found() -> None:
    assert compare.gone_back([[record(1, 2), record(2, 3)]], [False]) == [
        "life 0: ranks begin at different boundaries: [1, 2]"
    ]


def test_a_journal_is_read_as_it_was_written(tmp_path) -> None:  # type: ignore[no-untyped-def]
    journal = Journal(tmp_path, 1)
    journal.note(start=3)
    journal.note(step=4, loss=["x"], samples=[1], state=5)
    journal.note(moment=4)
    journal.note(end={"model.w": "a"})
    assert read(tmp_path, 1) == Record(3, 4, {4: {"loss": ["x"], "samples": [1], "state": 5}}, {"model.w": "a"})
    assert read(tmp_path, 0) == Record()
