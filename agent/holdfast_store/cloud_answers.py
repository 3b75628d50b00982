"""What a failed request to Google Cloud Storage or Azure Blob Storage means (B7): pure, from status code and error code to one of our classes.

As for S3, only the service's own word for a missing object is absence. A 404 without it may be a gateway's page.
"""

import re
from dataclasses import dataclass

from holdfast_store.errors import Absent, AlreadyExists, Denied, Full, Misconfigured, StoreError, Unavailable
from holdfast_store.s3_answers import BAD_CERTIFICATE, Answer, read_text

_IN_A_BATCH = re.compile(r"Bulk delete request failed for key \S+: (.{0,300}?) \(code: (\d{3})\)", re.DOTALL)
_TOKEN = re.compile(r"Error performing token request|Error getting token response|Error reading federated token file")
_PASSING = (0, 404, 408, 425, 429, 500)


@dataclass(frozen=True, slots=True)
class Words:
    """The codes of one service, and its names for things in messages."""

    service: str
    credentials: str
    """What to check when access is denied."""
    absent: frozenset[str]
    no_bucket: frozenset[str]
    exists: frozenset[str]
    denied: frozenset[str]
    unusable: frozenset[str]
    """A person has to change something about the bucket or account."""
    full: frozenset[str]
    certificate: str = "put its authority into a file and name it in SSL_CERT_FILE"


GCS = Words(
    service="Google Cloud Storage",
    credentials="GOOGLE_SERVICE_ACCOUNT_KEY in the secret of spec.checkpoint.storage.secretName, GOOGLE_APPLICATION_CREDENTIALS or the pod's "
    "workload identity, and the role Storage Object Admin (roles/storage.objectAdmin) on the bucket",
    absent=frozenset({"NoSuchKey"}),
    no_bucket=frozenset({"NoSuchBucket"}),
    exists=frozenset({"PreconditionFailed"}),
    denied=frozenset({"AccessDenied", "AuthenticationRequired", "InvalidSecurity", "ExpiredToken", "InvalidToken", "SignatureDoesNotMatch", "Unauthorized"}),
    unusable=frozenset({"RetentionPolicyNotMet", "ObjectUnderActiveHold", "AccountProblem", "UserProjectAccountProblem", "UserProjectMissing"}),
    full=frozenset({"QuotaExceeded", "EntityTooLarge"}),
)  # fmt: skip
AZURE = Words(
    service="Azure Blob Storage",
    credentials="AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN in the secret of spec.checkpoint.storage.secretName, or the pod's workload "
    "identity and its role Storage Blob Data Contributor on the container",
    absent=frozenset({"BlobNotFound"}),
    no_bucket=frozenset({"ContainerNotFound"}),
    exists=frozenset({"BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet"}),
    denied=frozenset({
        "AuthenticationFailed", "AuthorizationFailure", "AuthorizationPermissionMismatch", "AuthorizationProtocolMismatch",
        "AuthorizationResourceTypeMismatch", "AuthorizationServiceMismatch", "AuthorizationSourceIPMismatch", "InsufficientAccountPermissions",
        "InvalidAuthenticationInfo", "NoAuthenticationInformation", "UnauthorizedBlobOverwrite", "KeyBasedAuthenticationNotPermitted",
    }),
    unusable=frozenset({
        "AccountIsDisabled", "ContainerBeingDeleted", "ContainerDisabled", "BlobImmutableDueToPolicy", "FeatureVersionMismatch",
        "InvalidBlobType", "ResourceTypeMismatch", "UnsupportedHttpVerb",
    }),
    full=frozenset({"AccountLimitExceeded", "InsufficientStorage", "RequestBodyTooLarge"}),
)  # fmt: skip


def read(text: str) -> Answer:
    """The answer inside an obstore error. An object that is part of a batch has its answer in a line of its own."""
    in_a_batch = _IN_A_BATCH.search(text)
    if in_a_batch:
        return Answer(int(in_a_batch[2]), "", " ".join(in_a_batch[1].split()))
    return read_text(text)


def classify(answer: Answer, words: Words, *, key: str, where: str) -> StoreError:
    """The error to raise. `where` names bucket, account and endpoint for the reader."""
    code, status = answer.code, answer.status
    about = f"{key or 'the bucket'} at {where}: {answer}"
    if code in words.absent:
        return Absent(about)
    if code in words.no_bucket:
        return Misconfigured(
            f"the bucket or container does not exist ({where}): create it, or correct spec.checkpoint.storage.uri"
        )
    if code == BAD_CERTIFICATE:
        return Misconfigured(f"the server's certificate is not trusted ({where}): {words.certificate}")
    if code in words.unusable or status in (301, 307, 308):
        return Misconfigured(f"{words.service} refuses ({about}): correct the bucket's settings or the account")
    if code in words.full or status == 507:
        return Full(about)
    if code in words.denied or status in (401, 403):
        return Denied(f"access denied ({about}): check {words.credentials}")
    if code in words.exists or status == 412:
        return AlreadyExists(about)
    if status in _PASSING or status == 409 or status >= 502:
        # 404 without the service's own code is nothing that may be believed; 409: somebody works on the same object at this moment.
        return Unavailable(about)
    return Misconfigured(f"{words.service} refuses the request ({about})")


def credential_problem(text: str, words: Words, *, where: str) -> StoreError | None:
    """The error, if it is one of fetching a token. A refusal is Denied; an identity service that does not answer may answer later."""
    if not _TOKEN.search(text.split("Debug source")[0]):
        return None
    answer = read_text(text)
    message = f"no token for {words.service} ({where}; {answer}): check {words.credentials}"
    if 400 <= answer.status < 500 and answer.status not in (404, 408, 429):
        return Denied(message)
    return Unavailable(message)
