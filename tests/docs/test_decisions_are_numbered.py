"""Decisions are numbered one after the other, each number once, and what the code names is there: several people add pages at once."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/decisions").glob("*.md"))
FOLDERS = ("agent", "api", "benchmarks", "charts", "cli", "docs", "examples", "hack", "operator", "scripts", "tests")
REFERENCE = re.compile(r"decisions/(\d{4})(-[a-z0-9-]+\.md)?")


def test_every_number_is_given_once_and_none_is_left_out() -> None:
    numbers = [int(page.name[:4]) for page in PAGES]
    assert numbers, "no pages were found"
    assert numbers == list(range(1, len(numbers) + 1)), [page.name for page in PAGES]


def test_a_decision_that_is_named_anywhere_exists() -> None:
    names = {page.name for page in PAGES}
    found = 0
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix not in {".py", ".md", ".yaml", ".toml"}:
                continue
            for number, rest in REFERENCE.findall(path.read_text(encoding="utf-8")):
                found += 1
                known = {name for name in names if name.startswith(number)}
                assert known if not rest else number + rest in known, (
                    f"{path.relative_to(ROOT)} names decision {number}{rest}"
                )
    assert found, "nothing was looked at"
