"""What scripts/generate writes is committed as it writes it: the diff of the YAML is the review of the API."""

from pathlib import Path

import pytest
import yaml

from holdfast_operator.crd.generated import files

TOP = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted(files()))
def test_the_committed_file_is_what_the_models_say(path: str) -> None:
    assert (TOP / path).read_text(encoding="utf-8") == files()[path], "run scripts/generate and commit what it writes"


def test_the_chart_holds_the_same_definition_as_crds() -> None:
    plain = yaml.safe_load(files()["crds/trainingjobs.yaml"])
    template = files()["charts/holdfast/templates/crds/trainingjobs.yaml"]
    lines = [line for line in template.splitlines() if "{{" not in line]
    assert yaml.safe_load("\n".join(lines))["spec"] == plain["spec"]


def test_the_reference_names_every_field_that_may_be_written() -> None:
    page = files()["docs/api.md"]
    spec = yaml.safe_load(files()["crds/trainingjobs.yaml"])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    def names(node: dict[str, object]) -> set[str]:
        properties = node.get("properties", {})
        assert isinstance(properties, dict)
        found = set(properties)
        for part in properties.values():
            found |= names(part) | names(part.get("items", {}))
        return found

    assert [name for name in sorted(names(spec["properties"]["spec"])) if f"`{name}`" not in page] == []
