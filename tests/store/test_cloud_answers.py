"""B7 for Google Cloud Storage and Azure: what each answer means. Pure: codes are those that the services document."""

import pytest

from holdfast_store.cloud_answers import AZURE, GCS, Words, classify, credential_problem, read
from holdfast_store.errors import Absent, AlreadyExists, Denied, Full, Misconfigured, StoreError, Unavailable
from holdfast_store.s3_answers import Answer

MEANS = [
    (GCS, Answer(404, "NoSuchKey"), Absent),
    (GCS, Answer(404, "NoSuchBucket"), Misconfigured),
    (GCS, Answer(404), Unavailable),
    (GCS, Answer(401, "AuthenticationRequired"), Denied),
    (GCS, Answer(401), Denied),
    (GCS, Answer(403, "AccessDenied"), Denied),
    (GCS, Answer(400, "ExpiredToken"), Denied),
    (GCS, Answer(403, "RetentionPolicyNotMet"), Misconfigured),
    (GCS, Answer(412, "PreconditionFailed"), AlreadyExists),
    (GCS, Answer(429, "SlowDown"), Unavailable),
    (GCS, Answer(503, "ServiceUnavailable"), Unavailable),
    (GCS, Answer(500, "InternalError"), Unavailable),
    (GCS, Answer(408, "RequestTimeout"), Unavailable),
    (GCS, Answer(400, "InvalidBucketName"), Misconfigured),
    (GCS, Answer(302), Misconfigured),
    (GCS, Answer(), Unavailable),
    (AZURE, Answer(404, "BlobNotFound"), Absent),
    (AZURE, Answer(404, "ContainerNotFound"), Misconfigured),
    (AZURE, Answer(404, "ResourceNotFound"), Unavailable),
    (AZURE, Answer(404), Unavailable),
    (AZURE, Answer(409, "BlobAlreadyExists"), AlreadyExists),
    (AZURE, Answer(412, "ConditionNotMet"), AlreadyExists),
    (AZURE, Answer(409, "ContainerBeingDeleted"), Misconfigured),
    (AZURE, Answer(409, "BlobImmutableDueToPolicy"), Misconfigured),
    (AZURE, Answer(409), Unavailable),
    (AZURE, Answer(403, "AuthenticationFailed"), Denied),
    (AZURE, Answer(403, "AuthorizationPermissionMismatch"), Denied),
    (AZURE, Answer(401, "NoAuthenticationInformation"), Denied),
    (AZURE, Answer(503, "ServerBusy"), Unavailable),
    (AZURE, Answer(500, "OperationTimedOut"), Unavailable),
    (AZURE, Answer(413, "RequestBodyTooLarge"), Full),
    (AZURE, Answer(507), Full),
]


@pytest.mark.parametrize(("words", "answer", "kind"), MEANS)
def test_each_answer_has_one_meaning(words: Words, answer: Answer, kind: type[StoreError]) -> None:
    assert type(classify(answer, words, key="a/x", where="there")) is kind


def test_only_the_services_own_word_is_absence() -> None:
    """What one service says is not believed of the other, nor of a gateway."""
    assert not isinstance(classify(Answer(404, "NoSuchKey"), AZURE, key="k", where="w"), Absent)
    assert not isinstance(classify(Answer(404, "BlobNotFound"), GCS, key="k", where="w"), Absent)


def test_an_object_in_a_batch_has_an_answer_of_its_own() -> None:
    text = "Bulk delete request failed for key p/q/a/x: Not permitted. (code: 403)  Debug source: DeleteFailed {"
    assert isinstance(classify(read(text), AZURE, key="a/x", where="w"), Denied)


TOKEN = "Generic GCS error: Error performing token request: Error performing GET http://metadata/token in 1ms - "


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (TOKEN + "Server returned non-2xx status code: 403 Forbidden: x", Denied),
        (TOKEN + "Server returned non-2xx status code: 503 Service Unavailable: x", Unavailable),
        (TOKEN + "HTTP error: error sending request", Unavailable),
        ("Generic MicrosoftAzure error: Error reading federated token file   Debug source", Unavailable),
    ],
)
def test_a_token_that_cannot_be_had_names_where_credentials_come_from(text: str, kind: type[StoreError]) -> None:
    error = credential_problem(text, GCS, where="gs://b/p")
    assert type(error) is kind
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(error)


def test_an_object_whose_name_speaks_of_tokens_is_no_problem_of_credentials() -> None:
    assert credential_problem("Object at location identity/token-request not found: ...", GCS, where="w") is None
