"""`az://container/prefix`: Azure Blob Storage (create-only is `If-None-Match: *`).

The account is AZURE_STORAGE_ACCOUNT_NAME, or part of the endpoint. Credentials, by obstore, which renews tokens before they expire:
AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, a client secret (AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_CLIENT_SECRET), workload identity
(AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_FEDERATED_TOKEN_FILE: what AKS sets), else the machine's managed identity.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import obstore.store

from holdfast_api.config import StorageConfig
from holdfast_store.cloud import CloudBucket, CloudSettings, client_options, opened
from holdfast_store.cloud_answers import AZURE
from holdfast_store.errors import Misconfigured
from holdfast_store.places import bucket_and_prefix, ca_from
from holdfast_store.s3_border import checked_endpoint

_CONTAINER = re.compile(r"[a-z0-9](-?[a-z0-9]){2,62}\Z")
_NAMES = "a container (3 to 63 lower-case letters, digits and single dashes)"
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}\Z")
_KNOWN = {
    "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
    "AZURE_STORAGE_ACCESS_KEY": "account_key",
    "AZURE_STORAGE_SAS_TOKEN": "sas_key",
    "AZURE_STORAGE_SAS_KEY": "sas_key",
    "AZURE_CLIENT_ID": "client_id",
    "AZURE_TENANT_ID": "tenant_id",
    "AZURE_CLIENT_SECRET": "client_secret",
    "AZURE_FEDERATED_TOKEN_FILE": "federated_token_file",
    "AZURE_AUTHORITY_HOST": "authority_host",
    "AZURE_IDENTITY_ENDPOINT": "msi_endpoint",
}


def open_azure(storage: StorageConfig, environ: Mapping[str, str]) -> CloudBucket:
    """Touches no network. Misconfigured for a URI, an account or an endpoint that cannot be."""
    container, prefix = bucket_and_prefix(storage.uri, "az", _CONTAINER, _NAMES)
    endpoint = checked_endpoint(storage.endpoint, "spec.checkpoint.storage.endpoint") if storage.endpoint else ""
    account = environ.get("AZURE_STORAGE_ACCOUNT_NAME") or account_in(endpoint)
    if not _ACCOUNT.match(account):
        raise Misconfigured(
            f"storage uri {storage.uri!r}: no storage account is named (3 to 24 lower-case letters and digits): set AZURE_STORAGE_ACCOUNT_NAME in the "
            "secret of spec.checkpoint.storage.secretName, or write spec.checkpoint.storage.endpoint as https://ACCOUNT.blob.core.windows.net"
        )
    where = f"az://{container}/{prefix} (account {account}, {endpoint or 'Azure'})"
    http = endpoint.startswith("http://")
    options = {option: environ[name] for name, option in reversed(_KNOWN.items()) if environ.get(name)}
    if http:
        options = {name: value for name, value in options.items() if name == "account_key"}
        if not options:
            raise Misconfigured(
                f"spec.checkpoint.storage.endpoint {endpoint!r}: tokens and shared access signatures do not go over a connection without TLS; "
                "write https://host:port, or use AZURE_STORAGE_ACCOUNT_KEY, which only signs"
            )
    settings = CloudSettings("az", container, prefix, where, AZURE, {"e_tag": '"0x0"'})
    extra: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    store = opened(
        lambda: obstore.store.AzureStore(
            container,
            prefix=prefix.rstrip("/") or None,
            account_name=account,
            client_options=client_options(http=http, ca=ca_from(environ)),
            retry_config={"max_retries": 0},
            **options,
            **extra,
        ),
        where,
    )
    return CloudBucket(settings, store)


def account_in(endpoint: str) -> str:
    """`https://ACCOUNT.blob.core.windows.net`, or the last part of the path, as emulators write it; "" if there is neither."""
    parts = urlsplit(endpoint)
    if parts.path.strip("/"):
        return parts.path.strip("/").rpartition("/")[2]
    host = parts.hostname or ""
    return host.partition(".")[0] if ".blob." in host else ""
