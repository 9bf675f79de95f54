"""Counts and times for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from videopanda.inference.engine import Engine, Record

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, engine: Engine):
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "videopanda_requests_total", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self._tokens = Counter("videopanda_tokens_total", "Tokens by kind.", ["kind"], registry=self._registry)
        self._seconds = Histogram(
            "videopanda_phase_seconds", "Seconds per answer.", ["phase"], buckets=_BUCKETS, registry=self._registry
        )
        gauges = {
            "videopanda_running": ("Conversations being answered.", lambda: engine.load[0]),
            "videopanda_waiting": ("Conversations waiting.", lambda: engine.load[1]),
            "videopanda_cached_visuals": ("Clips and images in memory.", lambda: len(engine.visuals)),
            "videopanda_cached_bytes": ("Memory that they take.", lambda: engine.visuals.num_bytes),
        }
        for name, (text, value) in gauges.items():
            Gauge(name, text, registry=self._registry).set_function(value)

    def answered(self, record: Record) -> None:
        """Count an answer."""
        for kind in ("prompt", "known", "visual", "completion"):
            self._tokens.labels(kind).inc(vars(record)[f"{kind}_tokens"])
        for phase, seconds in record.seconds.items():
            self._seconds.labels(phase).observe(seconds)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)
