"""A model that is served: it is opened and checked in the background, and one thread runs it for all requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mri_edge.bundles.bundle import Bundle
from mri_edge.errors import EngineError
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import Prediction
from mri_edge.inference.preparing import Prepared
from mri_edge.inference.replay import replay
from mri_edge.scans.frame import Pixels
from mri_edge.services.model_check import check_model

from .batching import Batcher, Run
from .errors import RequestRefused
from .limits import Limits, Turnstile
from .metrics import Metrics, ModelMetrics

TENSORS, SCANS = "tensors", "scans"  # the kinds of jobs


class ServedModel:
    """One model.

    Attributes
    ----------
    ready
        Whether it has been opened and its golden values were replayed.
    turnstile
        Counts its requests in progress.
    """

    def __init__(self, bundle: Bundle, load: Callable[[Bundle], Classifier], limits: Limits, metrics: Metrics) -> None:
        self.bundle = bundle
        self.name = bundle.manifest.name
        self.version = bundle.manifest.version
        self.ready = False
        self.turnstile = Turnstile(limits.queue)
        self._load = load
        self._limits = limits
        self._all_metrics = metrics
        self._metrics = ModelMetrics(metrics, self.name)
        self._classifier: Classifier | None = None
        self._batcher: Batcher | None = None
        metrics.in_progress.labels(self.name).set_function(lambda: self.turnstile.inside)
        metrics.ready.labels(self.name).set_function(lambda: int(self.ready))

    @property
    def classifier(self) -> Classifier:
        """The classifier, after ``open``."""
        if self._classifier is None:
            raise RuntimeError("the model is not open")
        return self._classifier

    @property
    def batcher(self) -> Batcher:
        """The queue of the engine, after ``start``."""
        if self._batcher is None:
            raise RuntimeError("the model was not started")
        return self._batcher

    def open(self) -> str:
        """Open the model and replay its golden values with the engine that is to answer. Returns what was checked.

        Raises
        ------
        EngineError
            The golden values differ.
        BundleError, UsageError, EngineUnavailable, ProviderUnavailable
            As for ``Classifier.load``.
        """
        self._classifier = self._load(self.bundle)
        classifier = self._classifier
        report = replay(self.bundle, opened=(classifier.artifact, classifier.engine))
        if (check := report.first_difference) is not None:
            raise EngineError(
                f"{self.bundle.manifest.title}: {check.subject} does not give its golden values ({check.detail})",
                f"Run: mri-edge verify {self.name}",
            )
        check_model(classifier)  # and import what the first scan needs
        info = self.version, classifier.artifact.sha256[:12], classifier.engine.name, classifier.engine.provider
        self._all_metrics.model_info.labels(self.name, *info).set(1)
        ran = f"{self.bundle.manifest.title}, {classifier.artifact.file}, {classifier.engine.provider}"
        return f"{ran}: {'golden values reproduced' if report.replayed else 'no golden values to replay'}"

    def start(self) -> None:
        """Start the thread of the engine, after ``open``. Call it in the thread of the event loop."""
        run: dict[str, Run] = {TENSORS: self._run_tensors, SCANS: self._run_scans}
        batch = self.classifier.batch_size
        self._batcher = Batcher(run, batch, self._limits.max_wait_s, self._metrics.batch)
        self.ready = True

    async def close(self) -> None:
        """Finish what is queued, and close the classifier."""
        self.ready = False
        if self._batcher is not None:
            await self._batcher.close()
        if self._classifier is not None:
            self._classifier.close()

    def check_ready(self) -> None:
        """Raise RequestRefused with status 503 until the model is ready."""
        if not self.ready:
            message = f"{self.name} is not ready: it is being opened and checked. Try again later"
            raise RequestRefused(503, "not_ready", message, headers=((b"retry-after", b"1"),))

    def explain(self, scans: Sequence[Prepared], check: Callable[[], None]) -> list[Prediction]:
        """Classify frames with heatmaps, each about 140 runs, in the calling thread. ``check`` may raise to end it."""
        predictions = self.classifier.infer(scans, explain=True, check=check)
        self._count(predictions)
        return predictions

    def _run_tensors(self, tensors: Sequence[Pixels]) -> list[tuple[Any, Any]]:
        """Return the probabilities and the labels for each tensor, uint8 (N, H, W, 3)."""
        batch = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        size = self.classifier.batch_size  # a single request may have more images
        parts = [self.classifier.predict_tensors(batch[start : start + size]) for start in range(0, len(batch), size)]
        probabilities, chosen = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        manifest = self.bundle.manifest
        labels = Counter(manifest.labels[index] for index in chosen)
        positive = () if manifest.positive is None else probabilities[:, manifest.positive].tolist()
        self._metrics.answers(labels, positive)
        if len(tensors) == 1:
            return [(probabilities, chosen)]
        ends = np.cumsum([len(tensor) for tensor in tensors])[:-1]
        return list(zip(np.split(probabilities, ends), np.split(chosen, ends), strict=True))

    def _run_scans(self, scans: Sequence[Sequence[Prepared]]) -> list[list[Prediction]]:
        predictions = self.classifier.infer([scan for request in scans for scan in request])
        self._count(predictions)
        remaining = iter(predictions)
        return [[next(remaining) for _ in request] for request in scans]

    def _count(self, predictions: Sequence[Prediction]) -> None:
        labels = Counter(prediction.label for prediction in predictions)
        with_positive = (prediction for prediction in predictions if prediction.positive is not None)
        self._metrics.answers(labels, [prediction.probability for prediction in with_positive])
        for prediction in predictions:
            latency = prediction.latency_ms
            codes = [warning.code for warning in prediction.warnings]
            self._metrics.stages(latency.decode / 1e3, latency.resize / 1e3, codes)
