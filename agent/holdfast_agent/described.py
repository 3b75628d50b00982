"""What a commit record says of a run beside its progress: the facts that the training library sent, with those that the agent knows. Pure.

Nothing is left out silently: a fact that nobody could find out reads "missing: " and why.
"""

from collections.abc import Mapping

from holdfast_api import names

FACTS = (
    "run_id",
    "git_commit",
    "git_dirty",
    "dataset",
    "packages",
    "device",
    "gpu",
    "driver",
    "world",
    "image",
    "image_digest",
)
"""What every record says, or says that it is missing."""
MISSING = "missing: "


def complete(
    run: Mapping[str, str],
    image: str,
    environ: Mapping[str, str],
    *,
    config: Mapping[str, str],
    metrics: Mapping[str, float],
) -> dict[str, str]:
    """`image` as the pod's template names it. `config` and `metrics` have places of their own in the record, which cannot say that they are missing."""
    unsaid = dict.fromkeys(FACTS, MISSING + "the training library did not say")
    if not config:
        unsaid["config"] = MISSING + "describe({...}) was not called, so no hyper-parameters are known"
    if not metrics:
        unsaid["metrics"] = MISSING + "step() was given none"
    return unsaid | _image(image, environ.get(names.ENV_IMAGE_DIGEST, "")) | dict(run)


def _image(image: str, digest: str) -> dict[str, str]:
    if not digest and "@" in image:
        digest = image.rpartition("@")[2]
    why = f"the image is named by tag; name it by digest, or set {names.ENV_IMAGE_DIGEST} in the trainer container"
    return {
        "image": image or MISSING + "the agent was not started by an operator that says it",
        "image_digest": digest or MISSING + why,
    }
