"""Which tensors must be finite (C4): parameters that are trained, and optimizer state. Frozen parameters and buffers may hold infinite values, an additive
mask for example; gradients as well, because a scaler skips those.

One rule for two looks: the agent's beside a save, so that a run that has gone wrong is known within a save, and the one at each load.
"""

from typing import Any


def must_be_finite(document: dict[str, Any]) -> list[str]:
    """Their names in the image. Raises KeyError, TypeError, AttributeError for a document that is none."""
    found = []
    for body in document["parts"].values():
        if isinstance(body, dict) and "orphans" in body and "state" in body:
            found += _tensor_names(body["state"]) + _tensor_names(body["orphans"])
        elif isinstance(body, dict) and "loose" in body:
            found += [n for key in body["parameters"] for n in _tensor_names(body["state"][key])]
    return found


def _tensor_names(tree: Any) -> list[str]:
    if isinstance(tree, list):
        return [n for v in tree for n in _tensor_names(v)]
    if isinstance(tree, dict):
        tag = next((t for t in ("$tensor", "$part") if t in tree), None)
        return [tree[tag]] if tag is not None else [n for v in tree.values() for n in _tensor_names(v)]
    return []
