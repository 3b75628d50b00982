"""Which labels say that a node is capacity that can be taken back at any time, cloud by cloud, and which taints such nodes carry (`preset` of spec.placement).

Terms of a node affinity are alternatives, and no cluster has all of these labels: "spot" is any of them, "on demand" none of them. Karpenter looks at the
first term that it knows, so its own label stands first.
"""

from dataclasses import dataclass
from typing import Any

from holdfast_operator.crd.v1alpha1 import CapacityPreset

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One label of spot nodes."""

    key: str
    values: tuple[str, ...]
    tainted: bool = False
    """Nodes carry a taint of the same key, so that only pods that tolerate it come to them."""


SPOT: tuple[Row, ...] = (
    Row("karpenter.sh/capacity-type", ("spot",)),
    Row("eks.amazonaws.com/capacityType", ("SPOT",)),
    Row("cloud.google.com/gke-spot", ("true",), tainted=True),
    Row("cloud.google.com/gke-provisioning", ("spot", "preemptible")),
    Row("cloud.google.com/gke-preemptible", ("true",), tainted=True),
    Row("kubernetes.azure.com/scalesetpriority", ("spot",), tainted=True),
)


def terms(preset: CapacityPreset) -> list[list[Manifest]]:
    """Alternatives; of each, all expressions must hold."""
    if preset is CapacityPreset.SPOT:
        return [[_expression(row, "In")] for row in SPOT]
    return [[_expression(row, "NotIn") for row in SPOT]]


def tolerations(preset: CapacityPreset) -> list[Manifest]:
    if preset is not CapacityPreset.SPOT:
        return []
    return [
        {"key": row.key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        for row in SPOT
        if row.tainted
        for value in row.values
    ]


def _expression(row: Row, operator: str) -> Manifest:
    return {"key": row.key, "operator": operator, "values": list(row.values)}
