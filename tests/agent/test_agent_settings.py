"""What the operator tells an agent is checked once, at the start: a value that makes no sense is named, with what to write instead."""

import json
from dataclasses import asdict

import pytest

from holdfast_agent import settings
from holdfast_agent.errors import ConfigurationWrong
from holdfast_api import names
from holdfast_api.config import AgentConfig, StorageConfig

UID = "5f0c9d9e-0000-4000-8000-000000000001"
GOOD = asdict(AgentConfig("team", "bytes-gpt", UID, 0, 1, 2, 1, StorageConfig("s3://bucket/prefix")))


def read(**fields: object) -> AgentConfig:
    return settings.config_from({names.ENV_CONFIG: json.dumps({**GOOD, **fields})})


def test_what_makes_sense_is_taken() -> None:
    assert read().job == "bytes-gpt"
    assert read(every_auto=True, max_loss_seconds=1, max_overhead_percent=100).every_auto
    assert read(grace_seconds=0, sigterm_floor_seconds=0, local_dir="", local_volume="network").local_dir == ""


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"worker": -1}, "worker -1 is not one of 2 workers"),
        ({"worker": 2}, "worker 2 is not one of 2 workers"),
        ({"processes_per_worker": 0}, "processes_per_worker is 0"),
        ({"chunk_bytes": 0}, "chunk_bytes is 0"),
        ({"background_bytes_per_second": -1}, "background_bytes_per_second is -1"),
        ({"chunk_bytes": 4097}, "chunk_bytes is 4097; multiples of 4 KiB"),
        ({"chunk_bytes": 1 << 40}, "chunk_bytes is 1099511627776"),
        ({"slots": 3}, "slots is 3; 1 and 2 are possible"),
        ({"every_steps": -1}, "every_steps is -1"),
        ({"every_seconds": -2}, "every_seconds is -2"),
        ({"every_auto": True, "every_steps": 5}, "every_steps (5)"),
        ({"every_auto": True, "max_loss_seconds": 0}, "max_loss_seconds is 0"),
        ({"every_auto": True, "max_overhead_percent": 101}, "max_overhead_percent 101"),
        ({"grace_seconds": -1}, "grace_seconds is -1; it cannot be negative"),
        ({"sigterm_floor_seconds": -1}, "sigterm_floor_seconds is -1"),
        ({"notice_seconds": 0}, "notice_seconds is 0; it must be at least 1"),
        ({"memory_dir": ""}, "memory_dir is ''; write an absolute path"),
        ({"memory_dir": "here"}, "memory_dir is 'here'"),
        ({"local_dir": "there"}, "local_dir is 'there'"),
        ({"local_volume": "attic"}, "local_volume is 'attic'; write one of pod, node, network"),
        ({"job": "A/B"}, "'A/B' is not a Kubernetes name"),
        ({"namespace": ".."}, "'..' is not a Kubernetes name"),
        ({"job_uid": "../../etc"}, "'../../etc' is not a uid"),
    ],
)
def test_what_makes_none_is_named_with_its_value_and_the_remedy(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationWrong) as refused:
        read(**fields)
    assert words in str(refused.value)
