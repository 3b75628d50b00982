"""Every question is where the pages say it is."""

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
