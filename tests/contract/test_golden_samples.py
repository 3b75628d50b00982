"""B10: whatever a released version has written stays readable, for ever. tests/golden holds one sample of each type."""

import json
from pathlib import Path
from typing import Any

import pytest
from wire_types import rank_types, sample, schema_types

from holdfast_api import codec, ranks
from holdfast_api.errors import Malformed, WrongSchema

GOLDEN = Path(__file__).parents[1] / "golden"
BY_NAME = {cls.__name__: cls for cls in schema_types()}
RANK_NAMES = {cls.__name__ for cls in rank_types()}
SAMPLES = sorted(GOLDEN.glob("*.v*.json"))
LINES = sorted(GOLDEN.glob("*.line.json"))


@pytest.mark.parametrize("cls", schema_types(), ids=lambda c: c.__name__)
def test_every_type_with_a_schema_has_a_golden_sample_of_its_present_number(cls: Any) -> None:
    assert (GOLDEN / f"{cls.__name__}.v{cls.SCHEMA}.json").exists(), (
        "run tests/golden/write_missing and commit the new file"
    )


@pytest.mark.parametrize("cls", rank_types(), ids=lambda c: c.__name__)
def test_every_line_of_the_rank_socket_has_a_golden_sample(cls: Any) -> None:
    assert (GOLDEN / f"{cls.__name__}.line.json").exists(), "run tests/golden/write_missing and commit the new file"


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.name)
def test_todays_code_reads_what_was_written_and_loses_nothing(path: Path) -> None:
    cls = BY_NAME[path.name.split(".")[0]]
    written = json.loads(path.read_bytes())
    value = codec.from_json(cls, path.read_bytes())
    assert _restricted(codec.to_plain(value), written) == written


@pytest.mark.parametrize("path", LINES, ids=lambda p: p.name)
def test_todays_code_reads_the_lines_that_were_written(path: Path) -> None:
    value = ranks.from_line(path.read_bytes())
    assert type(value).__name__ in RANK_NAMES
    written = json.loads(path.read_bytes())
    assert _restricted(json.loads(ranks.to_line(value)), written) == written


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.name)
def test_another_schema_number_is_refused_and_named(path: Path) -> None:
    cls = BY_NAME[path.name.split(".")[0]]
    changed = json.loads(path.read_bytes()) | {"schema": cls.SCHEMA + 1}
    with pytest.raises(WrongSchema, match=str(cls.SCHEMA + 1)):
        codec.from_json(cls, json.dumps(changed).encode())


@pytest.mark.parametrize("cls", schema_types(), ids=lambda c: c.__name__)
def test_a_missing_required_field_is_refused_by_name_and_an_unknown_one_ignored(cls: Any) -> None:
    plain = codec.to_plain(sample(cls))
    assert codec.from_plain(cls, plain | {"of_a_later_release": {"deep": [1, None]}}) == sample(cls)
    for name, (_, required) in codec._fields(cls).items():
        if required:
            with pytest.raises(Malformed, match=rf"\.{name}: missing"):
                codec.from_plain(cls, {k: v for k, v in plain.items() if k != name})


def _restricted(found: Any, pattern: Any) -> Any:
    """`found` without the fields that a later release has added."""
    if isinstance(pattern, dict) and isinstance(found, dict):
        return {key: _restricted(found[key], pattern[key]) for key in pattern}
    if isinstance(pattern, list) and isinstance(found, list) and len(pattern) == len(found):
        return [_restricted(f, p) for f, p in zip(found, pattern, strict=True)]
    return found
