"""docs/failure-modes.md names tests: each of them is there."""

import re
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
PAGE = TOP / "docs" / "failure-modes.md"


def test_every_test_that_the_page_names_is_there() -> None:
    named, file = 0, ""
    for match in re.finditer(r"`(tests/[\w/]+\.py)?::(test_\w+)`", PAGE.read_text()):
        file = match[1] or file
        assert re.search(rf"def {match[2]}\b", (TOP / file).read_text()), f"{file} has no {match[2]}"
        named += 1
    assert named > 40
