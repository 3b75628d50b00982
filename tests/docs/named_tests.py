"""Pages that name tests as `tests/…/file.py::test_name`, a further one of the same file as `::test_name`."""

import re
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


def in_page(page: Path) -> list[tuple[str, str]]:
    """(file, test), in order."""
    found, file = [], ""
    for match in re.finditer(r"`(tests/[\w/]+\.py)?::(test_\w+)`", page.read_text()):
        file = match[1] or file
        found.append((file, match[2]))
    return found


def missing(page: Path) -> list[str]:
    """Those that are not there."""
    return [
        f"{file} has no {test}"
        for file, test in in_page(page)
        if not (TOP / file).exists() or not re.search(rf"def {test}\b", (TOP / file).read_text())
    ]
