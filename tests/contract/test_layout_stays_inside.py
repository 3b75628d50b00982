"""S6, B6: no name can become part of a path that leads elsewhere, and no key is the folder of another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_api import layout
from holdfast_api.errors import BadName
from holdfast_api.layout import CheckpointRef

HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc",
    "a\\b",
    "a\0b",
    "a b",
    "A",
    "a..b",
    "-a",
    "a-",
    "a\n",
    "é",
    "a" * 254,
    "%2e%2e",
    "～",
    "a/../b",
]
NUMBERS = st.integers(1, layout.MAX_NUMBER)
REFS = st.builds(CheckpointRef, NUMBERS, NUMBERS)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_as_namespace_and_job(name: str) -> None:
    for arguments in ((name, "job", "uid"), ("ns", name, "uid")):
        with pytest.raises(BadName):
            layout.job_prefix(*arguments)


@pytest.mark.parametrize("uid", [*[h for h in HOSTILE if h not in ("A", "a-")], "a.b", "x" * 64])
def test_hostile_uids_are_refused(uid: str) -> None:
    with pytest.raises(BadName):
        layout.job_prefix("ns", "job", uid)
    with pytest.raises(BadName):
        layout.branch_key(uid)


@given(st.text(), st.text(), st.text())
def test_a_prefix_is_two_plain_segments_or_refused(namespace: str, job: str, uid: str) -> None:
    try:
        prefix = layout.job_prefix(namespace, job, uid)
    except BadName:
        return
    first, second, rest = prefix.split("/")
    assert (first, rest) == (namespace, "")
    assert second == f"{job}-{uid}"
    assert not {first, second} & {"", ".", ".."}
    assert prefix.isascii()
    assert prefix.isprintable()


@given(st.text())
def test_a_chunk_key_holds_a_digest_or_is_refused(digest: str) -> None:
    try:
        key = layout.chunk_key(CheckpointRef(1, 1), digest)
    except BadName:
        return
    assert key.endswith(digest)
    assert len(digest) == 64
    assert set(digest) <= set("0123456789abcdef")


@given(REFS)
def test_checkpoint_keys_are_read_back_as_they_were_made(ref: CheckpointRef) -> None:
    for key in (
        layout.commit_key(ref),
        layout.tombstone_key(ref),
        layout.manifest_key(ref, 3),
        layout.chunk_key(ref, "0f" * 32),
    ):
        parsed = layout.parse_checkpoint_key(key)
        assert parsed is not None
        assert parsed[0] == ref
        assert layout.checkpoint_prefix(ref) + parsed[1] == key
    assert layout.parse_claim_key(layout.claim_key(ref.attempt)) == ref.attempt
    assert layout.parse_claim_key(layout.report_key(ref.attempt, 0)) is None
    assert CheckpointRef.parse(str(ref)) == ref


@given(REFS, REFS)
def test_the_order_of_keys_is_the_order_of_checkpoints(a: CheckpointRef, b: CheckpointRef) -> None:
    assert (layout.checkpoint_prefix(a) < layout.checkpoint_prefix(b)) == (a < b)


@pytest.mark.parametrize(
    "key",
    ["checkpoints/1/1/commit.json", "checkpoints/0000000000/0000000001/x", "x/checkpoints/0000000001/0000000001/x", ""],
)
def test_other_keys_are_no_checkpoints(key: str) -> None:
    assert layout.parse_checkpoint_key(key) is None


@pytest.mark.parametrize("number", [0, -1, layout.MAX_NUMBER + 1])
def test_numbers_out_of_range_become_no_key(number: int) -> None:
    with pytest.raises(BadName):
        layout.claim_key(number)
    with pytest.raises(ValueError):
        CheckpointRef(1, number)


@pytest.mark.parametrize("text", ["", "3", "3/", "/3", "3/12/1", "3/-1", " 3/12", "0/1", "99999999999/1", "a/b"])
def test_what_people_mistype_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        CheckpointRef.parse(text)


def test_no_key_is_a_prefix_of_another_plus_slash() -> None:
    ref = CheckpointRef(1, 2)
    keys = [
        layout.claim_key(1), layout.claim_key(12), layout.report_key(1, 0), layout.report_key(1, 10), layout.chunk_key(ref, "a" * 64),
        layout.manifest_key(ref, 1), layout.manifest_key(ref, 10), layout.commit_key(ref), layout.tombstone_key(ref),
        layout.verdict_key(ref, "canary"), layout.branch_key("uid-1"), layout.branch_key("uid-1-2"),
    ]  # fmt: skip
    for key in keys:
        assert not [other for other in keys if other.startswith(key + "/")]
