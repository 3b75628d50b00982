"""An OCI layout as a store of image layers: archives are taken apart into it, and partial archives are written from it.

A layer lies there once under its digest, so it is known without asking anyone which layers a node still lacks.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
#: Uncompressed: compressing takes longer than everything else, and the bytes stay on this machine.
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class Image:
    """An image in the layout."""

    reference: str
    #: Of its manifest, with `sha256:` in front.
    digest: str


def unpack_archive(archive: Path, layout: Path) -> str:
    """Puts the one image of a docker-archive into the layout; the digest of its manifest."""
    with tarfile.open(archive) as content:
        (described,) = json.loads(_member(content, "manifest.json"))
        config = _member(content, described["Config"])
        layers = []
        # In an uncompressed archive a layer's digest is that of the files in it, which the configuration lists.
        for digest, name in zip(json.loads(config)["rootfs"]["diff_ids"], described["Layers"], strict=True):
            entry = _resolve(content, name)
            layers.append({"mediaType": _LAYER, "digest": digest, "size": entry.size})
            if not blob(layout, digest).exists():
                _store_member(content, entry, blob(layout, digest), digest)
    config_entry = {"mediaType": _CONFIG, "digest": _store_bytes(layout, config), "size": len(config)}
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config_entry, "layers": layers}
    return _store_bytes(layout, json.dumps(manifest).encode())


def write_stream(stream: tarfile.TarFile, image: Image, layout: Path, known: set[str]) -> None:
    """Writes an OCI archive of the image that leaves out the blobs in `known`."""
    manifest_bytes = blob(layout, image.digest).read_bytes()
    index = {"schemaVersion": 2, "manifests": [_descriptor(image, manifest_bytes)]}
    _add_bytes(stream, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    _add_bytes(stream, "index.json", json.dumps(index).encode())
    for digest in (image.digest, *parts_of(json.loads(manifest_bytes))):
        if digest not in known or digest == image.digest:
            stream.add(blob(layout, digest), f"blobs/{digest.replace(':', '/')}")


def parts_of(manifest: dict[str, Any]) -> Iterator[str]:
    """The digests a manifest consists of. Pure."""
    yield str(manifest["config"]["digest"])
    for layer in manifest["layers"]:
        yield str(layer["digest"])


def blob(layout: Path, digest: str) -> Path:
    """Where the layout has the bytes of this digest."""
    return layout / "blobs" / digest.replace(":", "/")


def _member(content: tarfile.TarFile, name: str) -> bytes:
    found = content.extractfile(_resolve(content, name))
    if found is None:
        raise LookupError(f"the archive has no file {name}")
    return found.read()


def _resolve(content: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    """The file itself where the archive has a link to it."""
    entry = content.getmember(name)
    if entry.issym():
        return content.getmember(os.path.normpath(Path(name).parent / entry.linkname))
    return entry


def _store_member(content: tarfile.TarFile, entry: tarfile.TarInfo, target: Path, digest: str) -> None:
    source = content.extractfile(entry)
    assert source is not None, f"{entry.name} is a file of the archive"
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    total = hashlib.sha256()
    with fresh.open("wb") as out:
        while chunk := source.read(1 << 20):
            total.update(chunk)
            out.write(chunk)
    if f"sha256:{total.hexdigest()}" != digest:
        raise ValueError(f"{entry.name}: its content is not {digest}")
    fresh.replace(target)


def _store_bytes(layout: Path, content: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    target = blob(layout, digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(target)
    return digest


def _descriptor(image: Image, manifest: bytes) -> dict[str, Any]:
    return {
        "mediaType": _MANIFEST,
        "digest": image.digest,
        "size": len(manifest),
        # The name containerd gives the image.
        "annotations": {"io.containerd.image.name": image.reference},
    }


def _add_bytes(stream: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    stream.addfile(entry, io.BytesIO(content))
