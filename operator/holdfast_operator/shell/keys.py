"""The master key: a Secret of the operator's own namespace, made once (H2). Never logged, never sent; jobs get keys derived from it."""

import base64
import secrets

from holdfast_operator.shell.kube import ApiError, Kube

NAME = "holdfast-master-key"
FIELD = "key"
KEY_BYTES = 32


async def master_key(kube: Kube, namespace: str) -> bytes:
    """Reads the key, or makes it. Two operators that start at once agree: whoever loses the create reads the winner's. Raises ApiError, ValueError."""
    path = f"/api/v1/namespaces/{namespace}/secrets"
    found = await _read(kube, path)
    if found is not None:
        return found
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": NAME, "namespace": namespace, "labels": {"app.kubernetes.io/name": "holdfast"}},
        "type": "Opaque",
        "immutable": True,
        "data": {FIELD: base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()},
    }
    try:
        await kube.create(path, body)
    except ApiError as e:
        if e.status != 409:
            raise
    found = await _read(kube, path)
    if found is None:
        raise ValueError(f"Secret {NAME} in namespace {namespace} has just been made and is not there")
    return found


async def _read(kube: Kube, path: str) -> bytes | None:
    try:
        secret = await kube.get(f"{path}/{NAME}")
    except ApiError as e:
        if e.status == 404:
            return None
        raise
    key = base64.b64decode((secret.get("data") or {}).get(FIELD, ""))
    if len(key) < KEY_BYTES:
        raise ValueError(
            f"Secret {NAME}, field {FIELD}: {len(key)} bytes where {KEY_BYTES} are needed; delete it and restart"
        )
    return key
