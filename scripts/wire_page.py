"""Renders docs/wire.md from the dataclasses of the contract, their docstrings and field comments. `scripts/generate` writes it, a test compares."""

import ast
import dataclasses
import inspect
import textwrap
from types import ModuleType
from typing import Any

from holdfast_api import config, manifest, messages, node_notices, peers, ranks

HEAD = """# What the parts say to each other

Rendered from `api/holdfast_api` by `scripts/generate`; the code is the source. All messages are strict JSON (UTF-8, no NaN, no duplicate keys).
A reader ignores fields that it does not know, and refuses an object without a field that has no default (marked *required*). A type with a
`schema` number is refused if the number is not the one below. Times are RFC 3339 in UTC; sizes end in `_bytes`, durations in `_seconds`.
"""


def render() -> str:
    parts = [HEAD]
    for module in (messages, peers, ranks, manifest, node_notices, config):
        parts.append(f"\n## {module.__name__}\n\n```\n{inspect.getdoc(module)}\n```\n")
        parts += [_type(cls) for cls in _types(module)]
    return "".join(parts)


def _types(module: ModuleType) -> list[type[Any]]:
    found = [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if c.__module__ == module.__name__ and dataclasses.is_dataclass(c)
    ]
    return sorted(found, key=lambda c: inspect.getsourcelines(c)[1])


def _type(cls: type[Any]) -> str:
    own = (cls.__doc__ or "").strip()
    about = "" if own.startswith(f"{cls.__name__}(") else f"\n{' '.join(own.split())}\n"
    schema = f" (schema {cls.SCHEMA})" if hasattr(cls, "SCHEMA") else ""
    comments = _comments(cls)
    rows = "".join(
        f"| `{f.name}` | `{_hint(f.type)}` | {_default(f)} | {comments.get(f.name, '')} |\n"
        for f in dataclasses.fields(cls)
        if f.name != "schema"
    )
    table = f"\n| field | type | default | |\n|---|---|---|---|\n{rows}" if rows else ""
    return f"\n### {cls.__name__}{schema}\n{about}{table}"


def _hint(hint: Any) -> str:
    text = (
        hint
        if isinstance(hint, str)
        else getattr(hint, "__name__", "")
        if isinstance(hint, type) and not hasattr(hint, "__args__")
        else str(hint)
    )
    for module in ("holdfast_api.layout.", "holdfast_api.messages.", "holdfast_api.manifest.", "datetime."):
        text = text.replace(module, "")
    return text.replace("|", "\\|")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "*required*"
    return f"`{field.default!r}`" if field.default is not dataclasses.MISSING else "empty"


def _comments(cls: type[Any]) -> dict[str, str]:
    """The string that follows a field in the source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for before, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[ast.unparse(before.target)] = " ".join(str(after.value.value).split()).replace("|", "\\|")
    return found
