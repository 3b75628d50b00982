"""Every committed file that is made from the models: what scripts/generate writes and tests/crd/test_generated.py compares."""

import yaml

from holdfast_operator.crd.definition import CRD_NAME, custom_resource_definition
from holdfast_operator.crd.reference import reference

_HEADER = "# Written by scripts/generate from operator/holdfast_operator/crd. Do not edit.\n"

_CHART_METADATA = f"""metadata:
  name: {CRD_NAME}
  labels:
    {{{{- include "holdfast.labels" . | nindent 4 }}}}
  {{{{- if .Values.crds.keep }}}}
  annotations:
    # Removing the release would remove every job with the definition.
    helm.sh/resource-policy: keep
  {{{{- end }}}}
"""


def files() -> dict[str, str]:
    """Path below the repository's root -> content."""
    plain = yaml.safe_dump(custom_resource_definition(), sort_keys=False, width=120)
    return {
        "crds/trainingjobs.yaml": _HEADER + plain,
        "charts/holdfast/templates/crds/trainingjobs.yaml": _HEADER + _for_chart(plain),
        "docs/api.md": reference(),
    }


def _for_chart(plain: str) -> str:
    """The same definition as a template: Helm never upgrades what lies in a chart's own crds/ folder."""
    metadata = f"metadata:\n  name: {CRD_NAME}\n"
    if plain.count(metadata) != 1 or "{{" in plain:
        raise ValueError("the definition cannot be made into a template: its metadata has changed, or it holds '{{'")
    return "{{- if .Values.crds.enabled }}\n" + plain.replace(metadata, _CHART_METADATA) + "{{- end }}\n"
