"""Test which artifact ``evaluate`` runs in which engine: Keras only on request or without another artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.errors import MriEdgeError
from mri_edge.inference.selection import RunOptions

keras = pytest.importorskip("keras", reason="needs the extra 'train'")
pytest.importorskip("sklearn", reason="needs the extra 'train'")

from mri_edge.train.evaluation.keras_engine import open_classifier


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    """The tiny bundle with ``model.keras`` next to ``model.onnx``."""
    layers = [keras.Input((128, 128, 3)), keras.layers.AveragePooling2D(64), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(2, activation="softmax")])
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        model.save(writer.path("model.keras"))
        writer.add_artifact(replace(writer.manifest.artifacts[0], file="model.keras", format="keras"))
    return Bundle.open(tiny_bundle)


def only(bundle: Bundle, *files: str) -> Bundle:
    kept = tuple(artifact for artifact in bundle.manifest.artifacts if artifact.file in files)
    return replace(bundle, manifest=replace(bundle.manifest, artifacts=kept))


BOTH = ("model.onnx", "model.keras")


@pytest.mark.parametrize(
    ("held", "artifact", "engine", "ran"),
    [
        (BOTH, None, None, ("model.onnx", "onnxruntime")),
        (BOTH, None, "onnxruntime", ("model.onnx", "onnxruntime")),
        (BOTH, None, "keras", ("model.keras", "keras")),
        (BOTH, "model.onnx", None, ("model.onnx", "onnxruntime")),
        (BOTH, "model.keras", None, ("model.keras", "keras")),
        (BOTH, "model.keras", "keras", ("model.keras", "keras")),
        (("model.keras",), None, None, ("model.keras", "keras")),
        (("model.onnx",), None, None, ("model.onnx", "onnxruntime")),
    ],
)
def test_artifact_and_engine_are_chosen(bundle, held, artifact, engine, ran):
    with open_classifier(only(bundle, *held), RunOptions(artifact, engine)) as classifier:
        assert (classifier.artifact.file, classifier.engine.name) == ran


@pytest.mark.parametrize(
    ("held", "artifact", "engine"),
    [
        (("model.onnx",), None, "keras"),
        (("model.keras",), None, "onnxruntime"),
        (BOTH, "model.onnx", "keras"),
        (BOTH, "model.keras", "onnxruntime"),
    ],
)
def test_incompatible_artifacts_and_engines_are_rejected(bundle, held, artifact, engine):
    with pytest.raises(MriEdgeError):
        open_classifier(only(bundle, *held), RunOptions(artifact, engine))
