"""Count requests, batches and answers for Prometheus. No label comes from a scan, a file name or an unknown path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PROBABILITIES = tuple(tenth / 10 for tenth in range(1, 11))


class ModelMetrics:
    """The metrics of one model. Its methods are called in the thread of the engine, and in those for long work."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics, self._model = metrics, model
        self._batch = metrics.batch_items.labels(model)
        self._queue = metrics.queue_seconds.labels(model)
        self._run = metrics.run_seconds.labels(model)
        self._probability = metrics.probability.labels(model)
        self._answers: dict[str, Counter] = {}

    def batch(self, items: int, waited_s: float, ran_s: float) -> None:
        """Record one run of the engine; the parameters are those of ``Batcher``'s ``observe``."""
        self._batch.observe(items)
        self._queue.observe(waited_s)
        self._run.observe(ran_s)

    def answers(self, labels: Mapping[str, int], probabilities: Iterable[float]) -> None:
        """Record answers: how many have each label, and the probability of the positive label in each."""
        for label, count in labels.items():
            counter = self._answers.get(label)
            if counter is None:
                counter = self._answers[label] = self._metrics.answers.labels(self._model, label)
            counter.inc(count)
        for probability in probabilities:
            self._probability.observe(probability)

    def stages(self, decode_s: float, resize_s: float, warnings: Iterable[str]) -> None:
        """Record how long one frame took before the engine, and the codes of the warnings about it."""
        self._metrics.decode_seconds.observe(decode_s)
        self._metrics.resize_seconds.observe(resize_s)
        for code in warnings:
            self._metrics.warnings.labels(self._model, code).inc()


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._by_route: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the number of series
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time and open files of the process
        self.requests = Counter(
            "mri_edge_requests", "Requests that were answered.", ("route", "status"), registry=registry
        )
        self.refusals = Counter(
            "mri_edge_refusals", "Requests without a result, by reason.", ("route", "reason"), registry=registry
        )
        self.request_seconds = Histogram(
            "mri_edge_request_seconds",
            "Time from the headers of a request to its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.body_bytes = Counter("mri_edge_body_bytes", "Bytes of bodies that were received.", registry=registry)
        self.batch_items = Histogram(
            "mri_edge_batch_items", "Pictures in a run of the engine.", ("model",), buckets=_ITEMS, registry=registry
        )
        self.queue_seconds = Histogram(
            "mri_edge_queue_seconds",
            "Longest time in the queue of the engine, of each run.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.run_seconds = Histogram(
            "mri_edge_run_seconds", "Time of a run of the engine.", ("model",), buckets=_SECONDS, registry=registry
        )
        self.decode_seconds = Histogram(
            "mri_edge_decode_seconds", "Time to decode a frame.", buckets=_SECONDS, registry=registry
        )
        self.resize_seconds = Histogram(
            "mri_edge_resize_seconds", "Time to resize and check a frame.", buckets=_SECONDS, registry=registry
        )
        self.answers = Counter(
            "mri_edge_answers",
            "Answers by label. A change of their proportions over time is a reason to look at the scans.",
            ("model", "label"),
            registry=registry,
        )
        self.probability = Histogram(
            "mri_edge_positive_probability",
            "Probability of the positive label.",
            ("model",),
            buckets=_PROBABILITIES,
            registry=registry,
        )
        self.warnings = Counter(
            "mri_edge_warnings", "Warnings in results, by code.", ("model", "code"), registry=registry
        )
        self.in_progress = Gauge(
            "mri_edge_in_progress",
            "Requests that are read, decoded, waiting or running.",
            ("model",),
            registry=registry,
        )
        self.ready = Gauge("mri_edge_ready", "1 if the model is ready, otherwise 0.", ("model",), registry=registry)
        self.held_bytes = Gauge("mri_edge_held_bytes", "Bytes of bodies in memory or on the disk.", registry=registry)
        self.model_info = Gauge(
            "mri_edge_model_info",
            "1, with what runs as labels.",
            ("model", "version", "hash", "engine", "provider"),
            registry=registry,
        )

    def request(self, route: str, status: int, reason: str | None, seconds: float, size: int) -> None:
        """Record one request. ``route`` is the pattern of its path, ``reason`` why it has no result, or None."""
        requests, times = self._of(route, status)
        requests.inc()
        times.observe(seconds)
        self.body_bytes.inc(size)
        if reason is not None:
            self.refusals.labels(route, reason).inc()

    def _of(self, route: str, status: int) -> tuple[Counter, Histogram]:
        """Return the metrics of a route and a status. Finding them by their labels takes longer than counting."""
        found = self._by_route.get((route, status))
        if found is None:
            found = self.requests.labels(route, str(status)), self.request_seconds.labels(route)
            self._by_route[route, status] = found
        return found

    def text(self) -> bytes:
        """Return all metrics in the format of Prometheus."""
        return generate_latest(self._registry)
