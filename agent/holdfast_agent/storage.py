"""Errors of the store and of the node's directory in words for the person who can mend them: where, what was said, what to change. Pure."""

from pathlib import Path

from holdfast_api.config import StorageConfig
from holdfast_api.messages import Blocked, BlockedReason, LocalTrouble
from holdfast_store.errors import Corrupt, Denied, Full, Misconfigured, StoreError, Unavailable

_REFUSALS = (Denied, Full, Misconfigured, Unavailable)
"""The store does not take what is given to it, for a reason that lies in the store: somebody mends it, or it passes."""
_FULL = "free space or raise the quota; it is tried again by itself"

_REMEDY = {
    BlockedReason.STORAGE_DENIED: (
        "check the Secret named by spec.checkpoint.storage.secretName (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_SERVICE_ACCOUNT_KEY, "
        "AZURE_STORAGE_ACCOUNT_KEY) and that its user may read, write, list and delete below this prefix"
    ),
    BlockedReason.STORAGE_MISCONFIGURED: "check spec.checkpoint.storage (uri, endpoint, region) and that the bucket exists",
    BlockedReason.STORAGE_UNREACHABLE: "check that the endpoint answers from this pod (DNS, NetworkPolicy, proxy); it is tried again every few seconds",
}


def blocked(error: StoreError, storage: StorageConfig) -> Blocked:
    """Never an absence: a store that cannot be read says nothing about checkpoints (B7)."""
    reason = _reason(error)
    remedy = _FULL if isinstance(error, Full) else _REMEDY[reason]
    endpoint = storage.endpoint or "the default endpoint"
    return Blocked(reason, f"{storage.uri} at {endpoint}: {type(error).__name__}: {error}"[:3000] + f"; {remedy}")


def local_trouble(error: StoreError, folder: Path) -> LocalTrouble:
    """Why an image is not on the node (fault scenarios 11-13)."""
    reason, remedy = "LocalStorageFailed", "look at the disk of this node"
    if isinstance(error, Full):
        reason = "LocalStorageFull"
        remedy = "give the volume room for two images of each rank of this worker: the newest one and the one that is being written"
    elif isinstance(error, Denied | Misconfigured):
        reason, remedy = "LocalStorageReadOnly", "make the volume writable for the user of the container"
    said = f"{folder} takes no image ({type(error).__name__}: {error})"[:1500]
    return LocalTrouble(
        reason, f"{said}; checkpoints go to the store alone, and a restart on this node reads from there; {remedy}"
    )


def refusal(error: BaseException) -> StoreError | None:
    """The error itself, if it says that the store does not take what it is given."""
    return error if isinstance(error, _REFUSALS) else None


def refusal_in(words: str) -> StoreError | None:
    """The same of another worker's words (`Flushed.error`), which begin with the name of the error's class."""
    name, _, message = words.partition(": ")
    return next((cls(message) for cls in _REFUSALS if cls.__name__ == name), None)


def _reason(error: StoreError) -> BlockedReason:
    if isinstance(error, Denied):
        return BlockedReason.STORAGE_DENIED
    if isinstance(error, Misconfigured | Corrupt):
        return BlockedReason.STORAGE_MISCONFIGURED
    if isinstance(error, Unavailable):
        return BlockedReason.STORAGE_UNREACHABLE
    return BlockedReason.STORAGE_MISCONFIGURED
