"""Errors of the contract.

ContractError
├── Malformed      bytes that are not strict JSON, or not of the announced type (the sender's fault)
├── TooLarge       longer than the reader allows; raised before anything is allocated for the content
├── WrongSchema    a schema version that this release does not read
├── BadName        a namespace, job, uid or key that may not become part of a path
└── BadSignature   a signed request that is forged, expired, replayed or meant for somebody else
"""


class ContractError(Exception):
    """Base of everything this package raises."""


class Malformed(ContractError):
    """The bytes are not strict JSON, or a field is missing or of the wrong type. The message names the field."""


class TooLarge(ContractError):
    """The input is longer than the reader allows."""


class WrongSchema(ContractError):
    """The `schema` number is not one that this release reads."""


class BadName(ContractError):
    """A name may not become part of a key or path (empty, too long, separators, dots, other characters)."""


class BadSignature(ContractError):
    """A signed request is forged, expired, replayed, or addressed to another pod, job, attempt or round."""
