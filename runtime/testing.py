"""A fake engine for your tests: it follows the engine protocol, needs no library, and its answer is easy to compute.

It opens ``.fake`` files (JSON: ``{"input": [H, W, 3], "classes": n}``). The probability of the last class is the mean
gray level divided by 255; the other classes have equal probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from mri_edge.bundles.manifest import TensorSpec
from mri_edge.engines import Batch, ModelFile, Outputs, Probabilities, check_batch, check_cpu_only
from mri_edge.errors import EngineError

NAME = "fake"
SUFFIXES = (".fake",)
EXTRA = ""
MODULE = ""
PACKAGES = ()
PROVIDERS = ("cpu",)


def missing() -> str | None:
    """Return None: this engine runs on every machine."""
    return None


def open(model: ModelFile, *, threads: int, provider: str = "auto") -> FakeEngine:
    """Open a ``.fake`` file; see ``engines.open_engine`` for the parameters and errors."""
    check_cpu_only(NAME, provider)
    try:
        content = json.loads(model.content)
        return FakeEngine(tuple(int(size) for size in content["input"]), int(content["classes"]), threads)
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{model.name}: not a fake model ({error})") from error


class FakeEngine:
    """Answers from the mean gray level. Tests may construct it directly: ``FakeEngine((128, 128, 3))``."""

    name = NAME
    provider = "FakeExecutionProvider"

    def __init__(self, size: tuple[int, ...], classes: int = 2, threads: int = 1) -> None:
        self.threads = threads
        self.input = TensorSpec("image", "uint8", (None, *size))
        self.outputs = (TensorSpec("probabilities", "float32", (None, classes)),)
        self._classes = classes

    def run(self, batch: Batch) -> Probabilities:
        """uint8 (N, H, W, 3) RGB -> float32 (N, classes); see ``Engine.run``."""
        check_batch(batch, self.input)
        brightness = batch.reshape(len(batch), -1).mean(axis=1, dtype=np.float64) / 255 if len(batch) else np.empty(0)
        result = np.repeat(((1 - brightness) / (self._classes - 1))[:, None], self._classes, axis=1)
        result[:, -1] = brightness
        return result.astype(np.float32)

    def run_outputs(self, batch: Batch, names: Sequence[str]) -> Outputs:
        """Return some outputs by name; see ``Engine.run_outputs``. There is only one, the probabilities."""
        return {name: self.run(batch) for name in names}

    def close(self) -> None:
        """Do nothing: there is nothing to release."""
