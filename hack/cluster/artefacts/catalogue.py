"""Every artefact by what it is for."""

from hack.cluster.artefacts.artefact import Artefact
from hack.cluster.artefacts.base_image import base_image
from hack.cluster.artefacts.programs import azurite, helm, kube, pause, prometheus, versitygw
from hack.cluster.artefacts.project_images import project_images
from hack.cluster.artefacts.torch_cpu import torch_cpu


def for_toolchain() -> list[Artefact]:
    """Programs that demo and tests call on the host."""
    return [kube(), helm(), versitygw(), prometheus(), azurite()]


def for_nodes() -> list[Artefact]:
    """What a cluster needs before any image of Holdfast."""
    return [kube(), pause(), base_image()]


def for_cluster(*, images: bool) -> list[Artefact]:
    """Everything for a cluster in which jobs train; without `images`, only what runs plain pods."""
    own = [torch_cpu(), project_images()] if images else []
    return [*for_nodes(), *for_toolchain()[1:], *own]
