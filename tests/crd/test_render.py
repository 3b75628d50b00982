"""Each construct that pydantic emits and a CRD lacks has one translation, and what has none is refused by name."""

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from holdfast_operator.crd.definition import schema
from holdfast_operator.crd.render import TEMPLATE_MARK, ModelError, structural
from holdfast_operator.crd.v1alpha1 import Model, TrainingJobSpec, TrainingJobStatus, in_words, rule, validations

Short = Annotated[str, Field(max_length=8)]


class Inner(Model):
    """Text of the class."""

    size: Annotated[int, Field(gt=0, lt=9)] = 1


def field(annotation: Any, default: Any = ...) -> dict[str, Any]:
    """The schema of one field of that type, or ModelError."""
    model = type(
        "One", (Model,), {"__annotations__": {"it": annotation}, **({} if default is ... else {"it": default})}
    )
    return dict(structural(model)["properties"]["it"])


def test_references_are_inlined_and_the_fields_own_text_wins() -> None:
    assert field(Inner)["properties"]["size"]["type"] == "integer"
    assert field(Inner)["description"] == "Text of the class."
    assert field(Annotated[Inner, Field(description="Text\nof the field.")])["description"] == "Text of the field."


def test_optional_means_absent() -> None:
    assert field(Short | None, None) == {"type": "string", "maxLength": 8}
    assert field(Inner | None, None)["type"] == "object"


def test_numeric_exclusive_bounds_become_flags() -> None:
    size = field(Inner)["properties"]["size"]
    assert (size["minimum"], size["exclusiveMinimum"], size["maximum"], size["exclusiveMaximum"]) == (0, True, 9, True)


def test_a_constant_becomes_an_enum_of_one() -> None:
    assert field(Literal["a"]) == {"enum": ["a"], "type": "string"}


def test_a_set_becomes_a_list_of_type_set() -> None:
    assert field(Annotated[set[Short], Field(max_length=3)])["x-kubernetes-list-type"] == "set"


def test_defaults_that_mean_absent_are_left_out() -> None:
    assert "default" not in field(Short, "")
    assert field(Short, "x")["default"] == "x"
    assert field(bool, False)["default"] is False
    assert field(int, 0)["default"] == 0


def test_kubernetes_extensions_are_kept() -> None:
    extra = validations(rule("self.size() > 2", "too short"))
    assert (
        field(Annotated[Short, Field(json_schema_extra=extra)])["x-kubernetes-validations"][0]["message"] == "too short"
    )


def test_titles_are_dropped() -> None:
    assert "title" not in str(structural(Inner))


class Loop(Model):
    again: "Loop | None" = None


class Twice(Model):
    first: Inner = Inner()
    second: Inner = Inner()


def test_a_type_used_twice_is_no_recursion_but_one_that_holds_itself_is_refused() -> None:
    assert set(structural(Twice)["properties"]) == {"first", "second"}
    with pytest.raises(ModelError, match="Loop holds itself"):
        structural(Loop)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int | Short, "One.it: a union of 2 types"),
        (str, "One.it: has no bound; give it one of maxLength"),
        (list[int], "One.it: has no bound; give it one of maxItems"),
        (Annotated[list[str], Field(max_length=2)], r"One.it\[\]: has no bound"),
        (dict[str, int], "One.it: has no bound; give it maxProperties"),
        (Any, "One.it: has no type"),
        (Annotated[int, Field(multiple_of=3)], "One.it: a CRD cannot express 'multipleOf'"),
        (Annotated[dict[str, Any], Field(json_schema_extra={TEMPLATE_MARK: True})], "no template schema was given"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_translation_is_refused_with_its_path(annotation: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        field(annotation)


def nodes(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, part in node.get("properties", {}).items():
        yield from nodes(part, f"{path}.{name}")
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")


def test_every_field_of_the_resource_says_what_it_means() -> None:
    standard = {"object.apiVersion", "object.kind", "object.metadata", "object.metadata.name"}
    silent = [
        path for path, node in nodes(schema(), "object") if not path.endswith("]") and not node.get("description")
    ]
    assert set(silent) == standard


def test_every_rule_names_its_field_and_says_what_to_do() -> None:
    messages = [r["message"] for _, node in nodes(schema(), "") for r in node.get("x-kubernetes-validations", [])]
    assert len(messages) > 8
    assert [m for m in messages if not m.startswith(("spec.", "metadata."))] == []


def test_no_default_is_written_into_a_status() -> None:
    assert [path for path, node in nodes(schema()["properties"]["status"], "status") if "default" in node] == []


def test_models_read_what_they_write() -> None:
    spec = TrainingJobSpec.model_validate({"checkpoint": {"storage": {"uri": "s3://abc/x"}}, "template": {}})
    assert TrainingJobSpec.model_validate(spec.to_wire()) == spec
    status = TrainingJobStatus(last_resume_milliseconds=3412, retry_at=datetime.fromisoformat("2026-01-01T00:00:00Z"))
    assert status.to_wire()["lastResume"] == "3.4s"
    assert TrainingJobStatus.model_validate(status.to_wire()) == status
    assert "lastResume" not in TrainingJobStatus().to_wire()


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (0, "0.0s"),
        (49, "0.0s"),
        (3412, "3.4s"),
        (59_949, "59.9s"),
        (59_960, "1m00s"),
        (125_000, "2m05s"),
        (3_599_600, "1h00m"),
        (3_725_000, "1h02m"),
    ],
)
def test_a_duration_fits_a_narrow_column(milliseconds: int, words: str) -> None:
    assert in_words(milliseconds) == words
