"""A commit record names every fact about its run, or says that it is missing."""

from functools import partial

from holdfast_agent import described
from holdfast_agent.described import FACTS
from holdfast_api import names

complete = partial(described.complete, config={"lr": "1"}, metrics={"loss": 0.5})

OF_THE_ISSUE = {
    "run id": "run_id", "hyper-parameters": "config", "git commit": "git_commit", "dirty flag": "git_dirty", "data set": "dataset", "packages": "packages",
    "image digest": "image_digest", "GPU model": "gpu", "driver": "driver", "world layout": "world", "metrics": "metrics",
}  # fmt: skip
"""What a record must say, or say that it is missing. Cause, time and timings are fields that no record lacks."""


def test_every_fact_is_there_or_said_to_be_missing() -> None:
    record = complete({}, "", {})
    assert record.keys() == set(FACTS)
    assert all(value.startswith("missing: ") for value in record.values())
    assert complete({"git_commit": "abc"}, "", {})["git_commit"] == "abc"


def test_nobody_takes_silence_for_an_answer() -> None:
    said = described.complete({}, "", {}, config={}, metrics={})
    for what, name in OF_THE_ISSUE.items():
        assert said[name].startswith("missing: "), what
    assert not complete({}, "", {}).keys() & {"config", "metrics"}, "they are there"


def test_the_image_s_digest_is_its_name_s_or_the_environment_s() -> None:
    assert complete({}, "r/i@sha256:12", {})["image_digest"] == "sha256:12"
    by_tag = complete({}, "r/i:1", {})
    assert by_tag["image"] == "r/i:1"
    assert names.ENV_IMAGE_DIGEST in by_tag["image_digest"]
    assert complete({}, "r/i:1", {names.ENV_IMAGE_DIGEST: "sha256:34"})["image_digest"] == "sha256:34"
