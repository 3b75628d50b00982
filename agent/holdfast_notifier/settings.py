"""What the process is told at start: command line, else environment where a variable is named, else default."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast_api import names

CLOUDS = ("auto", "aws", "gcp", "azure")


@dataclass(frozen=True, slots=True)
class Settings:
    node: str
    cloud: str
    """`auto`: by the node's `spec.providerID`."""
    poll_seconds: float
    timeout_seconds: float
    """Of one call to the metadata service."""
    ahead_seconds: int
    """So long before it, maintenance that was scheduled is acted on."""
    node_shutdown_seconds: int
    """What the kubelet leaves ordinary pods of a shutdown of the node; 0: not known."""
    gcp_preemption_notice_seconds: int
    gcp_maintenance_notice_seconds: int
    azure_acknowledge: bool
    metadata_url: str = ""
    """For tests: a stand-in of the metadata service. No environment variable sets it."""
    api_server: str = ""
    token_file: Path | None = None
    ca_file: Path | None = None
    host: str | None = None
    port: int = names.NOTIFIER_PORT
    dry_run: bool = False
    log_level: str = "INFO"


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Raises SystemExit(2) with a message for a wrong argument."""
    p = argparse.ArgumentParser(
        prog="holdfast-notifier",
        description="Publishes what the cloud announces about this machine as a condition of its Node object.",
    )
    node = environ.get(names.ENV_NODE, "")
    p.add_argument("--node", default=node, help=f"name of the Node object [{names.ENV_NODE}]")
    p.add_argument("--cloud", default="auto", choices=CLOUDS, help="auto: by the node's spec.providerID")
    p.add_argument("--poll-seconds", type=_seconds(0.05, 60), default=2.0, help="between two questions (2)")
    p.add_argument("--timeout-seconds", type=_seconds(0.05, 120), default=5.0, help="of one question (5)")
    p.add_argument(
        "--ahead-seconds", type=_whole(0, 86_400), default=300, help="act on scheduled maintenance so long before (300)"
    )
    p.add_argument(
        "--node-shutdown-seconds", type=_whole(0, 86_400), default=0,
        help="what the kubelet leaves ordinary pods when it shuts the node down; 0: not known",
    )  # fmt: skip
    p.add_argument(
        "--gcp-preemption-notice-seconds", type=_whole(0, 600), default=0,
        help="the instances' preemptionNoticeDuration (0)",
    )  # fmt: skip
    p.add_argument(
        "--gcp-maintenance-notice-seconds", type=_whole(0, 86_400), default=60,
        help="from the notice of host maintenance to the end of the machine: 60, for machines with GPUs up to 3600",
    )  # fmt: skip
    p.add_argument("--azure-acknowledge", action="store_true", help="approve events once no job's pod is left here")
    p.add_argument("--metadata-url", default="", help="for tests: where a stand-in of the metadata service is")
    p.add_argument("--api-server", default="", help="URL; default: the cluster that this pod runs in")
    p.add_argument("--token-file", type=Path, help="with --api-server")
    p.add_argument("--ca-file", type=Path, help="with --api-server")
    p.add_argument("--host", default=None, help="address to serve on; default: all")
    p.add_argument("--port", type=_whole(0, 65_535), default=names.NOTIFIER_PORT, help="of /healthz, /readyz, /metrics")
    p.add_argument("--dry-run", action="store_true", help="say what would be published, change nothing")
    p.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    a = p.parse_args(argv)
    if not a.node:
        p.error(f"--node is empty; give the name of the Node object, or set {names.ENV_NODE}")
    return Settings(
        node=a.node,
        cloud=a.cloud,
        poll_seconds=a.poll_seconds,
        timeout_seconds=a.timeout_seconds,
        ahead_seconds=a.ahead_seconds,
        node_shutdown_seconds=a.node_shutdown_seconds,
        gcp_preemption_notice_seconds=a.gcp_preemption_notice_seconds,
        gcp_maintenance_notice_seconds=a.gcp_maintenance_notice_seconds,
        azure_acknowledge=a.azure_acknowledge,
        metadata_url=a.metadata_url,
        api_server=a.api_server,
        token_file=a.token_file,
        ca_file=a.ca_file,
        host=a.host,
        port=a.port,
        dry_run=a.dry_run,
        log_level=a.log_level,
    )


class _seconds:
    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high

    def __call__(self, text: str) -> float:
        value = float(text)
        if not self._low <= value <= self._high:
            raise argparse.ArgumentTypeError(f"{text} is not between {self._low:g} and {self._high:g}")
        return value

    def __repr__(self) -> str:
        return "number of seconds"


class _whole(_seconds):
    def __call__(self, text: str) -> int:
        return int(super().__call__(str(int(text))))
