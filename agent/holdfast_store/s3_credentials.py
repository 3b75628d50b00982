"""Credentials for S3 from boto3's chain: environment, profile, web identity, container, instance. Asked again and again, so that they may rotate.

Never logged and never part of a message.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import botocore.exceptions

from holdfast_store.errors import Misconfigured

_TTL = timedelta(minutes=5)
"""What obstore is told. It asks again when less than five minutes are left, so for each request that does not follow another at once: asking is cheap,
and boto3 alone knows when to renew."""


def session_from(environ: Mapping[str, str], *, region: str) -> Any:
    """A boto3 session for the process that `environ` describes. Keys in `environ` win over everything else in the chain.

    A mapping that is not the process's own environment and has no keys is answered by the rest of the chain only.
    """
    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if bool(key) != bool(secret):
        raise Misconfigured(
            "one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set without the other: put both into the secret of the storage"
        )
    if key:
        return boto3.session.Session(
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=environ.get("AWS_SESSION_TOKEN") or None,
            region_name=region,
        )
    return boto3.session.Session(region_name=region, profile_name=environ.get("AWS_PROFILE") or None)


@dataclass(slots=True)
class CredentialProvider:
    """What obstore calls for credentials, from its own threads. `problem` keeps why it could not: obstore's error shows a traceback instead."""

    session: Any
    problem: str = ""
    given: tuple[str, ...] = ()
    """What obstore was given last."""

    def __call__(self) -> dict[str, Any]:
        try:
            found = self.session.get_credentials()
            frozen = found.get_frozen_credentials() if found else None
        except (botocore.exceptions.BotoCoreError, OSError) as e:
            self.problem = f"credentials could not be fetched: {e}"[:300]
            raise
        if frozen is None or not frozen.access_key:
            self.problem = NO_CREDENTIALS
            raise LookupError("no credentials")
        self.problem = ""
        self.given = tuple(frozen)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _TTL,
        }

    def has_newer(self) -> bool:
        """Whether the chain now gives something else than it did last. For an answer that says that what was given has expired."""
        try:
            found = self.session.get_credentials()
            now = tuple(found.get_frozen_credentials()) if found else self.given
        except (botocore.exceptions.BotoCoreError, OSError):
            return False
        before, self.given = self.given, now
        return before != now


NO_CREDENTIALS = (
    "no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (by the secret in spec.checkpoint.storage.secretName), "
    "or give the pod a workload identity"
)
