"""A commit record names every fact about its run, or says that it is missing."""

from holdfast_agent.described import FACTS, complete
from holdfast_api import names


def test_every_fact_is_there_or_said_to_be_missing() -> None:
    record = complete({}, "", {})
    assert record.keys() == set(FACTS)
    assert all(value.startswith("missing: ") for value in record.values())
    assert complete({"git_commit": "abc"}, "", {})["git_commit"] == "abc"


def test_the_image_s_digest_is_its_name_s_or_the_environment_s() -> None:
    assert complete({}, "r/i@sha256:12", {})["image_digest"] == "sha256:12"
    by_tag = complete({}, "r/i:1", {})
    assert by_tag["image"] == "r/i:1"
    assert names.ENV_IMAGE_DIGEST in by_tag["image_digest"]
    assert complete({}, "r/i:1", {names.ENV_IMAGE_DIGEST: "sha256:34"})["image_digest"] == "sha256:34"
