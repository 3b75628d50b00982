"""Turns a pydantic model into the structural schema that an API server accepts.

`model_json_schema()` speaks a larger language than a CRD: references, nullable unions, constants, numeric exclusive bounds. Each of them has one
translation here; whatever has none is an error of the model, found when the files are generated and not when a cluster refuses them. Strings, lists
and maps without a bound are errors too: the API server refuses CEL rules whose cost it cannot bound.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

TEMPLATE_MARK = "x-holdfast-template"

_KEPT = frozenset(
    {"type", "description", "properties", "required", "items", "additionalProperties", "enum", "format", "pattern"}
    | {"minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
)
_DROPPED = frozenset({"title", "readOnly"})
_BOUND = {"string": ("maxLength", "enum", "format"), "array": ("maxItems",)}


class ModelError(Exception):
    """A model holds what a CRD cannot express. Raised while files are generated, never in a running operator."""


def structural(model: type[BaseModel], *, template: Schema | None = None, defaults: bool = True) -> Schema:
    """The structural schema of a model.

    `template` stands where a field carries TEMPLATE_MARK. `defaults=False` leaves them out: a status holds what was written, not what was defaulted.
    """
    whole = model.model_json_schema(by_alias=True, mode="validation" if defaults else "serialization")
    return _Renderer(whole.get("$defs", {}), template, defaults).node(whole, model.__name__)


class _Renderer:
    def __init__(self, definitions: Mapping[str, Schema], template: Schema | None, defaults: bool) -> None:
        self.definitions, self.template, self.defaults = definitions, template, defaults

    def node(self, raw: Mapping[str, Any], path: str, inside: tuple[str, ...] = ()) -> Schema:
        if TEMPLATE_MARK in raw:
            if self.template is None:
                raise ModelError(f"{path}: carries {TEMPLATE_MARK}, but no template schema was given")
            return {**self.template, "description": _one_line(raw["description"])}
        flat, inside = self._flatten(raw, path, inside)
        result: Schema = {}
        for key, value in flat.items():
            if key == "properties":
                result[key] = {name: self.node(part, f"{path}.{name}", inside) for name, part in value.items()}
            elif key == "required":
                # A computed field is always written and never asked for. An empty list would be dropped by the server, and differ for ever.
                if written := [name for name in value if not flat["properties"][name].get("readOnly")]:
                    result[key] = written
            elif key == "items":
                result[key] = self.node(value, f"{path}[]", inside)
            elif key == "additionalProperties":
                if isinstance(value, dict):  # True and False do not go with properties; pruning does the work
                    result[key] = self.node(value, f"{path}{{}}", inside)
            elif key == "default":
                if self.defaults and (cleaned := _without_none(value)) not in (None, "", {}, []):
                    result[key] = cleaned
            elif key == "description":
                result[key] = _one_line(value)
            elif key in ("exclusiveMinimum", "exclusiveMaximum"):
                result |= {key[9:].lower(): value, key: True}
            elif key == "const":
                result["enum"] = [value]
            elif key == "uniqueItems":
                result["x-kubernetes-list-type"] = "set"
            elif key in _KEPT or key.startswith("x-kubernetes-"):
                result[key] = value
            elif key not in _DROPPED and key != "$defs":
                raise ModelError(
                    f"{path}: a CRD cannot express {key!r}; change the model, or teach render.py to translate it"
                )
        return _bounded(result, path)

    def _flatten(self, raw: Mapping[str, Any], path: str, inside: tuple[str, ...]) -> tuple[Schema, tuple[str, ...]]:
        """The node without references and without the null arm of an optional field: optional means absent."""
        flat = dict(raw)
        while "$ref" in flat or "anyOf" in flat:
            if name := flat.pop("$ref", "").rpartition("/")[2]:
                if name in inside:
                    raise ModelError(f"{path}: {name} holds itself, and a CRD cannot express recursion")
                inside = (*inside, name)
                flat = {**self.definitions[name], **flat}
            elif arms := flat.pop("anyOf", None):
                arms = [arm for arm in arms if arm.get("type") != "null"]
                if len(arms) != 1:
                    raise ModelError(f"{path}: a union of {len(arms)} types; a CRD wants one type for each field")
                flat = {**arms[0], **flat}
        return flat, inside


def _bounded(node: Schema, path: str) -> Schema:
    kind = node.get("type")
    if kind is None:
        raise ModelError(f"{path}: has no type")
    wanted = _BOUND.get(kind, ())
    if wanted and not any(key in node for key in wanted):
        raise ModelError(
            f"{path}: has no bound; give it one of {', '.join(wanted)}, or CEL rules around it are refused"
        )
    if "additionalProperties" in node and "maxProperties" not in node:
        raise ModelError(f"{path}: has no bound; give it maxProperties (max_length of the dict)")
    return node


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        cleaned = {key: _without_none(item) for key, item in value.items() if item is not None}
        return {key: item for key, item in cleaned.items() if item not in ("", {}, [])}
    return value


def _one_line(text: str) -> str:
    return " ".join(text.split())
