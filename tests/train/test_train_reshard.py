"""A checkpoint of N ranks, loaded by M: against a run of M ranks that begins from torch's own full `state_dict` of the same point (issue: reshard matrix).

Parameters, optimizer state and learning rate are compared bit by bit, after loading and again at the end of the epoch; the samples of the epoch as a
multiset. HOLDFAST_RESHARD=all (as `make test-train` sets it) takes every pair of WORLDS, otherwise the first three.
"""

import hashlib
import json
import math
import os
import random
from collections import Counter
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from fake_agent import CHUNK, FakeAgent
from reshard_ranks import BATCH, KINDS, SAMPLES, STEPS, Case, Job, run
from torch.utils.data import DistributedSampler, TensorDataset

from holdfast_api.layout import CheckpointRef
from holdfast_store.samples import STATE_NAME, Account, Standing, judge, ledgers_in

ALL = os.environ.get("HOLDFAST_RESHARD") == "all"
WORLDS = (1, 2, 3, 4, 8) if ALL else (1, 2, 3)
CHAIN = (1, 8, 3, 1) if ALL else (1, 3, 2, 1)
"""Numbers of ranks that go on with one another's checkpoints within one epoch."""


class First:
    """The runs that are gone on with: what each kind's ranks captured and found, by number of ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agents: dict[tuple[str, int], FakeAgent] = {}
        self.found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for world in WORLDS:
            cases = []
            for number, kind in enumerate(KINDS):
                agent = self.agents[kind, world] = FakeAgent(folder / f"{world}-{number}")
                cases.append(Case(kind, agent.path, self.full(kind, world)))
            found = run(Job(world, folder / f"first-{world}", tuple(cases)))
            for number, kind in enumerate(KINDS):
                self.found[kind, world] = [rank[number] for rank in found]

    def full(self, kind: str, world: int) -> Path:
        return self.folder / f"{kind}-{world}.pt".replace(" ", "-")

    def images(self, kind: str, world: int) -> list[Any]:
        return [self.agents[kind, world].newest(rank) for rank in range(world)]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> First:
    return First(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(first: First, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, int], list[dict[str, Any]]]:
    """(kind, N, M) -> what each of M ranks found, with the agent beside them."""
    folder = tmp_path_factory.mktemp("second")
    results = {}
    for world in WORLDS:
        cases, pairs = [], []
        for before in WORLDS:
            for number, kind in enumerate(KINDS):
                if before != world:
                    agent = FakeAgent(folder / f"{before}-{world}-{number}")
                    agent.other_world = first.images(kind, before)
                    cases.append(Case(kind, agent.path, first.full(kind, before), before))
                    pairs.append((kind, before, agent))
        found = run(Job(world, folder / f"ranks-{world}", tuple(cases)))
        for number, (kind, before, agent) in enumerate(pairs):
            results[kind, before, world] = [rank[number] | {"agent": agent} for rank in found]
    return results


PAIRS = [(n, m) for n in WORLDS for m in WORLDS if n != m]


@pytest.mark.parametrize(("before", "after"), PAIRS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(900)
def test_another_number_of_ranks_goes_on_as_if_it_had_been_given_the_full_state(
    kind: str, before: int, after: int, first: First, second: dict[tuple[str, int, int], list[dict[str, Any]]]
) -> None:
    was, now = first.found[kind, before], second[kind, before, after]
    assert [r["problems"] for r in now] == [[]] * after

    gone = Counter(i for share in _by_share(was) for i in share)
    assert [r["samples"] for r in now] == [_share(set(gone), r["replica"], r["replicas"]) for r in now]
    whole: Any = DistributedSampler(TensorDataset(torch.arange(SAMPLES)), num_replicas=1, rank=0, seed=5)
    whole.set_epoch(1)
    for result in now:
        assert result["after"] == [*whole][result["replica"] :: result["replicas"]][:BATCH], (
            "then as if nothing had been"
        )
    everything = gone + Counter(i for share in _by_share(now) for i in share)
    padded = {i: n for i, n in everything.items() if n > 1}
    assert set(everything) == set(range(SAMPLES)), "none is lost"
    assert sum(n - 1 for n in padded.values()) == -(SAMPLES - len(gone)) % now[0]["replicas"], (
        "none but the padding twice"
    )

    for rank, result in enumerate(now):
        home = was[rank % before]
        assert {n: b.tolist() for n, b in result["buffers"].items()} == {
            n: b.tolist() for n, b in home["buffers"].items()
        }
        _check_generators(was, result, rank)

    accounts = [_account(1, first.images(kind, before)), _account(2, [now[0]["agent"].newest(r) for r in range(after)])]
    standings = [(0, Standing.ONCE, SAMPLES), (1, Standing.RUNNING, SAMPLES)]
    assert [(e.epoch, e.standing, e.size) for e in judge(accounts)] == standings, judge(accounts)


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_a_rank_reads_what_it_needs_but_for_what_lies_in_the_same_chunks(
    before: int, after: int, first: First, second: dict[tuple[str, int, int], list[dict[str, Any]]]
) -> None:
    agent = second["large FSDP2", before, after][0]["agent"]
    there = sum(image.path.stat().st_size for image in first.images("large FSDP2", before))
    for rank in range(after):
        regions = agent.parts_wanted[rank].regions
        needed = sum(math.prod(r.shape) * getattr(torch, r.dtype).itemsize for r in regions)
        large = [r for r in regions if math.prod(r.shape) > 1024]
        pieces = (
            2 * len(large) * (-(-before // after) + 1) + before
        )  # two ends of each, and the small ones of each image
        assert needed <= agent.chunk_bytes_read[rank] <= needed + pieces * CHUNK
        assert agent.chunk_bytes_read[rank] < there * (1 / after + 0.35), "nobody reads it all"


@pytest.mark.timeout(900)
def test_a_chain_of_numbers_of_ranks_is_one_run(tmp_path: Path) -> None:
    """Each life against one that begins from torch's full state_dict of the life before; the samples of the epoch over all lives."""
    kinds = ("DDP", "FSDP2", "ZeRO-1", "TP")
    agents = {kind: FakeAgent(tmp_path / f"0-{n}") for n, kind in enumerate(kinds)}
    full = {kind: tmp_path / f"0-{n}.pt" for n, kind in enumerate(kinds)}
    found = run(Job(CHAIN[0], tmp_path / "life-0", tuple(Case(k, agents[k].path, full[k]) for k in kinds)))
    gone = {k: Counter(i for share in _by_share([r[n] for r in found]) for i in share) for n, k in enumerate(kinds)}
    accounts = {k: [_account(1, [agents[k].newest(r) for r in range(CHAIN[0])])] for k in kinds}
    for life, (before, world) in enumerate(pairwise(CHAIN), 1):
        last, cases, then = life == len(CHAIN) - 1, [], {}
        for n, kind in enumerate(kinds):
            then[kind] = FakeAgent(tmp_path / f"{life}-{n}")
            then[kind].other_world = [agents[kind].newest(r) for r in range(before)]
            leaves = None if last else tmp_path / f"{life}-{n}.pt"
            stop = 0 if last else STEPS * (life + 1)
            cases.append(Case(kind, then[kind].path, full[kind], before, STEPS * life, stop, leaves))
            full[kind] = leaves or full[kind]
        agents, found = then, run(Job(world, tmp_path / f"life-{life}", tuple(cases)))
        for n, kind in enumerate(kinds):
            now = [rank[n] for rank in found]
            assert [r["problems"] for r in now] == [[]] * world, (kind, before, world)
            gone[kind] += Counter(i for share in _by_share(now) for i in share)
            accounts[kind].append(_account(life + 1, [agents[kind].newest(r) for r in range(world)]))
    for kind in kinds:
        assert gone[kind] == Counter(range(SAMPLES)), kind
        standings = [(0, Standing.ONCE, SAMPLES), (1, Standing.RUNNING, SAMPLES)]
        assert [(e.epoch, e.standing, e.size) for e in judge(accounts[kind])] == standings, judge(accounts[kind])


def _by_share(found: list[dict[str, Any]]) -> list[list[int]]:
    """Ranks that read the same share have read the same."""
    shares: dict[int, list[int]] = {}
    for rank in found:
        assert shares.setdefault(rank["replica"], rank["samples"]) == rank["samples"]
    return list(shares.values())


def _share(gone: set[int], number: int, of: int) -> list[int]:
    """By the rule, written down once more: what is left of the epoch's order, dealt in turn, padded from its beginning."""
    order: Any = DistributedSampler(TensorDataset(torch.arange(SAMPLES)), num_replicas=1, rank=0, seed=5)
    left = [i for i in order if i not in gone]
    return [*left, *islice(cycle(left), -len(left) % of)][number::of]


def _check_generators(was: list[dict[str, Any]], result: dict[str, Any], rank: int) -> None:
    alone = len(was) == 1
    saved = was[0]["rng"]["torch"].numpy().tobytes()
    assert result["rng"]["torch"].equal(torch.Generator().manual_seed(_seed(saved, "torch", rank)).get_state())
    python = random.Random(100)
    words = python.getstate()[1]
    seed = _seed(numpy.asarray(words, dtype="<u4").tobytes(), "python", rank)
    assert tuple(result["rng"]["python"]) == random.Random(seed).getstate()[1][:8]
    numbers = numpy.random.RandomState(100).get_state()[1]
    seed = _seed(numbers.astype("<u4").tobytes(), "numpy", rank) % (1 << 32)
    assert result["rng"]["numpy"] == numpy.random.RandomState(seed).get_state()[1][:8].tolist()

    alike = torch.Generator().manual_seed(77).get_state()
    if alone:
        alike = torch.Generator().manual_seed(_seed(alike.numpy().tobytes(), "alike", rank)).get_state()
    assert result["alike"].equal(alike), "what was equal on all ranks stays so"
    own = torch.Generator().manual_seed(0).get_state().numpy().tobytes()
    assert result["own"].equal(torch.Generator().manual_seed(_seed(own, "own", rank)).get_state())


def _seed(state: bytes, kind: str, rank: int) -> int:
    text = b"holdfast.rng 1\0" + kind.encode() + b"\0" + str(rank).encode() + b"\0" + state
    return int.from_bytes(hashlib.blake2b(text, digest_size=32).digest()[:8], "little")


def _account(save: int, images: list[Any]) -> Account:
    return Account(CheckpointRef(1, save), {r: ledgers_in(_document(image)) for r, image in enumerate(images)})


def _document(image: Any) -> Any:
    entry = next(e for e in image.entries if e.name == STATE_NAME)
    data = image.path.read_bytes()
    return json.loads(data[entry.offset_bytes : entry.offset_bytes + entry.length_bytes])


def test_the_samples_of_a_step_are_not_all_there_are() -> None:
    """The matrix stops in the middle of an epoch, whatever the number of ranks."""
    assert max(WORLDS) * BATCH * STEPS < SAMPLES
    assert sum(CHAIN[:-1]) * BATCH * STEPS < SAMPLES
