"""docs/failure-modes.md names tests: each of them is there."""

from tests.docs import named_tests

PAGE = named_tests.TOP / "docs" / "failure-modes.md"


def test_every_test_that_the_page_names_is_there() -> None:
    assert named_tests.missing(PAGE) == []
    assert len(named_tests.in_page(PAGE)) > 40
