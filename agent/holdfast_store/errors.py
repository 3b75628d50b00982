"""What can go wrong with a store, split by who has to act. Foreign errors (OSError, obstore, botocore) are wrapped at one border per backend.

StoreError
├── Absent          the object does not exist: proved, never guessed (B7)
├── AlreadyExists   a create-only write found something there
├── Unavailable     may work later: time-outs, 5xx, connection errors; the only class that is retried
├── Full            no space or quota left; retrying without freeing something is useless
├── Denied          credentials are missing, wrong, expired or too weak
├── Misconfigured   URI, bucket, region, directory or a newer format: a person has to change something
├── Corrupt         bytes are not what a digest, a length or the format says
├── NotOnRecord     a commit that the rules forbid: before the claim (A6), out of order (A8), expired (D2), on a lost base (B4)
└── Superseded      a newer attempt has claimed (A5), or another life of this one (A4)
"""

from holdfast_api.manifest import Claim


class StoreError(Exception):
    """Base of everything this package raises for what a store does or holds. Wrong arguments are ValueError."""


class Absent(StoreError):
    """The object does not exist, in a bucket or directory that is known to exist (B7)."""


class AlreadyExists(StoreError):
    """A create-only write lost, or has been done before. Who calls compares contents before concluding anything (A4, platform: a lost answer)."""


class Unavailable(StoreError):
    """The store did not answer, or answered that it cannot now. Whether a write has happened is unknown."""


class Full(StoreError):
    """No space or quota is left."""


class Denied(StoreError):
    """The store knows us not, or not enough. Never to be read as "no checkpoint" (B7)."""


class Misconfigured(StoreError):
    """A person has to change something: the message names the field, the value and the remedy."""


class Corrupt(StoreError):
    """`key` holds other bytes than its digest, length or format says."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(f"{key}: {what}")
        self.key = key


class NotOnRecord(StoreError):
    """A commit that must not count: nothing was written."""


class Superseded(StoreError):
    """`newest` is the claim that stands; this process writes nothing more that counts."""

    def __init__(self, newest: Claim) -> None:
        super().__init__(
            f"attempt {newest.attempt} is claimed by another process (incarnation {newest.incarnation[:8]})"
        )
        self.newest = newest
