"""docs/api.md, written from the schema: what a person may write, what it means, and what is refused.

The page is made from the schema that the API server enforces, not from the models, so that the two cannot tell different stories.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from holdfast_api.names import GROUP, KIND, SHORT, VERSION
from holdfast_operator.crd.definition import COLUMNS, schema
from holdfast_operator.crd.render import Schema

_HEAD = f"""<!-- Written by scripts/generate from operator/holdfast_operator/crd. Do not edit. -->
# {KIND} ({GROUP}/{VERSION})

Short name `{SHORT}`, category `holdfast`. Fields are added, never renamed, removed or tightened. Codes in brackets such as A9 are rules of the protocol.
Ask for strict checking (`kubectl apply --validate=strict`, the default of kubectl): otherwise a misspelled field is dropped without a word.
"""


@dataclass(frozen=True)
class _Section:
    """One object of the schema, or of a list of objects."""

    path: str
    schema: Schema


def reference() -> str:
    """The whole page, as Markdown."""
    parts = [_HEAD, *_rules(schema())]
    for section in _sections("spec", schema()["properties"]["spec"]):
        parts.append(_section_text(section))
    parts.append(_columns())
    for section in _sections("status", schema()["properties"]["status"]):
        parts.append(_section_text(section))
    return "\n".join(parts)


def _sections(path: str, node: Schema) -> Iterator[_Section]:
    """The object itself, then the objects in it, in the order of the schema."""
    yield _Section(path, node)
    for name, part in node["properties"].items():
        inner, suffix = (part["items"], "[]") if part["type"] == "array" else (part, "")
        if "properties" in inner:
            yield from _sections(f"{path}.{name}{suffix}", inner)


def _section_text(section: _Section) -> str:
    required = section.schema.get("required", [])
    rows = [
        f"| `{name}` | {_type(part)} | {_default(part, name in required)} | {_cell(part.get('description', ''))} |"
        for name, part in section.schema["properties"].items()
    ]
    lines = [f"## {section.path}\n", section.schema.get("description", ""), ""]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join([*lines, *_rules(section.schema)])


def _rules(node: Schema) -> list[str]:
    rules = node.get("x-kubernetes-validations", [])
    return ["Refused with:\n", *(f"- {rule['message']}" for rule in rules), ""] if rules else []


def _columns() -> str:
    rows = [f"| {c['name']} | {'wide' if c.get('priority') else 'yes'} | {c['description']} |" for c in COLUMNS]
    return "\n".join(["## What `kubectl get` prints\n", "| column | printed | meaning |", "|---|---|---|", *rows, ""])


def _default(part: Schema, required: bool) -> str:
    if required:
        return "required"
    return f"`{_short(part['default'])}`" if "default" in part else ""


def _short(value: Any) -> str:
    """A default as it is written in a manifest, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(item)}" for key, item in value.items()) + "}"
    return str(value)


def _type(part: Schema) -> str:
    """Type and bounds in words."""
    match part:
        case {"enum": values}:
            return "one of " + ", ".join(f"`{value}`" for value in values)
        case {"type": "array", "items": items}:
            what = "objects" if "properties" in items else f"{items['type']}s"
            return f"list of {what}, at most {part['maxItems']}"
        case {"type": "object", "additionalProperties": _}:
            return f"map of strings, at most {part['maxProperties']}"
        case {"format": "date-time"}:
            return "time"
        case {"type": "string", "maxLength": length}:
            return f"string, at most {length} characters"
        case {"minimum": low, "maximum": high}:
            return f"{part['type']}, {low} to {high}"
    return str(part["type"])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
