"""The few kubectl calls that the demo and the cluster tests make, as functions that return parsed JSON.

kubectl rather than a client library, because a person who reads the demo can type the same.
"""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class KubectlFailed(Exception):
    """kubectl said no; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Kube:
    """kubectl of one cluster."""

    kubectl: Path
    kubeconfig: Path

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Output of one kubectl call. Raises KubectlFailed."""
        done = subprocess.run(
            [str(self.kubectl), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=stdin, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        if done.returncode:
            raise KubectlFailed(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, kind: str, name: str = "", *, namespace: str = "", selector: str = "") -> dict[str, Any]:
        """One object, or a list (`items`) where no name is given."""
        arguments = ["get", kind, "-o", "json"]
        arguments += [name] if name else []
        arguments += ["-n", namespace] if namespace else []
        arguments += ["-l", selector] if selector else []
        found: dict[str, Any] = json.loads(self.run(*arguments))
        return found

    def find(self, kind: str, name: str, *, namespace: str = "") -> dict[str, Any] | None:
        """The object, or None if there is none of that name."""
        try:
            return self.get(kind, name, namespace=namespace)
        except KubectlFailed as e:
            if "NotFound" in str(e):
                return None
            raise

    def apply(self, *objects: dict[str, Any]) -> None:
        """Creates or updates; the objects are sent as one List."""
        self.run("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def logs(self, pod: str, namespace: str, container: str = "trainer") -> str:
        return self.run("logs", pod, "-n", namespace, "-c", container, timeout=60)

    def follow(self, pod: str, namespace: str, into: Path, container: str = "trainer") -> "subprocess.Popen[bytes]":
        """Writes what a pod prints into a file as it prints it: the pod may be gone before anybody asks. The caller ends the process."""
        command = [
            str(self.kubectl),
            f"--kubeconfig={self.kubeconfig}",
            "logs",
            "-f",
            pod,
            "-n",
            namespace,
            "-c",
            container,
        ]
        with into.open("wb") as output:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL)


def wait_for(what: str, test: Callable[[], Any], *, timeout: float, every: float = 0.25) -> Any:
    """The first true result of `test`. Errors of kubectl count as "not yet"; after `timeout` seconds TimeoutError names what was awaited."""
    end = time.monotonic() + timeout
    last: Exception | None = None
    while True:
        try:
            if result := test():
                return result
        except (KubectlFailed, subprocess.TimeoutExpired) as e:
            last = e
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout:.0f} s: {what}" + (f" ({last})" if last else ""))
        time.sleep(every)
