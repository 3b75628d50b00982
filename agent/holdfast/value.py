"""A plain value that is saved and restored with the rest."""

import copy
from typing import Any

from holdfast import tree


class Value:
    """Holds any value made of None, numbers, text, bytes, tensors, lists, tuples, sets and dicts.

        best = holdfast.Value(float("inf"))
        ckpt = holdfast.Checkpointer(model=model, best=best)
        best.value = min(best.value, loss)

    Raises UnsupportedState at once for what could not be saved later.
    """

    def __init__(self, value: Any = None) -> None:
        tree.encode(value, "value", {})
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = copy.deepcopy(state["value"])

    def __repr__(self) -> str:
        return f"holdfast.Value({self.value!r})"
