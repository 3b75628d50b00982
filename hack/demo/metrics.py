"""Metrics for the demo: what to scrape, a Prometheus that does, and the sums the demo shows.

The Prometheus is built without Kubernetes discovery, so the demo lists the pods itself, into the file that `file_sd_configs` reads. Where pods cannot be
reached by their addresses it scrapes through the API server; where no Prometheus runs, the operator's page is read as it is.
"""

import json
import re
import threading
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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


def targets_of(pods: Sequence[dict[str, Any]], proxy: str | None = None) -> list[dict[str, Any]]:
    """`file_sd` entries of the operator's and the training pods that run; through the API server if `proxy` leads to it. Pure."""
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
        name = pod["metadata"]["name"]
        if proxy is None:
            found.append({"targets": [f"{address}:{port}"], "labels": {"pod": name}})
        else:
            path = page_path(pod["metadata"]["namespace"], name, port)
            found.append({"targets": [proxy], "labels": {"pod": name, "__metrics_path__": path}})
    return found


def page_path(namespace: str, pod: str, port: int) -> str:
    """Where the API server gives out a pod's page of metrics."""
    return f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics"


class Discovery:
    """Keeps the list of targets current, in a thread, until `stop()`."""

    def __init__(self, kube: Kube, targets: Path, proxy: str | None = None) -> None:
        self._kube, self._targets, self._proxy = kube, targets, proxy
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
        new.write_text(json.dumps(targets_of(pods, self._proxy)))
        new.rename(self._targets)


Series = list[tuple[dict[str, str], float]]


@dataclass(frozen=True)
class Sum:
    """Series of one metric with these labels added up, apart for each value of the label `by`."""

    metric: str
    by: str = ""
    where: tuple[tuple[str, str], ...] = ()

    @property
    def promql(self) -> str:
        chosen = ",".join(f"{label}='{value}'" for label, value in self.where)
        return f"sum{f' by ({self.by}) ' if self.by else ''}({self.metric}{f'{{{chosen}}}' if chosen else ''})"

    def of(self, page: str) -> Series:
        """The same from a page in Prometheus' text form. Pure."""
        found: dict[str, float] = defaultdict(float)
        for line in page.splitlines():
            match = _SAMPLE.match(line)
            if match is None or match["name"] != self.metric:
                continue
            labels = dict(_LABEL.findall(match["labels"] or ""))
            if all(labels.get(label) == value for label, value in self.where):
                found[labels.get(self.by, "")] += float(match["value"])
        return [({self.by: value} if self.by else {}, total) for value, total in sorted(found.items())]


_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Source(Protocol):
    """Where the demo's figures come from."""

    def read(self, wanted: Sum) -> Series:
        """Now."""


@dataclass(frozen=True)
class Prometheus:
    """A server that scrapes."""

    base: str

    def read(self, wanted: Sum) -> Series:
        return query(self.base, wanted.promql)


@dataclass(frozen=True)
class OperatorPage:
    """The operator's own page, through the API server."""

    kube: Kube
    namespace: str

    def read(self, wanted: Sum) -> Series:
        pods = self.kube.get("pods", namespace=self.namespace, selector="app.kubernetes.io/name=holdfast")["items"]
        running = [p["metadata"]["name"] for p in pods if p["status"].get("phase") == "Running"]
        pages = [self.kube.run("get", "--raw", page_path(self.namespace, pod, OPERATOR_PORT)) for pod in running]
        return wanted.of("\n".join(pages))


def query(base: str, expression: str) -> Series:
    """An instant query: (labels, value) of each series."""
    url = f"{base}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        data = json.load(answer)
    return [(r["metric"], float(r["value"][1])) for r in data["data"]["result"]]
