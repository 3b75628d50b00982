"""Every question is where the pages say it is."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.__main__ import ENGINE, GPU, QUESTIONS

FOLDER = Path(results.__file__).parent


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_has_a_program_a_page_with_a_table_and_a_line_in_the_list(question: str) -> None:
    page = (FOLDER / question / "README.md").read_text()
    assert (FOLDER / question / "run.py").exists()
    assert page.count(results.BEGIN) == page.count(results.END) == 1
    assert page.startswith("# ")
    listed = (FOLDER / "README.md").read_text().split(results.BEGIN)[0]
    assert f"| [{question}]({question}/) |" in listed


def test_folders_and_questions_are_the_same() -> None:
    folders = {path.parent.name for path in FOLDER.glob("*/run.py")}
    assert folders == set(QUESTIONS)
    assert not set(ENGINE) & set(GPU)


def test_the_rows_of_the_table_of_targets_name_questions_and_measures_that_exist() -> None:
    page = (FOLDER / "README.md").read_text()
    rows = [
        line for line in page.split("## What is to be reached")[1].split("## ")[0].splitlines() if line.startswith("| ")
    ]
    named = {(q, m) for row in rows[2:] for q, m in re.findall(r"`([a-z_]+)\.([a-z0-9_*]+)`", row)}
    assert {q for q, _ in named} <= set(QUESTIONS)
    programs = {q: (FOLDER / q / "run.py").read_text() for q, _ in named}
    known = {m["id"] for m in json.loads((FOLDER / "summary.json").read_text())}
    unknown = [f"{q}.{m}" for q, m in named if m != "*" and f"{q}.{m}" not in known]
    # Not measured yet: then the program says that it makes them.
    assert all(f'"{name.partition(".")[0]}.' in programs[name.partition(".")[0]] for name in unknown)
    assert len(rows) > 15
