"""Image archives, the layout they go into, and the partial archives that nodes get."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from hack.cluster.artefacts import image_archive, oci, project_images
from hack.cluster.artefacts.oci import Image
from hack.cluster.paths import REPOSITORY


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin" / "tool").write_text("#!/bin/sh\n")
    (tree / "proc").mkdir()
    (tree / "proc" / "of-the-builder").touch()
    made = tmp_path / "image.tar"
    image_archive.write(made, "localhost/x:1", tree, image_archive.ImageConfig(entrypoint=["/bin/tool"], user="1:1"))
    return made


def read_stream(image: Image, layout: Path, known: set[str]) -> dict[str, bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w|") as stream:
        oci.write_stream(stream, image, layout, known)
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as stream:
        found = {entry.name: stream.extractfile(entry) for entry in stream.getmembers()}
        return {name: content.read() for name, content in found.items() if content is not None}


def manifest(layout: Path, digest: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(oci.blob(layout, digest).read_text())
    return found


def test_the_same_tree_gives_the_same_archive(archive: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    config = image_archive.ImageConfig(entrypoint=["/bin/tool"], user="1:1")
    image_archive.write(again, "localhost/x:1", tmp_path / "tree", config)
    layouts = [oci.unpack_archive(one, tmp_path / one.stem) for one in (archive, again)]
    assert layouts[0] == layouts[1]


def test_what_the_kernel_provides_is_not_in_the_image(archive: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    described = manifest(layout, oci.unpack_archive(archive, layout))
    with tarfile.open(oci.blob(layout, described["layers"][0]["digest"])) as layer:
        assert "./proc" in layer.getnames()
        assert "./proc/of-the-builder" not in layer.getnames()


def test_an_image_goes_whole_to_a_node_that_has_nothing_of_it(archive: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    image = Image("localhost/x:1", oci.unpack_archive(archive, layout))
    sent = read_stream(image, layout, set())
    index = json.loads(sent["index.json"])
    assert index["manifests"][0]["annotations"] == {"io.containerd.image.name": "localhost/x:1"}
    parts = {image.digest, *oci.parts_of(manifest(layout, image.digest))}
    assert {name for name in sent if name.startswith("blobs/")} == {f"blobs/{part.replace(':', '/')}" for part in parts}


def test_layers_that_a_node_has_are_not_sent_again(archive: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    image = Image("localhost/x:1", oci.unpack_archive(archive, layout))
    config, layer = oci.parts_of(manifest(layout, image.digest))
    sent = read_stream(image, layout, {layer})
    assert f"blobs/{layer.replace(':', '/')}" not in sent
    assert f"blobs/{config.replace(':', '/')}" in sent


def test_a_layer_that_is_not_what_its_digest_says_is_refused(archive: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(archive.read_bytes().replace(b"#!/bin/sh", b"#!/bin/xx"))
    with pytest.raises(ValueError, match="its content is not sha256:"):
        oci.unpack_archive(damaged, tmp_path / "layout")


def test_the_ignore_file_lets_through_what_the_images_are_keyed_by() -> None:
    text = (REPOSITORY / ".dockerignore").read_text()
    assert project_images.ignore_file_patterns(text) == set(project_images.SOURCES)


def test_every_file_the_dockerfile_names_is_there_and_let_through() -> None:
    for line in (REPOSITORY / "Dockerfile").read_text().splitlines():
        words = line.split()
        if words[:1] != ["COPY"] or words[1].startswith("--") or words[1] == ".":
            continue
        for name in words[1:-1]:
            assert (REPOSITORY / name).exists()
            assert any(name == source or name.startswith(f"{source}/") for source in project_images.SOURCES)


def test_sources_change_the_images_and_not_the_disks_of_nodes(tmp_path: Path) -> None:
    for name in ("Dockerfile", "pyproject.toml", "requirements-operator.lock", "requirements-agent.lock"):
        (tmp_path / name).write_text(name)
    (tmp_path / "api").mkdir()
    before = (project_images.project_images(tmp_path).key, project_images.dependencies_key(tmp_path))
    (tmp_path / "api" / "new.py").write_text("x = 1")
    after = (project_images.project_images(tmp_path).key, project_images.dependencies_key(tmp_path))
    assert after[0] != before[0]
    assert after[1] == before[1]
