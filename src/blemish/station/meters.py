"""What a station counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Meters:
    """The figures of one station; two in one process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        add = self._registry
        self.requests = Counter("blemish_requests", "Requests by answer", ["method", "status"], registry=add)
        self.verdicts = Counter("blemish_verdicts", "Pictures by verdict", ["model", "verdict"], registry=add)
        self.seconds = Histogram(
            "blemish_predict_seconds", "From a whole request to its answer", buckets=_SECONDS, registry=add
        )
        self.batches = Histogram(
            "blemish_batch_pictures", "Pictures judged in one go", buckets=(1, 2, 4, 8, 16, 32), registry=add
        )
        self.judging = Counter("blemish_judging_seconds", "Spent in decoding and in the network", registry=add)
        self.waiting = Gauge("blemish_waiting_pictures", "Whose turn has not come", registry=add)
        self.open = Gauge("blemish_open_requests", "That are read or judged now", registry=add)
        self.loaded = Gauge("blemish_loaded_models", "In memory", registry=add)
        self.held = Gauge("blemish_loaded_bytes", "That the loaded models are counted with", registry=add)
        self.commits = Gauge("blemish_commits", "Of the store since the start", registry=add)
        self.drift = Gauge("blemish_drift_alarm", "1: the stream is not what was learned", ["model"], registry=add)
        self.pictures = Gauge("blemish_picture_bytes", "That the store keeps", registry=add)

    def batch_done(self, pictures: int, seconds: float) -> None:
        """Count one batch of the judge."""
        self.batches.observe(pictures)
        self.judging.inc(seconds)

    def answered(self, method: str, status: int) -> None:
        """Count one answer."""
        known = method if method in ("GET", "HEAD", "POST", "PUT", "DELETE") else "other"
        self.requests.labels(known, str(status)).inc()

    def text(self) -> bytes:
        """All figures in Prometheus's text format."""
        return generate_latest(self._registry)
