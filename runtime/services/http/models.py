"""A model that is served: its classifier, the thread that runs it, and whether it is ready."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import Prediction
from mri_edge.inference.preparing import Prepared
from mri_edge.scans.frame import Pixels

from .batching import Batcher, Run
from .errors import RequestRefused
from .limits import Limits, Turnstile

TENSORS, SCANS = "tensors", "scans"  # the kinds of jobs


class ServedModel:
    """One model. ``ready`` is True after its golden values were replayed; ``problem`` says why they never will be."""

    def __init__(self, classifier: Classifier, limits: Limits) -> None:
        self.classifier = classifier
        self.name = classifier.bundle.manifest.name
        self.version = classifier.bundle.manifest.version
        self.ready = False
        self.problem: str | None = None
        self.turnstile = Turnstile(limits.queue)
        self._limits = limits
        self._batcher: Batcher | None = None

    def start(self) -> None:
        """Start the thread of the engine. Call it in the thread of the event loop."""
        run: dict[str, Run] = {TENSORS: self._run_tensors, SCANS: self._run_scans}
        self._batcher = Batcher(run, self.classifier.batch_size, self._limits.max_wait_s)

    async def close(self) -> None:
        """Finish what is queued, and close the classifier."""
        if self._batcher is not None:
            await self._batcher.close()
        self.classifier.close()

    def check_ready(self) -> None:
        """Raise RequestRefused with status 503 until the model is ready."""
        if not self.ready:
            message = self.problem or "its golden values are being replayed. Try again later"
            retry = () if self.problem else ((b"retry-after", b"1"),)
            raise RequestRefused(503, "not_ready", f"{self.name} is not ready: {message}", headers=retry)

    @property
    def batcher(self) -> Batcher:
        """The queue of the engine, after ``start``."""
        if self._batcher is None:
            raise RuntimeError("the model was not started")
        return self._batcher

    def _run_tensors(self, tensors: Sequence[Pixels]) -> list[tuple[Any, Any]]:
        """Return the probabilities and the labels for each tensor, uint8 (N, H, W, 3)."""
        batch = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        probabilities, labels = self.classifier.predict_tensors(batch)
        ends = np.cumsum([len(tensor) for tensor in tensors])[:-1]
        return list(zip(np.split(probabilities, ends), np.split(labels, ends), strict=True))

    def _run_scans(self, scans: Sequence[Sequence[Prepared]]) -> list[list[Prediction]]:
        predictions = iter(self.classifier.predict_prepared([scan for request in scans for scan in request]))
        return [[next(predictions) for _ in request] for request in scans]
