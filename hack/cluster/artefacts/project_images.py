"""Holdfast's own images, built from the checkout by buildah without a daemon, and kept so that a rebuild is quick.

Layers are kept in buildah's storage, so after a change of the sources only the last layer is made again. Images go into
one OCI layout, in which a layer lies once, whatever number of images have it; the artefact itself is a list of digests.
`images.py` brings an image from there to a node and sends only the layers that the node does not have.
"""

import json
import re
import shutil
from pathlib import Path

from hack.cluster.artefacts import base_image, oci
from hack.cluster.artefacts.artefact import Artefact, Workshop
from hack.cluster.artefacts.oci import Image
from hack.cluster.cache import Cache, digest_of
from hack.cluster.paths import REPOSITORY

ROLES = ("operator", "trainer")

#: What the Dockerfile may copy; .dockerignore lets nothing else through, and a test compares the two.
SOURCES = (
    "pyproject.toml",
    "README.md",
    "requirements-operator.lock",
    "requirements-agent.lock",
    "requirements-torch.lock",
    "hack/image",
    "api",
    "operator",
    "agent",
    "cli",
)
#: What the layers below the project's own are made from; a change of these makes new disks of nodes too.
DEPENDENCIES = ("Dockerfile", "requirements-operator.lock", "requirements-agent.lock", "hack/image")

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def reference(role: str) -> str:
    return f"localhost/holdfast-{role}:dev"


def layout(cache: Cache) -> Path:
    """Where all images of the project lie, by digest."""
    return cache.directory / "images" / "layout"


def project_images(context: Path = REPOSITORY) -> Artefact:
    base = base_image.base_image()

    def make(workshop: Workshop, directory: Path) -> None:
        built = _Buildah(workshop, context).build(base.path(workshop.cache) / "base.tar", base.key)
        (directory / "images.json").write_text(json.dumps([vars(image) for image in built]))

    return Artefact(
        name="images",
        what="the images of Holdfast",
        usual_seconds=75,
        made_from=(Path(oci.__file__), context / "Dockerfile", *present_sources(context)),
        make=make,
        needs=(base,),
    )


def present_sources(context: Path) -> list[Path]:
    return [context / name for name in SOURCES if (context / name).exists()]


def dependencies_key(context: Path = REPOSITORY) -> str:
    """Changes when the lower layers do, not with the project's own sources."""
    present = [context / name for name in DEPENDENCIES if (context / name).exists()]
    return digest_of((base_image.base_image().key, *present))


def built_images(artefact: Artefact, cache: Cache) -> list[Image]:
    return [Image(**entry) for entry in json.loads((artefact.path(cache) / "images.json").read_text())]


class _Buildah:
    """buildah with storage of its own, in namespaces of its own: killed, it leaves neither mounts nor processes."""

    def __init__(self, workshop: Workshop, context: Path) -> None:
        self._workshop = workshop
        self._context = context
        self._home = workshop.cache.directory / "images"
        self._layout = layout(workshop.cache)

    def build(self, base_archive: Path, base_key: str) -> list[Image]:
        self._home.mkdir(parents=True, exist_ok=True)
        self._call("rm", "--all")  # working containers that a killed build left
        self._pull_base(base_archive, base_key)
        return [self._build_role(role) for role in ROLES]

    def _pull_base(self, archive: Path, key: str) -> None:
        """Once: pulling it again would give the same image, but takes two seconds."""
        mark = self._home / "base"
        if not mark.exists() or mark.read_text() != key:
            self._call("pull", f"docker-archive:{archive}")
            mark.write_text(key)

    def _build_role(self, role: str) -> Image:
        build: list[str | Path] = ["bud", "--isolation", "chroot", "--pull-never", "--layers", "--target", role]
        build += ["--build-arg", f"BASE_IMAGE={base_image.REFERENCE}", "-t", reference(role)]
        # The mounted bundle is seen by pip in the build and is not in the image.
        build += ["--volume", f"{_CERTIFICATES}:{_CERTIFICATES}:ro"] if _CERTIFICATES.exists() else []
        self._call(*build, self._context)
        # An archive and not an OCI layout: to that, this buildah compresses every layer anew on each push.
        archive = self._workshop.scratch / f"{role}.tar"
        self._call("push", reference(role), f"docker-archive:{archive}:{reference(role)}")
        digest = oci.unpack_archive(archive, self._layout)
        archive.unlink()
        return Image(reference(role), digest)

    def _call(self, *argv: str | Path) -> None:
        # A fresh runroot each time: it says what is mounted, and nothing is, since the last call's mounts went with it.
        runroot = self._workshop.scratch / "runroot"
        shutil.rmtree(runroot, ignore_errors=True)
        storage = ("--root", self._home / "storage", "--runroot", runroot, "--storage-driver", "overlay")
        self._workshop.run(*self._workshop.isolated("buildah", *storage, *argv))


def ignore_file_patterns(text: str) -> set[str]:
    """The paths that a .dockerignore of the form "nothing but" lets through. Pure."""
    return set(re.findall(r"^!(\S+)$", text, re.MULTILINE))
