"""Prometheus for the demo: the configuration that finds operator and agents, and the queries the demo shows."""

import json
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any


def scrape_config(kubeconfig: Path, *, interval: str = "1s") -> dict[str, Any]:
    """A Prometheus configuration (JSON is YAML): the pods that Holdfast manages and its operator, found through the API server.

    Pod addresses, not Services: the operator's pod and the training pods are reached directly from the host.
    """

    def job(name: str, label: str, value: str, port: int) -> dict[str, Any]:
        return {
            "job_name": name,
            "scrape_interval": interval,
            "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": str(kubeconfig)}],
            "relabel_configs": [
                {"source_labels": [f"__meta_kubernetes_pod_label_{label}"], "regex": value, "action": "keep"},
                {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "Running", "action": "keep"},
                {"source_labels": ["__meta_kubernetes_pod_container_init"], "regex": "false", "action": "keep"},
                {
                    "source_labels": ["__meta_kubernetes_pod_ip"],
                    "target_label": "__address__",
                    "replacement": f"$1:{port}",
                },
                {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
                {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
            ],
        }

    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "scrape_configs": [
            job("holdfast-operator", "app_kubernetes_io_name", "holdfast", 8472),
            job("holdfast-agents", "app_kubernetes_io_managed_by", "holdfast", 8471),
        ],
    }


def query(base: str, expression: str) -> list[tuple[dict[str, str], float]]:
    """An instant query: (labels, value) of each series."""
    url = f"{base}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        data = json.load(answer)
    return [(r["metric"], float(r["value"][1])) for r in data["data"]["result"]]
