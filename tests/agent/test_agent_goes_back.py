"""A roll-back as the operator orders it (A2, A7): a new attempt for pods whose ranks train well, from the newest checkpoint in which nothing was found (J4)."""

import dataclasses

from holdfast_api import layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import REPLICAS, SUSPECT
from holdfast_api.messages import AgentPhase
from holdfast_store.records import parse_commit, self_proving


def make_suspect(g, ref: CheckpointRef) -> None:
    """Its record says that copies differ, as the lead writes it: no rank makes such damage on order."""
    path = g.bucket / g.store.prefix / layout.commit_key(ref)
    record = parse_commit(str(path), path.read_bytes())
    path.write_bytes(self_proving(dataclasses.replace(record, run=record.run | {REPLICAS: SUSPECT + "rank 1"})))


def saved(g, name: str) -> tuple[CheckpointRef, int]:
    g.checkpoint(name)
    g.wait_for_request(name)
    ref, boundary, _ = g.commits()[-1]
    return CheckpointRef.parse(ref), boundary


def test_ranks_that_train_are_taken_back_to_the_newest_sound_checkpoint_in_the_same_pods(gang):
    g = gang(config={"every_steps": 1_000_000}).start().begin()
    g.wait_for_boundary(3)
    _, older = saved(g, "one")
    newest, later = saved(g, "two")
    assert later > older
    make_suspect(g, newest)
    pids = [pod.process.pid for pod in g.pods.values()]
    g.begin()
    g.wait_for_phase(AgentPhase.TRAINING)
    g.wait_for_boundary(older + 1)
    assert {line.split(" ", 2)[2] for line in g.lines() if line.startswith("2 ")} == {f"restored {older}"}
    assert [pod.process.pid for pod in g.pods.values()] == pids
    report = g.pods[0].report()
    assert (report.claim.parent_boundary, report.restored.boundary) == (older, older)
    passed_over = [(CheckpointRef(r.attempt, r.save), r.of_checkpoint) for r in report.rejections]
    assert passed_over == [(newest, False)], "kept, and not quarantined"
    assert str(newest) in [name for name, _, _ in g.commits()]
    # What the next attempt saves is on the lineage from there; the suspect one never is again.
    _, after = saved(g, "three")
    g.begin(accept_suspect=True)
    g.wait_for_boundary(after + 1)
    assert {line.split(" ", 2)[2] for line in g.lines() if line.startswith("3 ")} == {f"restored {after}"}


def test_a_person_who_trusts_it_has_it_continued(gang):
    g = gang(config={"every_steps": 1_000_000}).start().begin()
    g.wait_for_boundary(3)
    saved(g, "one")
    newest, later = saved(g, "two")
    make_suspect(g, newest)
    g.begin(trusted=(newest,))
    g.wait_for_boundary(later + 1)
    assert {line.split(" ", 2)[2] for line in g.lines() if line.startswith("2 ")} == {f"restored {later}"}
