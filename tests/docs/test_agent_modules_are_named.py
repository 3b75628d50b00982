"""docs/agent.md says in which file what is: no file of the agent is missing there, and none that it names is."""

import re

from tests.docs import named_tests

PAGE = named_tests.TOP / "docs" / "agent.md"
FOLDER = named_tests.TOP / "agent" / "holdfast_agent"


def test_every_file_has_its_place_on_the_page() -> None:
    table = PAGE.read_text(encoding="utf-8").split("## Where it is in the code", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"`(\w+\.py)`", table))
    there = {path.name for path in FOLDER.glob("*.py")} - {"__init__.py"}
    assert named == there
