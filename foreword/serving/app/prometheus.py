"""Collect Prometheus metrics: counts, times and sizes; neither names of prompts nor texts."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from foreword.serving.protocol import Works

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
GAUGES = {
    "waiting": "Rows that wait for the model",
    "generating": "Texts that are being continued",
    "prompts_in_memory": "Prompts in memory",
    "prompts_compiled": "Prompts compiled to keys and values",
    "bytes_in_memory": "Bytes of prompts in memory",
    "bytes_compiled": "Bytes of compiled prompts",
}
COUNTERS = {
    "loads": "Prompts read from disk",
    "evictions": "Prompts that gave their place to others",
    "batches": "Passes through the model",
    "rows_classified": "Rows labelled",
    "pieces_generated": "Pieces of text generated",
}


class Metrics:
    """Hold this server's registry of metrics. If the server is one replica of several, its name is a label of every
    sample.

    Each request for the page is answered by one of the replicas, whose counts may not be taken for another's.
    """

    def __init__(self, engine: Works, replica: str | None = None):
        self.replica = replica
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "foreword_requests", "Requests answered", ("route", "method", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "foreword_request_seconds", "Seconds to the end of an answer", ("route",), buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.first = Histogram(
            "foreword_first_text_seconds", "Seconds to the first text of a stream", buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.registry.register(_OfEngine(engine))  # type: ignore[arg-type]  # a collector is what has `collect`

    def page(self) -> bytes:
        if self.replica is None:
            return generate_latest(self.registry)
        return generate_latest(_Named(self.registry, self.replica))  # type: ignore[arg-type]  # as below


class _Named:
    """Collect the metrics of a registry, each sample labelled with its replica."""

    def __init__(self, registry: CollectorRegistry, replica: str):
        self.registry, self.replica = registry, replica

    def collect(self) -> Iterator[Metric]:
        for metric in self.registry.collect():
            metric.samples = [one._replace(labels={**one.labels, "replica": self.replica}) for one in metric.samples]
            yield metric


class _OfEngine:
    """Collect the engine's load whenever the page of metrics is read."""

    def __init__(self, engine: Works):
        self.engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        load = vars(self.engine.load())
        for name, help in GAUGES.items():
            yield GaugeMetricFamily(f"foreword_{name}", help, value=load[name])
        for name, help in COUNTERS.items():
            yield CounterMetricFamily(f"foreword_{name}", help, value=load[name])
