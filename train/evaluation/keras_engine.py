"""``model.keras`` behind the contract of the engines, for evaluation; what ships runs in engines without Keras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mri_edge.authoring.keras_models.loading import one_column_a_class, open_model
from mri_edge.bundles.manifest import Manifest, TensorSpec
from mri_edge.device.cpu import available_cpus
from mri_edge.engines import Batch, Outputs, Probabilities, check_batch, empty_outputs
from mri_edge.errors import EngineUnavailable, UsageError
from mri_edge.train.loops.keras import load_keras

NAME = "keras"
SUFFIX = ".keras"


class KerasEngine:
    """A Keras model that takes uint8 pixels like every engine: it applies the manifest's normalization first."""

    def __init__(self, model: Any, manifest: Manifest, provider: str) -> None:
        prepared = manifest.preprocessing
        self.name = NAME
        self.provider = provider
        self.threads = available_cpus()
        self.input = TensorSpec("pixels", "uint8", (None, prepared.height, prepared.width, 3))
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("probabilities", "float32", (None, len(manifest.labels))),)
        self._model = model
        self._preprocessing = prepared

    def run(self, batch: Batch) -> Probabilities:
        """uint8 (N, H, W, 3) RGB -> float32 (N, classes); a model of one sigmoid gives two columns."""
        check_batch(batch, self.input)
        if len(batch) == 0:
            return empty_outputs(self.outputs)[self.outputs[0].name]
        answer = np.asarray(self._model.predict_on_batch(self._preprocessing.normalize(batch)), np.float32)
        return one_column_a_class(answer)

    def run_all(self, batch: Batch) -> Outputs:
        """Return the probabilities by name."""
        return {self.outputs[0].name: self.run(batch)}

    def close(self) -> None:
        """Release the model."""
        self._model = None


def open_keras(
    path: Path,
    manifest: Manifest,
    *,
    provider: str = "auto",
    threads: int | None = None,
    content: bytes | None = None,
) -> KerasEngine:
    """Open a ``.keras`` file, or its ``content`` if already read; no code of the file is run.

    Raises
    ------
    UsageError
        A provider or a number of threads was given: Keras chooses its own.
    EngineUnavailable
        Keras or its backend is not installed.
    BundleError
        The file contains no Keras model, or one that is not safe to open.
    """
    if provider != "auto" or threads is not None:
        raise UsageError(f"{path.name} runs in Keras, which chooses its device and threads itself", "Leave them open")
    try:
        keras = load_keras()
    except UsageError as error:
        raise EngineUnavailable(f"{path.name} needs Keras: {error.problem}", error.hint) from error
    model = open_model(path, keras, content)
    return KerasEngine(model, manifest, keras.distribution.list_devices()[0].partition(":")[0])
