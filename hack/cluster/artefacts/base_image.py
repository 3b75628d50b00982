"""A small Debian with Python and pip as an image archive, made without a registry.

It stands in for python:3.11-slim (`--build-arg BASE_IMAGE=...`) where no registry can be reached.
"""

import shutil
from pathlib import Path

from hack.cluster.artefacts import image_archive
from hack.cluster.artefacts.artefact import Artefact, Workshop

REFERENCE = "localhost/holdfast-base:1"
#: Its Python is 3.11; torch for the CPU is installed by the same minor version.
SUITE = "bookworm"
_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
#: Documentation, translations, package lists: half of the size.
_UNWANTED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/log")


def base_image() -> Artefact:
    return Artefact(
        name="base",
        what=f"a Debian {SUITE} image with Python",
        usual_seconds=45,
        made_from=(REFERENCE, SUITE, _PACKAGES, Path(__file__)),
        make=_make,
    )


def _make(workshop: Workshop, directory: Path) -> None:
    tree = workshop.scratch / "root"
    bootstrap = ("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", SUITE, tree)
    workshop.run(*workshop.isolated(*bootstrap))
    _clean(tree)
    environment = {"LANG": "C.UTF-8", "PIP_ROOT_USER_ACTION": "ignore"}
    config = image_archive.ImageConfig(command=["python3"], environment=environment)
    image_archive.write(directory / "base.tar", REFERENCE, tree, config)


def _clean(tree: Path) -> None:
    for name in _UNWANTED:
        for inside in (tree / name).iterdir():
            shutil.rmtree(inside) if inside.is_dir() and not inside.is_symlink() else inside.unlink()
    shutil.rmtree(tree / "debootstrap", ignore_errors=True)
    for bytecode in list((tree / "usr").rglob("__pycache__")):
        shutil.rmtree(bytecode)
    # pip may install beside the system's packages, as in python:3.11-slim.
    for mark in (tree / "usr/lib").glob("python3*/EXTERNALLY-MANAGED"):
        mark.unlink()
    (tree / "usr/bin/python").symlink_to("python3")
    # debootstrap copies those of the machine it runs on.
    (tree / "etc/resolv.conf").write_text("")
    (tree / "etc/hostname").write_text("localhost\n")
    (tree / "etc/machine-id").write_text("")
