"""Writes a directory tree as a one-layer image in the docker-archive format, which `ctr images import` and buildah read.

So a base image and the pause image can be made where no registry and no container engine is at hand.
"""

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How containers of the image start unless told otherwise."""

    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""

    def to_json(self, layer_digest: str) -> bytes:
        start = {
            "Env": [f"{name}={value}" for name, value in {"PATH": _SEARCH_PATH, **self.environment}.items()],
            "Entrypoint": list(self.entrypoint) or None,
            "Cmd": list(self.command) or None,
            "User": self.user or None,
        }
        whole = {
            "architecture": "amd64",
            "os": "linux",
            "config": {name: value for name, value in start.items() if value is not None},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
            "history": [{"created_by": "image_archive"}],
            "created": "1970-01-01T00:00:00Z",
        }
        return json.dumps(whole).encode()


def write(archive: Path, reference: str, tree: Path, config: ImageConfig) -> None:
    """Writes the archive; the same tree gives the same image."""
    layer = archive.with_suffix(".layer")
    _write_layer(tree, layer)
    with layer.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    described = config.to_json(digest)
    config_name = hashlib.sha256(described).hexdigest() + ".json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [reference], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(archive, "w") as out:
        for name, content_bytes in ((config_name, described), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content_bytes)
            out.addfile(entry, io.BytesIO(content_bytes))
        out.add(layer, "layer.tar")
    layer.unlink()


def _write_layer(tree: Path, layer: Path) -> None:
    """Sorted names and one time stamp; without what the kernel provides in a container."""
    order = ("--sort=name", "--mtime=@0", "--numeric-owner")
    kernel = [f"--exclude=./{directory}/*" for directory in ("proc", "sys", "dev")]
    subprocess.run(["tar", *order, *kernel, "-C", str(tree), "-cf", str(layer), "."], check=True)
