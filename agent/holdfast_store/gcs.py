"""`gs://bucket/prefix`: Google Cloud Storage by its own interface, whose conditional writes are exact (create-only is `x-goog-if-generation-match: 0`).

Credentials, by obstore, which renews tokens before they expire: GOOGLE_SERVICE_ACCOUNT_KEY (the JSON itself), GOOGLE_SERVICE_ACCOUNT or
GOOGLE_APPLICATION_CREDENTIALS (a file of a service account or an authorized user), else the metadata server, which is also GKE's workload identity.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import obstore.store

from holdfast_api.config import StorageConfig
from holdfast_store.cloud import CloudBucket, CloudSettings, client_options, opened
from holdfast_store.cloud_answers import GCS
from holdfast_store.errors import Misconfigured
from holdfast_store.places import bucket_and_prefix, ca_from
from holdfast_store.s3_border import checked_endpoint

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]\Z")
_NAMES = "a bucket (3 or more lower-case letters, digits, dots, dashes and underscores)"
_KNOWN = {
    "GOOGLE_SERVICE_ACCOUNT_KEY": "service_account_key",
    "GOOGLE_SERVICE_ACCOUNT": "service_account",
    "GOOGLE_SERVICE_ACCOUNT_PATH": "service_account",
    "GOOGLE_APPLICATION_CREDENTIALS": "application_credentials",
}


def open_gcs(storage: StorageConfig, environ: Mapping[str, str]) -> CloudBucket:
    """Touches no network. Misconfigured for a URI, an endpoint or a file of credentials that cannot be."""
    bucket, prefix = bucket_and_prefix(storage.uri, "gs", _BUCKET, _NAMES)
    endpoint = checked_endpoint(storage.endpoint, "spec.checkpoint.storage.endpoint") if storage.endpoint else ""
    where = f"gs://{bucket}/{prefix} ({endpoint or 'Google'})"
    http = endpoint.startswith("http://")
    if http and urlsplit(endpoint).hostname not in ("127.0.0.1", "localhost", "::1"):
        raise Misconfigured(
            f"spec.checkpoint.storage.endpoint {endpoint!r}: gs:// speaks without TLS only with an emulator on this machine; write https://host:port"
        )
    options: dict[str, Any] = {"base_url": endpoint} if endpoint else {}
    if http:
        options["credential_provider"] = _nobody
    else:
        options |= {option: environ[name] for name, option in reversed(_KNOWN.items()) if environ.get(name)}
    if "service_account_key" in options:
        options.pop("service_account", None)  # the library refuses two
    settings = CloudSettings("gs", bucket, prefix, where, GCS, {"version": "1"})
    store = opened(
        lambda: obstore.store.GCSStore(
            bucket,
            prefix=prefix.rstrip("/") or None,
            client_options=client_options(http=http, ca=ca_from(environ)),
            retry_config={"max_retries": 0},
            **options,
        ),
        where,
    )
    return CloudBucket(settings, store)


def _nobody() -> dict[str, Any]:
    """An emulator asks for no token; a real one never crosses a network in clear text."""
    return {"token": "anonymous", "expires_at": None}
