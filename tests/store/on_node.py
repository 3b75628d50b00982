"""Images in a node's directory for tests: put there as a flush does it, and what lies there, read from the files themselves."""

import re
from dataclasses import dataclass
from pathlib import Path

from holdfast_api.layout import CheckpointRef
from holdfast_store.local import LocalTier

_IMAGE = re.compile(r"checkpoints/(\d{10})/(\d{10})/rank-(\d+)\.safetensors\Z")


@dataclass(frozen=True)
class ImageOnNode:
    ref: CheckpointRef
    path: Path

    @property
    def committed(self) -> bool:
        """The commit record's text lies beside it."""
        return (self.path.parent / "commit.json").exists()


def put_image(tier: LocalTier, ref: CheckpointRef, rank: int, image: bytes) -> None:
    file = tier.begin_image(ref, rank, len(image))
    try:
        file.write(memoryview(image), 0)
        file.keep()
    finally:
        file.close()


def images_on(tier: LocalTier, rank: int = 0) -> list[ImageOnNode]:
    """Newest first, of every job in the directory."""
    found = [(match, path) for path in tier.root.rglob("*.safetensors") if (match := _IMAGE.search(str(path)))]
    images = [ImageOnNode(CheckpointRef(int(m[1]), int(m[2])), path) for m, path in found if int(m[3]) == rank]
    return sorted(images, key=lambda i: i.ref, reverse=True)
