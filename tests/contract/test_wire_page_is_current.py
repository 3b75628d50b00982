"""docs/wire.md is rendered from the contract; whoever changes the contract runs `make generate`."""

from pathlib import Path

from scripts import wire_page

PAGE = Path(__file__).resolve().parents[2] / "docs/wire.md"


def test_the_page_is_what_the_contract_renders() -> None:
    assert PAGE.read_text(encoding="utf-8") == wire_page.render(), "run `make generate`"


def test_every_message_and_its_comments_are_on_the_page() -> None:
    text = wire_page.render()
    assert "### AgentReport (schema 1)" in text
    assert "### CapturedSlot" in text
    assert "Newest boundary that all local ranks have passed." in text
