"""Versions of programs stand in one place, and builds are pinned."""

import re

from hack.cluster.artefacts import catalogue, programs


def test_the_version_of_kubernetes_comes_from_the_module_file() -> None:
    assert programs.kubernetes_version("require (\n\tk8s.io/kubernetes v1.36.2\n)\n") == "v1.36.2"
    flags = programs.version_flags("v1.36.2")
    assert "gitVersion=v1.36.2" in flags
    assert "gitMinor=36" in flags


def test_no_program_is_installed_at_a_moving_version() -> None:
    for package in (programs.VERSITYGW, programs.HELM):
        assert re.search(r"@v\d+\.\d+\.\d+$", package)


def test_a_cluster_without_images_needs_no_torch() -> None:
    assert {one.name for one in catalogue.for_cluster(images=True)} - {
        one.name for one in catalogue.for_cluster(images=False)
    } == {"torch", "images"}


def test_every_artefact_has_a_name_of_its_own() -> None:
    names = [one.name for one in catalogue.for_cluster(images=True)]
    assert len(names) == len(set(names))
