"""The CustomResourceDefinition of TrainingJob: names, columns, the rules on the object as a whole, and the rendered schema."""

from typing import Any

from holdfast_api.names import GROUP, KIND, MAX_JOB_NAME, PLURAL, SHORT, VERSION
from holdfast_operator.crd.render import Schema, structural
from holdfast_operator.crd.template import TEMPLATE_SCHEMA
from holdfast_operator.crd.v1alpha1 import TrainingJobSpec, TrainingJobStatus, rule

CRD_NAME = f"{PLURAL}.{GROUP}"

# Names of pods and of the headless Service are made of the job's name (A2, A9), and a Service's name is a DNS label that starts with a letter.
NAME_RULES = [
    rule(
        f"self.metadata.name.size() <= {MAX_JOB_NAME}",
        f"metadata.name is too long: at most {MAX_JOB_NAME} characters, because names of pods are made of it",
        fieldPath=".metadata.name",
    ),
    rule(
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name must be lower-case letters, digits and dashes, starting with a letter: names of pods and of a Service are made of it",
        fieldPath=".metadata.name",
    ),
]


def _column(name: str, path: str, kind: str, description: str, *, wide: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "type": kind,
        "jsonPath": path,
        "description": description,
        **({"priority": 1} if wide else {}),
    }


COLUMNS = [
    _column("Phase", ".status.phase", "string", "Where the job stands."),
    _column("Workers", ".spec.workers", "integer", "Pods of the job."),
    _column("Attempt", ".status.attempt.number", "integer", "Number of the current attempt."),
    _column("Step", ".status.step", "integer", "Boundary number last reported."),
    _column("Checkpoint", ".status.lastCheckpoint.name", "string", "The newest committed checkpoint, ATTEMPT/SAVE."),
    _column("Preempted", ".status.counts.preemptions", "integer", "How often the job was preempted."),
    _column("Resume", ".status.lastResume", "string", "Time to resume of the last preemption."),
    _column("Age", ".metadata.creationTimestamp", "date", "Time since the job was created."),
    _column("Failures", ".status.counts.failures", "integer", "How often the job failed.", wide=True),
    _column("Reason", '.status.conditions[?(@.type=="Ready")].reason', "string", "Why it is Ready or not.", wide=True),
]


def schema() -> Schema:
    """The schema of the whole object."""
    return {
        "type": "object",
        "description": "A training job that outlives the machines it runs on.",
        "required": ["spec"],
        "x-kubernetes-validations": NAME_RULES,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            # Without a bound on the name the API server refuses the rules on it as too expensive.
            "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 253}}},
            "spec": structural(TrainingJobSpec, template=TEMPLATE_SCHEMA),
            "status": structural(TrainingJobStatus, defaults=False),
        },
    }


def custom_resource_definition() -> dict[str, Any]:
    """As it is written to crds/ and to the chart."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": CRD_NAME},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": [SHORT],
                "categories": ["holdfast"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": COLUMNS,
                    "schema": {"openAPIV3Schema": schema()},
                }
            ],
        },
    }
