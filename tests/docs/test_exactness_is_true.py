"""docs/exactness.md names tests and kinds: the tests are there, and every kind that the matrix draws has a line that claims it."""

import re

from tests.docs import named_tests
from tests.matrix import worlds

PAGE = named_tests.TOP / "docs" / "exactness.md"
ROWS = [line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if line.startswith("| ") and "---" not in line]


def test_every_test_that_the_page_names_is_there() -> None:
    assert named_tests.missing(PAGE) == []
    assert len(named_tests.in_page(PAGE)) > 40


def test_every_line_names_a_test_or_a_page() -> None:
    rows = [row for row in ROWS if "shown by" not in row[-1]]
    assert len(rows) > 40
    assert [row[0] for row in rows if not re.search(r"the matrix|tests/|\]\(", row[-1])] == []


def test_every_kind_of_the_matrix_has_a_line_and_no_line_claims_another() -> None:
    drawn = {*worlds.LOOPS, *worlds.PRECISIONS, *worlds.LOADERS, *worlds.DISTRIBUTIONS}
    claimed = {m[1] for row in ROWS if len(row) == 4 and (m := re.fullmatch(r" `(.+)` ", row[1]))}
    assert claimed == drawn
