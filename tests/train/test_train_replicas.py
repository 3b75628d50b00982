"""J4 from end to end: what real ranks say about their state, compared as the agent compares it."""

from dataclasses import replace
from pathlib import Path

import pytest
from ddp_ranks import Job, finished, start
from fake_agent import CHUNK, FakeAgent, Image

from holdfast_agent import replicas
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Chunk, RankManifest
from holdfast_store.chunks import digest


def manifest(rank: int, image: Image, data: bytes) -> RankManifest:
    sides = replicas.compared(image.entries, len(data), CHUNK)
    chunks = tuple(Chunk(digest(data[i : i + CHUNK]), CHUNK, CheckpointRef(1, 1)) for i in range(0, len(data), CHUNK))
    made = RankManifest("uid", 1, 1, rank, 4, image.boundary, len(data), CHUNK, chunks, image.entries)
    return replace(made, loose=replicas.loose_digests(sides.values(), memoryview(data)))


def differences(manifests: list[RankManifest]) -> tuple[replicas.Difference, ...]:
    told = [d for m in manifests for d in replicas.summary(replicas.compared(m.tensors, m.image_bytes, CHUNK), m)]
    assert replicas.is_compared(told)
    return replicas.compare(told)


@pytest.mark.parametrize("shard", ["", "copies of shares", "tensor parallel and FSDP2"])
def test_healthy_ranks_agree_and_one_bit_is_found(shard: str, tmp_path: Path) -> None:
    """With batch statistics, random generators and loader positions that differ from rank to rank."""
    job = Job(world=4, directory=tmp_path / "run", shard=shard, socket=str(tmp_path / "a" / "agent.sock"))
    with FakeAgent(tmp_path / "a", every_steps=12) as agent:
        finished(job, start(job))
        images = {rank: agent.newest(rank) for rank in range(4)}
    data = {rank: bytearray(image.path.read_bytes()) for rank, image in images.items()}
    assert differences([manifest(r, images[r], bytes(data[r])) for r in range(4)]) == ()
    name = "optimizer.state.0.step" if shard == "tensor parallel and FSDP2" else "optimizer.state.0.exp_avg"
    entry = next(e for e in images[2].entries if e.name == name)
    data[2][entry.offset_bytes + 3] ^= 1
    manifests = [manifest(r, images[r], bytes(data[r])) for r in range(4)]
    (found,) = differences(manifests)
    assert 2 in (*found.odd, *found.others)
    if not shard:
        assert found.odd == (2,)
    assert name in replicas.names_of(manifests[found.odd[0]], manifests[found.others[0]])
