"""Signed requests between operator and agents, and among agents (protocol H2).

A master key lives in the operator's own namespace. Each job has one key per role, derived with HKDF-SHA256 (RFC 5869) from the master key, the
job's uid and the role: the operator can compute it again at any time. A request carries an HMAC-SHA256 over everything that says for whom and
for what it is; never the key itself.

    Holdfast-Signature: v1 <expires, unix seconds>.<nonce, hex>.<mac, hex>
"""

import hashlib
import hmac
from dataclasses import dataclass
from enum import StrEnum

from holdfast_api.errors import BadSignature

HEADER = "Holdfast-Signature"
HEADER_ATTEMPT = "Holdfast-Attempt"
HEADER_ROUND = "Holdfast-Round"
LIFETIME_SECONDS = 60
"""How long a signature is good for: longer than clocks in a cluster differ, short enough that few nonces are remembered."""


class Role(StrEnum):
    """Who may sign with a key. The value is also the file name in the per-job Secret."""

    OPERATOR = "operator"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is signed beside the body."""

    method: str
    path: str
    job_uid: str
    receiver_pod_uid: str
    attempt: int
    round: int = 0


def derive_key(master: bytes, job_uid: str, role: Role) -> bytes:
    """32 bytes: HKDF-SHA256 with the job's uid as salt and the role as info."""
    if len(master) < 32:
        raise ValueError(f"the master key has {len(master)} bytes; 32 are needed")
    pseudorandom = hmac.digest(job_uid.encode(), master, hashlib.sha256)
    return hmac.digest(pseudorandom, b"holdfast/v1/" + role.value.encode() + b"\x01", hashlib.sha256)


def sign(key: bytes, envelope: Envelope, body: bytes, *, now: float, nonce: bytes) -> str:
    """The header's value. `nonce` must be at least 16 random bytes, never used twice."""
    if len(nonce) < 16:
        raise ValueError("a nonce has at least 16 bytes")
    expires = int(now) + LIFETIME_SECONDS
    return f"v1 {expires}.{nonce.hex()}.{_mac(key, envelope, body, expires, nonce.hex())}"


def verify(key: bytes, envelope: Envelope, body: bytes, header: str, *, now: float) -> tuple[str, int]:
    """Returns (nonce, expires) for the caller's memory of used nonces; raises BadSignature. Compares in constant time."""
    version, _, rest = header.partition(" ")
    parts = rest.split(".")
    if version != "v1" or len(parts) != 3 or not parts[0].isdigit() or len(parts[0]) > 12:
        raise BadSignature("the signature header is malformed")
    expires = int(parts[0])
    if not hmac.compare_digest(parts[2].encode(), _mac(key, envelope, body, expires, parts[1]).encode()):
        raise BadSignature("the signature does not fit the request, its receiver, attempt or round")
    if now > expires:
        raise BadSignature("the signature has expired; compare the clocks of the nodes")
    if expires > now + 2 * LIFETIME_SECONDS:
        raise BadSignature(
            "the signature is valid for longer than signatures are made; compare the clocks of the nodes"
        )
    return parts[1], expires


def _mac(key: bytes, envelope: Envelope, body: bytes, expires: int, nonce: str) -> str:
    parts = (
        "holdfast-v1", envelope.method, envelope.path, envelope.job_uid, envelope.receiver_pod_uid,
        str(envelope.attempt), str(envelope.round), str(expires), nonce, hashlib.sha256(body).hexdigest(),
    )  # fmt: skip
    # Lengths before the parts: no two lists of parts give the same bytes.
    message = b"".join(len(p.encode()).to_bytes(4, "big") + p.encode() for p in parts)
    return hmac.digest(key, message, hashlib.sha256).hex()
