"""What tests and the demo do to node objects, and how it is undone: taints and cordons.

On a cluster of our own every node is bare, so whatever is there is taken away. On one that was there already the owner's taints and cordons are noted
when we come, and only what was added since is taken away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KUBERNETES = "node.kubernetes.io/"
"""Taints that Kubernetes puts and takes away by itself."""

Node = Mapping[str, Any]


@dataclass(frozen=True)
class Marks:
    """What stands on one node that keeps pods away."""

    cordoned: bool = False
    taints: frozenset[tuple[str, str]] = frozenset()
    """(key, effect)."""


def marks(nodes: Sequence[Node]) -> dict[str, Marks]:
    """By node. Pure."""
    return {
        n["metadata"]["name"]: Marks(
            bool(n["spec"].get("unschedulable")),
            frozenset((t["key"], t["effect"]) for t in n["spec"].get("taints", [])),
        )
        for n in nodes
    }


def repairs(nodes: Sequence[Node], before: Mapping[str, Marks]) -> list[tuple[str, ...]]:
    """Arguments of the kubectl calls that make the nodes as they were `before`; a node not named there was bare. Pure."""
    calls: list[tuple[str, ...]] = []
    for name, now in marks(nodes).items():
        was = before.get(name, Marks())
        if now.cordoned and not was.cordoned:
            calls.append(("uncordon", name))
        added = sorted(now.taints - was.taints)
        calls += [("taint", "node", name, f"{k}:{e}-") for k, e in added if not k.startswith(KUBERNETES)]
    return calls


def are_as_before(nodes: Sequence[Node], before: Mapping[str, Marks]) -> bool:
    """Nothing keeps pods away that did not before, and all nodes that could take pods are Ready. Pure."""
    now = marks(nodes)
    for node in nodes:
        name = node["metadata"]["name"]
        was = before.get(name, Marks())
        if now[name].taints - was.taints or (now[name].cordoned and not was.cordoned):
            return False
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])
        if not ready and not was.cordoned and not any(key.startswith(KUBERNETES) for key, _ in was.taints):
            return False
    return True
