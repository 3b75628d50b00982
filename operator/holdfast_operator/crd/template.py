"""What Holdfast knows of a pod template: enough to refuse what it cannot run, and no more (G5).

The whole pod schema would be half a megabyte and out of date with the next Kubernetes. So unknown fields are kept at template, spec and container,
and a server-side dry run of the pod finds the mistakes in them (G5). Declared are only the fields that Holdfast reads before it makes a pod.
"""

from typing import Any

from holdfast_api.names import TRAINER_CONTAINER
from holdfast_operator.crd.v1alpha1 import rule

_KEEP: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}

# Linux takes no longer single argument (128 KiB); a list of containers or arguments beyond these bounds is a mistake.
_ARGUMENT = {"type": "string", "maxLength": 131072}
_MAX_CONTAINERS = 32
_MAX_ARGUMENTS = 1024

_FIRST = "self.containers[0]"
_HAS_COMMAND = "(has({0}.command) && size({0}.command) > 0)"
_IS_TRAINER = f"c.name == '{TRAINER_CONTAINER}'"
_REMEDY = (
    "Holdfast runs the container under its agent and must know the command; add for example command: [python, train.py]"
)

# Two rules with fixed texts: the API server refuses a message that is computed over a list of containers as too expensive.
COMMAND_RULES = [
    rule(
        f"size(self.containers) == 0 || ({_FIRST}.name != '{TRAINER_CONTAINER}' && self.containers.exists(c, {_IS_TRAINER})) "
        f"|| {_HAS_COMMAND.format(_FIRST)}",
        f"spec.template.spec.containers[0].command is missing: {_REMEDY}",
    ),
    rule(
        f"size(self.containers) == 0 || {_FIRST}.name == '{TRAINER_CONTAINER}' "
        f"|| self.containers.all(c, !({_IS_TRAINER}) || {_HAS_COMMAND.format('c')})",
        f"spec.template.spec.containers[name={TRAINER_CONTAINER}].command is missing: {_REMEDY}",
    ),
]
"""The trainer is the container of that name, else the first (G3); its command is what the agent runs (G5)."""

RESTART_RULE = rule(
    "!has(self.restartPolicy) || self.restartPolicy == 'Never'",
    "spec.template.spec.restartPolicy must be Never or absent: every restart is a new attempt, made by Holdfast and not by the kubelet",
)
"""G1."""

_CONTAINER: dict[str, Any] = {
    **_KEEP,
    "description": "A container, as in a pod.",
    "required": ["name"],
    "properties": {
        "name": {
            "type": "string",
            "description": "Name of the container.",
            "minLength": 1,
            "maxLength": 63,
            "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        },
        "command": {
            "type": "array",
            "description": "Program and arguments. Required for the trainer: it takes the place of the image's ENTRYPOINT (G4).",
            "maxItems": _MAX_ARGUMENTS,
            "items": _ARGUMENT,
        },
    },
}

_SPEC: dict[str, Any] = {
    **_KEEP,
    "description": "Pod spec. Fields that are not listed here are kept and checked when the pod is made.",
    "required": ["containers"],
    "x-kubernetes-validations": [*COMMAND_RULES, RESTART_RULE],
    "properties": {
        "restartPolicy": {"type": "string", "description": "Never, or absent.", "maxLength": 63},
        "containers": {
            "type": "array",
            "description": "The container named `trainer`, else the first, is run under the agent.",
            "minItems": 1,
            "maxItems": _MAX_CONTAINERS,
            "items": _CONTAINER,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        },
    },
}


def _text_map(description: str, max_value: int) -> dict[str, Any]:
    values = {"type": "string", "maxLength": max_value}
    return {"type": "object", "description": description, "maxProperties": 256, "additionalProperties": values}


TEMPLATE_SCHEMA: dict[str, Any] = {
    **_KEEP,
    "required": ["spec"],
    "properties": {
        "metadata": {
            "type": "object",
            "description": "Labels and annotations of the pods; Holdfast adds its own.",
            "properties": {
                "labels": _text_map("Labels of every pod.", 63),
                "annotations": _text_map("Annotations of every pod.", 262144),
            },
        },
        "spec": _SPEC,
    },
}
