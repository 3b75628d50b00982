"""What the process is told at start: command line, else environment, else default."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast_api import names
from holdfast_operator.core import custom_signals
from holdfast_operator.core.signal_table import NO_RULES, Row, SignalRules

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True)
class Settings:
    namespace: str
    """The operator's own: Lease, master key."""
    watch_namespace: str
    """Empty: all."""
    report_url: str
    """Where agents send reports."""
    identity: str
    """Of this process, in the Lease."""
    scrape_namespace: str = ""
    """From where Prometheus scrapes the agents, for the NetworkPolicy of each job."""
    log_level: str = "INFO"
    log_json: bool = True
    leader_election: bool = True
    report_port: int = names.OPERATOR_REPORT_PORT
    metrics_port: int = names.OPERATOR_METRICS_PORT
    health_port: int = names.OPERATOR_HEALTH_PORT
    agent_port: int = names.AGENT_PORT
    signal_rules: SignalRules = NO_RULES
    """The cluster owner's own rows and what is known of the nodes' shutdown."""
    node_events: bool = False
    """Read Events about nodes too."""
    node_claims: bool = False
    """Read Karpenter's NodeClaims too."""


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Raises SystemExit(2) with a message for a wrong argument."""
    parser = argparse.ArgumentParser(prog="holdfast-operator", description="The Holdfast operator.")

    def option(name: str, variable: str, default: str, text: str) -> None:
        parser.add_argument(name, default=environ.get(variable, default), help=f"{text} [{variable}]")

    option("--namespace", "HOLDFAST_NAMESPACE", _own_namespace(), "namespace of the operator: Lease and master key")
    option("--watch-namespace", "HOLDFAST_WATCH_NAMESPACE", "", "only jobs of this namespace; empty: all")
    option("--report-url", "HOLDFAST_REPORT_URL", "", "where agents send reports; default: the operator's Service")
    option(
        "--scrape-namespace", "HOLDFAST_SCRAPE_NAMESPACE", "", "namespace from which Prometheus may scrape the agents"
    )
    option("--identity", "HOLDFAST_IDENTITY", os.uname().nodename, "name of this process in the Lease")
    option("--log-level", "HOLDFAST_LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR")
    option("--log-format", "HOLDFAST_LOG_FORMAT", "json", "json or text")
    option("--leader-election", "HOLDFAST_LEADER_ELECTION", "true", "false: run at once, alone")
    option("--report-port", "HOLDFAST_REPORT_PORT", str(names.OPERATOR_REPORT_PORT), "port of the report server")
    option("--metrics-port", "HOLDFAST_METRICS_PORT", str(names.OPERATOR_METRICS_PORT), "port of /metrics")
    option("--health-port", "HOLDFAST_HEALTH_PORT", str(names.OPERATOR_HEALTH_PORT), "port of /healthz and /readyz")
    option("--signals", "HOLDFAST_SIGNALS", "", "JSON list of taints, conditions, … of nodes that announce something")
    option(
        "--node-shutdown-seconds", "HOLDFAST_NODE_SHUTDOWN_SECONDS", "0",
        "what kubelets leave ordinary pods when they shut their node down (shutdownGracePeriod less shutdownGracePeriodCriticalPods); 0: not known",
    )  # fmt: skip
    option("--node-events", "HOLDFAST_NODE_EVENTS", "false", "true: Events about nodes are notices too")
    option("--node-claims", "HOLDFAST_NODE_CLAIMS", "false", "true: Karpenter's NodeClaims say by when a node ends")
    args = parser.parse_args(argv)
    return Settings(
        namespace=args.namespace,
        watch_namespace=args.watch_namespace,
        report_url=args.report_url or f"http://holdfast-operator.{args.namespace}.svc:{args.report_port}",
        identity=args.identity,
        scrape_namespace=args.scrape_namespace,
        log_level=_one_of(parser, "--log-level", args.log_level.upper(), ("DEBUG", "INFO", "WARNING", "ERROR")),
        log_json=_one_of(parser, "--log-format", args.log_format, ("json", "text")) == "json",
        leader_election=_one_of(parser, "--leader-election", args.leader_election, ("true", "false")) == "true",
        report_port=_port(parser, "--report-port", args.report_port),
        metrics_port=_port(parser, "--metrics-port", args.metrics_port),
        health_port=_port(parser, "--health-port", args.health_port),
        signal_rules=SignalRules(
            _signals(parser, args.signals), _seconds(parser, "--node-shutdown-seconds", args.node_shutdown_seconds)
        ),
        node_events=_one_of(parser, "--node-events", args.node_events, ("true", "false")) == "true",
        node_claims=_one_of(parser, "--node-claims", args.node_claims, ("true", "false")) == "true",
    )


def _own_namespace() -> str:
    try:
        return _NAMESPACE_FILE.read_text().strip()
    except OSError:
        return "holdfast-system"


def _one_of(parser: argparse.ArgumentParser, name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        parser.error(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    return value


def _signals(parser: argparse.ArgumentParser, text: str) -> tuple[Row, ...]:
    try:
        return custom_signals.parse(text)
    except custom_signals.BadSignals as e:
        parser.error(f"--{e}")


def _seconds(parser: argparse.ArgumentParser, name: str, value: str) -> int:
    if not value.isdigit() or int(value) > 86_400:
        parser.error(f"{name} is {value!r}; it must be a number of seconds, at most 86400")
    return int(value)


def _port(parser: argparse.ArgumentParser, name: str, value: str) -> int:
    if not value.isdigit() or not 0 <= int(value) < 65536:
        parser.error(f"{name} is {value!r}; it must be a port number")
    return int(value)
