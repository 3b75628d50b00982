"""What the notifier measures, at /metrics. docs/metrics.md lists every name; a test compares."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from holdfast_api.node_notices import NodeNotice


class Metrics:
    """One registry per process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.info = Gauge("holdfast_notifier_info", "Always 1; the labels say of what.", ["node", "cloud"], registry=r)
        self.notices = Gauge(
            "holdfast_notifier_notices", "Announcements that stand about this machine.", ["cause", "acting"], registry=r
        )
        self.looks = Counter(
            "holdfast_notifier_looks", "Questions to the metadata service, by outcome.", ["outcome"], registry=r
        )
        self.publishes = Counter(
            "holdfast_notifier_publishes", "Writes of the node's condition, by outcome.", ["outcome"], registry=r
        )
        self.last_look = Gauge(
            "holdfast_notifier_last_look_timestamp_seconds",
            "When the metadata service last gave an answer that could be read, in Unix seconds.",
            registry=r,
        )
        self.skew = Gauge(
            "holdfast_notifier_clock_skew_seconds",
            "This machine's clock minus the API server's, exact to about a second.",
            registry=r,
        )
        self.acknowledged = Counter(
            "holdfast_notifier_acknowledged", "Events whose begin was approved before their time.", registry=r
        )
        for outcome in ("answered", "failed"):
            self.looks.labels(outcome)
        for outcome in ("taken", "failed"):
            self.publishes.labels(outcome)

    def stand(self, notices: Iterable[NodeNotice]) -> None:
        self.notices.clear()
        for n in notices:
            self.notices.labels(n.cause.value, str(n.acting).lower()).inc()

    def page(self) -> bytes:
        return generate_latest(self.registry)
