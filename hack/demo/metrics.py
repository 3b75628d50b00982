"""Prometheus for the demo: a configuration, the list of pods to scrape, and the queries the demo shows.

Debian's Prometheus is built without Kubernetes discovery, so the demo lists the pods itself, into the file that `file_sd_configs` reads.
"""

import json
import threading
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hack.demo.kube import Kube, KubectlFailed

AGENT_PORT, OPERATOR_PORT = 8471, 8472


def scrape_config(targets: Path, *, interval: str = "1s") -> dict[str, Any]:
    """A Prometheus configuration (JSON is YAML) that scrapes whatever `targets` lists."""
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "scrape_configs": [
            {
                "job_name": "holdfast",
                # The operator's series name the job they are about; these labels are not the scrape's.
                "honor_labels": True,
                "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}],
            }
        ],
    }


def targets_of(pods: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`file_sd` entries of the operator's and the training pods that run. Pure."""
    found = []
    for pod in pods:
        labels, address = pod["metadata"].get("labels", {}), pod["status"].get("podIP")
        if not address or pod["status"].get("phase") != "Running":
            continue
        if labels.get("app.kubernetes.io/name") == "holdfast":
            port = OPERATOR_PORT
        elif labels.get("app.kubernetes.io/managed-by") == "holdfast":
            port = AGENT_PORT
        else:
            continue
        found.append({"targets": [f"{address}:{port}"], "labels": {"pod": pod["metadata"]["name"]}})
    return found


class Discovery:
    """Keeps the list of targets current, in a thread, until `stop()`."""

    def __init__(self, kube: Kube, targets: Path) -> None:
        self._kube, self._targets = kube, targets
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="discovery", daemon=True)

    def start(self) -> None:
        self._write()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            self._write()

    def _write(self) -> None:
        try:
            pods = json.loads(self._kube.run("get", "pods", "-A", "-o", "json"))["items"]
        except KubectlFailed:
            return  # the next look is a second away
        new = self._targets.with_suffix(".new")
        new.write_text(json.dumps(targets_of(pods)))
        new.rename(self._targets)


def query(base: str, expression: str) -> list[tuple[dict[str, str], float]]:
    """An instant query: (labels, value) of each series."""
    url = f"{base}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        data = json.load(answer)
    return [(r["metric"], float(r["value"][1])) for r in data["data"]["result"]]
