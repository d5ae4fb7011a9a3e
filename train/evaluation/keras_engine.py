"""Run ``model.keras`` through the engine interface, for evaluation and for teachers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mri_edge.authoring.keras_models.loading import one_column_a_class, open_model
from mri_edge.authoring.quiet import load_keras
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Artifact, Manifest, TensorSpec
from mri_edge.device.cpu import available_cpus
from mri_edge.engines import Batch, Outputs, Probabilities, check_batch, empty_outputs
from mri_edge.errors import EngineUnavailable, UsageError
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.selection import RunOptions

NAME = "keras"
SUFFIX = ".keras"


class KerasEngine:
    """A Keras model that takes uint8 pixels, as every engine does, and normalizes them as the manifest says."""

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
        """Return float32 (N, classes) for uint8 (N, H, W, 3) RGB; a single sigmoid output becomes two columns."""
        check_batch(batch, self.input)
        if len(batch) == 0:
            name = self.outputs[0].name
            return empty_outputs(self.outputs, [name])[name]
        answer = np.asarray(self._model.predict_on_batch(self._preprocessing.normalize(batch)), np.float32)
        return one_column_a_class(answer)

    def run_outputs(self, batch: Batch, names: Sequence[str]) -> Outputs:
        """Return some outputs by name. There is only one, the probabilities."""
        return {name: self.run(batch) for name in names}

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
    """Open a ``.keras`` file, or its ``content`` if already read, without running any code in it.

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
        raise UsageError(
            f"{path.name} runs in Keras, which chooses its device and threads itself", "Omit --provider and --threads"
        )
    try:
        keras = load_keras("train")
    except UsageError as error:
        raise EngineUnavailable(f"{path.name} needs Keras: {error.problem}", error.hint) from error
    model = open_model(path, keras, content)
    return KerasEngine(model, manifest, keras.distribution.list_devices()[0].partition(":")[0])


def open_classifier(bundle: Bundle, run: RunOptions) -> Classifier:
    """Open a classifier as ``Classifier.load_with`` does, but run ``model.keras`` in Keras.

    Keras is used if ``run`` asks for it by artifact or engine, or if the bundle has no other artifact. Raises the
    errors of ``Classifier.load`` and of ``open_keras``.
    """
    held = bundle.manifest.artifacts
    in_keras = [entry for entry in held if entry.file.endswith(SUFFIX)]
    if run.artifact is not None:
        chosen: Artifact | None = bundle.artifact(run.artifact)
        wanted = chosen in in_keras and run.engine in (None, NAME)
    else:
        wanted = bool(in_keras) and (run.engine == NAME or (run.engine is None and len(in_keras) == len(held)))
        chosen = in_keras[0] if wanted else None
    if not wanted or chosen is None:
        return Classifier.load_with(run, bundle)
    opened = open_keras(
        bundle.folder / chosen.file,
        bundle.manifest,
        provider=run.provider,
        threads=run.threads,
        content=bundle.read(chosen),
    )
    return Classifier(bundle, chosen, opened)


def describe_run(classifier: Classifier) -> dict[str, Any]:
    """Return what ran, as records name it: artifact, precision, engine, provider and threads, in plain types."""
    return {
        "artefact": classifier.artifact.file,
        "precision": classifier.artifact.precision,
        "engine": classifier.engine.name,
        "provider": classifier.engine.provider,
        "threads": classifier.engine.threads,
    }
