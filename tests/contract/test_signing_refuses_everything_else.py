"""H2: a signed request is good for one receiver, attempt, round, path and body, for a minute, and for one role."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_api.errors import BadSignature
from holdfast_api.signing import LIFETIME_SECONDS, Envelope, Role, derive_key, sign, verify

MASTER = bytes(range(32))
KEY = derive_key(MASTER, "job-uid", Role.OPERATOR)
ENVELOPE = Envelope("POST", "/v1/notice", "job-uid", "pod-uid", attempt=3, round=2)
NONCE = b"n" * 16
NOW = 1_800_000_000.0
BODY = b'{"a":1}'
HEADER = sign(KEY, ENVELOPE, BODY, now=NOW, nonce=NONCE)


def test_what_was_signed_is_accepted_and_gives_nonce_and_expiry() -> None:
    assert verify(KEY, ENVELOPE, BODY, HEADER, now=NOW + 1) == (NONCE.hex(), int(NOW) + LIFETIME_SECONDS)


@pytest.mark.parametrize(
    "change",
    [
        {"receiver_pod_uid": "other-pod"},
        {"attempt": 4},
        {"round": 3},
        {"path": "/v1/attempt"},
        {"method": "GET"},
        {"job_uid": "other-job"},
    ],
    ids=lambda c: next(iter(c)),
)
def test_another_receiver_attempt_round_path_method_or_job_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadSignature):
        verify(KEY, dataclasses.replace(ENVELOPE, **change), BODY, HEADER, now=NOW)  # type: ignore[arg-type]


def test_another_body_is_refused() -> None:
    with pytest.raises(BadSignature):
        verify(KEY, ENVELOPE, BODY + b" ", HEADER, now=NOW)


def test_the_key_of_another_role_or_job_is_refused() -> None:
    for key in (derive_key(MASTER, "job-uid", Role.PEER), derive_key(MASTER, "job-uid-2", Role.OPERATOR), bytes(32)):
        with pytest.raises(BadSignature):
            verify(key, ENVELOPE, BODY, HEADER, now=NOW)


def test_keys_do_not_depend_on_where_uid_ends_and_role_begins() -> None:
    keys = {derive_key(MASTER, uid, role) for uid in ("a", "a-peer", "aoperator") for role in Role}
    assert len(keys) == 6
    assert all(len(k) == 32 for k in keys)


def test_an_expired_signature_is_refused() -> None:
    verify(KEY, ENVELOPE, BODY, HEADER, now=NOW + LIFETIME_SECONDS)
    with pytest.raises(BadSignature, match="expired"):
        verify(KEY, ENVELOPE, BODY, HEADER, now=NOW + LIFETIME_SECONDS + 1)


def test_a_signature_from_the_far_future_is_refused() -> None:
    with pytest.raises(BadSignature, match="longer"):
        verify(KEY, ENVELOPE, BODY, HEADER, now=NOW - 2 * LIFETIME_SECONDS)


@given(st.integers(0, len(HEADER) - 1), st.characters(min_codepoint=33, max_codepoint=126))
def test_a_header_with_any_character_changed_is_refused(position: int, character: str) -> None:
    changed = HEADER[:position] + character + HEADER[position + 1 :]
    if changed == HEADER:
        return
    with pytest.raises(BadSignature):
        verify(KEY, ENVELOPE, BODY, changed, now=NOW)


@given(st.text(max_size=200))
def test_any_other_header_is_refused_and_never_crashes(header: str) -> None:
    with pytest.raises(BadSignature):
        verify(KEY, ENVELOPE, BODY, header, now=NOW)


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_text_that_moves_from_one_field_to_the_next_changes_the_signature(a: str, b: str, c: str, d: str) -> None:
    first = Envelope("POST", a + b, c, d, 1)
    second = Envelope("POST", a, b + c, d, 1)
    if first == second:
        return
    header = sign(KEY, first, BODY, now=NOW, nonce=NONCE)
    with pytest.raises(BadSignature):
        verify(KEY, second, BODY, header, now=NOW)


def test_short_keys_and_nonces_are_refused() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        derive_key(bytes(31), "job-uid", Role.PEER)
    with pytest.raises(ValueError, match="16"):
        sign(KEY, ENVELOPE, BODY, now=NOW, nonce=b"short")
