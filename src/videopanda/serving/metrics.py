"""Counts and times for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from videopanda.inference.engine_thread import EngineThread
from videopanda.inference.request import RequestStats

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self, engine: EngineThread):
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
            "videopanda_cached_visuals": ("Clips and images in memory.", lambda: len(engine.clips)),
            "videopanda_cached_bytes": ("Memory that they take.", lambda: engine.clips.num_bytes),
        }
        for name, (text, value) in gauges.items():
            Gauge(name, text, registry=self._registry).set_function(value)

    def answered(self, stats: RequestStats) -> None:
        """Count an answer."""
        for kind in ("prompt", "cached", "visual", "completion"):
            self._tokens.labels(kind).inc(vars(stats)[f"{kind}_tokens"])
        for phase, seconds in stats.seconds.items():
            self._seconds.labels(phase).observe(seconds)

    def text(self) -> bytes:
        """The Prometheus exposition text."""
        return generate_latest(self._registry)
