"""B7 as a table: which answer of a server means what. Absence is NoSuchKey and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_store.errors import Absent, AlreadyExists, Denied, Full, Misconfigured, StoreError, Unavailable
from holdfast_store.s3_answers import Answer, classify, read_text


def of(answer: Answer) -> type[StoreError]:
    return type(classify(answer, key="a/x", where="s3://bucket"))


CASES = [
    ("a missing key", Answer(404, "NoSuchKey"), Absent),
    ("a missing bucket", Answer(404, "NoSuchBucket"), Misconfigured),
    ("an unknown user", Answer(404, "XAdminUserNotFound"), Denied),
    ("a 404 without a code, from a gateway", Answer(404), Unavailable),
    ("a 404 with a code of its own", Answer(404, "NoSuchUpload"), Unavailable),
    ("no answer", Answer(), Unavailable),
    ("forbidden without a code", Answer(403), Denied),
    ("unauthorized without a code", Answer(401), Denied),
    ("a wrong secret", Answer(403, "SignatureDoesNotMatch"), Denied),
    ("an expired token", Answer(400, "ExpiredToken"), Denied),
    ("another region", Answer(301, "PermanentRedirect"), Misconfigured),
    ("another region, by signature", Answer(400, "AuthorizationHeaderMalformed"), Misconfigured),
    ("a clock that is off", Answer(403, "RequestTimeTooSkewed"), Misconfigured),
    ("the condition failed", Answer(412, "PreconditionFailed"), AlreadyExists),
    ("a concurrent conditional write", Answer(409, "ConditionalRequestConflict"), Unavailable),
    ("slow down", Answer(503, "SlowDown"), Unavailable),
    ("slow down, as a client error", Answer(429), Unavailable),
    ("an internal error", Answer(500, "InternalError"), Unavailable),
    ("damage on the way", Answer(400, "BadDigest"), Unavailable),
    ("a full server", Answer(507), Full),
    ("a quota", Answer(403, "QuotaExceeded"), Full),
    ("a request that it does not understand", Answer(400, "InvalidArgument"), Misconfigured),
    ("a condition that it has not implemented", Answer(501, "NotImplemented"), Misconfigured),
    ("a bad gateway", Answer(502), Unavailable),
    ("a conflict without a code", Answer(409), Unavailable),
    ("a key below another object", Answer(409, "ObjectParentIsFile"), Misconfigured),
]


@pytest.mark.parametrize(("answer", "kind"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_each_answer_means_one_thing(answer: Answer, kind: type[StoreError]) -> None:
    assert of(answer) is kind


@given(st.builds(Answer, st.integers(0, 599), st.text(max_size=20), st.text(max_size=20)))
def test_only_no_such_key_is_absence(answer: Answer) -> None:
    assert (of(answer) is Absent) == (answer.code == "NoSuchKey")


def test_an_html_page_with_a_404_is_no_absence() -> None:
    text = "Object at location a/x not found: Error performing GET http://h/b/a/x - Server returned non-2xx status code: 404 Not Found: <html>gone</html>"
    assert read_text(text) == Answer(404)
    assert of(read_text(text)) is Unavailable


def test_an_answer_is_cut_and_stripped_before_it_reaches_a_message() -> None:
    text = "status code: 500 X: <Error><Code>InternalError</Code><Message>" + "a\x1b[31m\n" * 500 + "</Message></Error>"
    message = str(classify(read_text(text), key="k", where="w"))
    assert len(message) < 600
    assert message.isprintable()
