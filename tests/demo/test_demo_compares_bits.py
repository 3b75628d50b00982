"""The demo's own judgement: if this is wrong, `make demo` proves nothing."""

import random

import pytest

from hack.demo import curves, show
from hack.demo.damage import Damager

DIGEST = "ab" * 32


def log(losses: dict[int, float], digest: str = DIGEST) -> str:
    lines = ["noise", *[f"step {s} loss {v.hex()} lr 0.1" for s, v in losses.items()]]
    return "\n".join([*lines, f"digest {digest}"] if digest else lines)


def test_equal_runs_are_exact() -> None:
    losses = {s: random.random() for s in range(1, 20)}
    assert curves.compare(curves.read_run(log(losses)), curves.read_run(log(losses))).exact


def test_one_bit_of_one_loss_is_found() -> None:
    losses = {1: 0.5, 2: 0.25}
    other = losses | {2: 0.25 + 2**-54}
    found = curves.compare(curves.read_run(log(other)), curves.read_run(log(losses)))
    assert found.different == (2,)
    assert not found.exact


def test_other_weights_with_equal_losses_are_found() -> None:
    assert not curves.compare(curves.read_run(log({1: 1.0}, "cd" * 32)), curves.read_run(log({1: 1.0}))).exact


def test_a_missing_step_or_digest_is_never_exact() -> None:
    whole, short = curves.read_run(log({1: 1.0, 2: 2.0})), curves.read_run(log({1: 1.0}))
    assert curves.compare(short, whole).missing == (2,)
    no_digest = curves.read_run(log({1: 1.0}, ""))
    assert not curves.compare(no_digest, no_digest).exact
    assert not curves.compare(curves.read_run(""), curves.read_run("")).exact


def test_a_step_done_again_with_another_loss_is_a_difference() -> None:
    ours = curves.read_run(log({1: 1.0, 2: 2.0}, ""), log({2: 2.5, 3: 3.0}))
    reference = curves.read_run(log({1: 1.0, 2: 2.5, 3: 3.0}))
    assert curves.compare(ours, reference).different == (2,)


@pytest.mark.parametrize("phases", [[("quiesce", 100), ("flush", 300), ("start", 0), ("first-step", 1)], []])
def test_the_timeline_gives_every_phase_and_the_sum(phases: list[tuple[str, int]]) -> None:
    text = show.timeline(phases)
    assert all(name in text for name, _ in phases)
    assert f"{sum(ms for _, ms in phases)} ms" in text.splitlines()[-1]
    assert len({len(line) for line in text.splitlines()[:-1]}) <= 1


def test_the_damager_flips_one_bit_of_every_new_chunk_and_leaves_older_saves_alone(tmp_path) -> None:  # type: ignore[no-untyped-def]
    old = tmp_path / "demo/ns/job-u1/checkpoints/0000000001/0000000001/chunks"
    new = tmp_path / "demo/ns/job-u1/checkpoints/0000000001/0000000002/chunks"
    old.mkdir(parents=True)
    (old / "aa").write_bytes(bytes(100))
    damager = Damager(tmp_path, "u1")
    damager.start()
    new.mkdir(parents=True)
    (new / "bb").write_bytes(bytes(100))
    for _ in range(1000):
        if damager.saves:
            break
        damager._stop.wait(0.01)
    damager.stop()
    assert (old / "aa").read_bytes() == bytes(100)
    assert sum(b.bit_count() for b in (new / "bb").read_bytes()) == 1
    assert damager.saves == {"1/2"}
