"""Which signed request is let in (H2): fits its receiver, attempt and round, is not expired, and was not seen before."""

from collections.abc import Mapping
from dataclasses import dataclass

from holdfast_api import signing
from holdfast_api.errors import BadSignature

MAX_NONCES = 100_000
"""More within two minutes than any job sends; beyond it requests are refused, not remembered without bound."""


@dataclass(frozen=True, slots=True)
class Signed:
    """What a good signature says."""

    attempt: int
    at: int
    """When it was made, by the sender's clock: Unix seconds, rounded down."""


class Gatekeeper:
    """Remembers used nonces until their signatures have expired."""

    def __init__(self, keys: Mapping[signing.Role, bytes], job_uid: str, pod_uid: str) -> None:
        self._keys = keys
        self._job_uid = job_uid
        self._pod_uid = pod_uid
        self._used: dict[str, int] = {}

    def check(
        self, *, role: signing.Role, method: str, path: str, headers: Mapping[str, str], body: bytes, now: float
    ) -> Signed:
        """Raises BadSignature."""
        attempt = _number(headers.get(signing.HEADER_ATTEMPT, ""), signing.HEADER_ATTEMPT)
        round_number = _number(headers.get(signing.HEADER_ROUND, "0"), signing.HEADER_ROUND)
        envelope = signing.Envelope(method, path, self._job_uid, self._pod_uid, attempt, round_number)
        nonce, expires = signing.verify(self._keys[role], envelope, body, headers.get(signing.HEADER, ""), now=now)
        self._remember(f"{role.value}/{nonce}", expires, now)
        return Signed(attempt, expires - signing.LIFETIME_SECONDS)

    def _remember(self, nonce: str, expires: int, now: float) -> None:
        if nonce in self._used:
            raise BadSignature("the request was seen before")
        if len(self._used) >= MAX_NONCES:
            self._used = {n: e for n, e in self._used.items() if e >= now}
            if len(self._used) >= MAX_NONCES:
                raise BadSignature("too many requests within the life of a signature")
        self._used[nonce] = expires


def _number(text: str, header: str) -> int:
    if not text.isdigit() or len(text) > 10:
        raise BadSignature(f"the header {header} is missing or no number")
    return int(text)
