"""Pods over one kept-open connection: starting kubectl for every look would cost more than what is measured."""

import json
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException


class Pods:
    """Of one namespace. Safe to be used by one thread at a time."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self._client = config.new_client_from_config(config_file=str(kubeconfig))
        self._core = client.CoreV1Api(self._client)
        self._namespace = namespace

    def close(self) -> None:
        self._client.close()

    def find(self, selector: str) -> list[dict[str, Any]]:
        answer = self._core.list_namespaced_pod(self._namespace, label_selector=selector, _preload_content=False)
        return list(json.loads(answer.data)["items"])

    def create(self, manifest: dict[str, Any]) -> None:
        self._core.create_namespaced_pod(self._namespace, manifest, _preload_content=False).read()

    def evict(self, name: str) -> None:
        """As `kubectl drain` does: the pod has its grace."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        self._core.create_namespaced_pod_eviction(name, self._namespace, body, _preload_content=False).read()

    def delete(self, name: str, *, grace: int | None = None) -> None:
        """One that is gone is deleted."""
        how = {} if grace is None else {"grace_period_seconds": grace}
        try:
            self._core.delete_namespaced_pod(name, self._namespace, _preload_content=False, **how).read()
        except ApiException as e:
            if e.status != 404:
                raise

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What of its output is JSON; nothing while it has not begun."""
        try:
            answer = self._core.read_namespaced_pod_log(name, self._namespace, _preload_content=False)
        except ApiException:
            return []
        found = []
        for line in answer.data.decode(errors="replace").splitlines():
            if line.startswith('{"mark"'):
                found.append(json.loads(line))
        return found


def is_leaving(pod: dict[str, Any]) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp")) or pod["status"].get("phase") in ("Failed", "Succeeded")
