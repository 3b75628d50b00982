"""Two who hold themselves for one attempt, and one who lives twice: fault scenarios 72 and 74 (A1, A4, B1)."""

from concurrent.futures import ThreadPoolExecutor

from tests.agent.conftest import eventually

SUPERSEDED = 74


def test_of_two_gangs_of_one_attempt_one_trains_and_the_other_writes_nothing_that_counts(gang):
    """An operator's database was restored, or there were two of it: both gangs are whole, and are ordered the same at once."""
    one = gang().start()
    other = gang(job_uid=one.job_uid, bucket_dir=one.bucket).start()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda g: g.begin(), (one, other)))
    loser = eventually(
        lambda: next((g for g in (one, other) if g.pods[0].process.poll() is not None), None), "one of the leads ends"
    )
    winner = other if loser is one else one
    assert loser.pods[0].wait() == SUPERSEDED, loser.pods[0].words()
    winner.wait_for_commit(20)
    assert loser.lines() == [], "no rank of it has loaded or trained"
    assert {m.pod_uid for m in winner.store.newest_claim().members} == {p.uid for p in winner.pods.values()}
    assert [ref for ref, _, _ in winner.commits()] == [f"1/{n}" for n in range(1, len(winner.commits()) + 1)]


def test_an_agent_that_is_restarted_in_place_writes_no_key_of_its_earlier_life_again(gang):
    g = gang(workers=1, trainer=("100000",)).start().begin()
    g.wait_for_commit(20)
    g.pods[0].kill()
    g.pods[0].wait()
    before = written(g)
    newest = g.commits()[-1][1]
    g.pods[0].start()
    g.begin()
    g.wait_for_commit(newest + 20)
    after = written(g)
    assert {key: after[key] for key in before if key in after} == {
        key: at for key, at in before.items() if key in after
    }
    assert any("/checkpoints/0000000002/" in key for key in after.keys() - before.keys())
    assert "attempts/0000000001.json" in {key.split("/", 2)[2] for key in before.keys() & after.keys()}


def written(gang) -> dict[str, tuple[int, int]]:
    """Every object: which file it is, and when its content was written."""
    files = [p for p in gang.bucket.rglob("*") if p.is_file()]
    return {str(p.relative_to(gang.bucket)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}
