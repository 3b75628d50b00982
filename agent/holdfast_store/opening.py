"""From a storage URI to the bucket behind it. Its own file, so that no kind of bucket and the interface they share need each other."""

from collections.abc import Mapping

from holdfast_api.config import StorageConfig
from holdfast_store.bucket import Bucket
from holdfast_store.errors import Misconfigured
from holdfast_store.file import FileBucket
from holdfast_store.retry import Persistent


def open_bucket(storage: StorageConfig, environ: Mapping[str, str], *, retry_seconds: float = 60.0) -> Bucket:
    """The bucket of `storage.uri`. Touches no network: a store that is away shows at first use. Unavailable is retried for `retry_seconds` per call.

    Misconfigured for a URI of no known kind, a directory that does not exist, or credentials that are nowhere.
    """
    scheme = storage.uri.partition("://")[0]
    if scheme == "file":
        return Persistent(FileBucket.from_uri(storage.uri), retry_seconds=retry_seconds)
    if scheme == "s3":
        # Imported here: a job on a shared directory needs neither boto3's import time nor its memory.
        from holdfast_store.s3 import S3Bucket

        return Persistent(S3Bucket.from_config(storage, environ), retry_seconds=retry_seconds)
    if scheme == "gs":
        from holdfast_store.gcs import open_gcs

        return Persistent(open_gcs(storage, environ), retry_seconds=retry_seconds)
    if scheme == "az":
        from holdfast_store.azure import open_azure

        return Persistent(open_azure(storage, environ), retry_seconds=retry_seconds)
    raise Misconfigured(
        f"storage uri {storage.uri!r}: this release reads s3://bucket/prefix, gs://bucket/prefix, az://container/prefix and file:///directory; "
        "correct spec.checkpoint.storage.uri"
    )
