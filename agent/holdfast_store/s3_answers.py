"""What a failed request to an S3 server means (B7): pure, from status code and error code to one of our classes.

The danger is reading too much into 404: a wrong access key gives 404 on one server, a missing bucket on all, and a proxy's error page on some days. Only
the code NoSuchKey is absence. Bodies are not trusted: code and message are cut and stripped before they reach a message or a log.
"""

import re
from dataclasses import dataclass

from holdfast_store.errors import Absent, AlreadyExists, Denied, Full, Misconfigured, StoreError, Unavailable

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9._-]{1,80})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,400})")

BAD_CERTIFICATE = "BadCertificate"
"""Not a server's word: no conversation took place."""

EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"}
"""Credentials that were good once, or not yet: newer ones may be there."""

_DENIED = EXPIRED | {
    "AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidAccessKeyId",
    "SignatureDoesNotMatch", "NotSignedUp", "XAdminUserNotFound", "InvalidSecurity", "Forbidden", "UnauthorizedAccess",
}  # fmt: skip
_REGION = {
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "IncorrectEndpoint",
}
_CONFLICT = {"ConditionalRequestConflict", "OperationAborted"}
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}
_FULL = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "EntityTooLarge", "ServiceQuotaExceeded"}
_PASSING = (0, 404, 408, 425, 429, 500)
_TRANSIENT = {
    "RequestTimeout",
    "BadDigest",
    "XAmzContentChecksumMismatch",
    "IncompleteBody",
    "InvalidDigest",
    "SlowDown",
    "Throttling",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of a failed request. `status` 0: there was no answer."""

    status: int = 0
    code: str = ""
    message: str = ""

    def __str__(self) -> str:
        if not self.status and not self.code:
            return self.message or "no answer"
        return " ".join(part for part in (str(self.status or ""), self.code, self.message) if part)


def read_text(text: str) -> Answer:
    """The answer inside an obstore error, whose message holds status and body."""
    status, code, message = _STATUS.search(text), _CODE.search(text), _MESSAGE.search(text)
    if not status and "certificate" in text.lower():
        return Answer(code=BAD_CERTIFICATE)
    if not status:
        return Answer(message=_tidy(text.split("Debug source")[0])[-300:])
    return Answer(int(status[1]), code[1] if code else "", _tidy(message[1]) if message else "")


def read_body(status: int, body: bytes) -> Answer:
    """The answer of a request that was refused with `status`."""
    text = body.decode("utf-8", "replace")
    code, message = _CODE.search(text), _MESSAGE.search(text)
    return Answer(status, code[1] if code else "", _tidy(message[1]) if message else "")


def classify(answer: Answer, *, key: str, where: str) -> StoreError:
    """The error to raise. `where` names bucket, endpoint and region for the reader."""
    code, status = answer.code, answer.status
    about = f"{key or 'the bucket'} at {where}: {answer}"
    if code == "NoSuchKey":
        return Absent(about)
    if code == "NoSuchBucket":
        return Misconfigured(f"the bucket does not exist ({where}): create it, or correct spec.checkpoint.storage.uri")
    if code in _REGION or status in (301, 307):
        return Misconfigured(
            f"wrong region or endpoint ({where}; {answer}): set spec.checkpoint.storage.region to the bucket's own"
        )
    if code == BAD_CERTIFICATE:
        return Misconfigured(
            f"the server's certificate is not trusted ({where}): put its authority into a file and name it in AWS_CA_BUNDLE"
        )
    if code in _CLOCK:
        return Misconfigured(f"the clock of this machine is wrong ({where}; {answer})")
    if code in _FULL or status == 507:
        return Full(about)
    if code in _DENIED or status in (401, 403):
        return Denied(
            f"access denied ({about}): check the keys of the secret in spec.checkpoint.storage.secretName and the bucket's policy"
        )
    if status == 412 and code not in _CONFLICT:
        return AlreadyExists(about)
    if code in _CONFLICT or code in _TRANSIENT or status in _PASSING or (status == 409 and not code) or status >= 502:
        # 404 without NoSuchKey is nothing that may be believed; it might be a gateway that has not found its server yet.
        return Unavailable(about)
    return Misconfigured(f"the server refuses the request ({about})")


def _tidy(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).strip()[:400]
