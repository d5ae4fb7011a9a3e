"""Parity on the reference test images: every artifact in every engine against Keras, image by image."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.compare.subjects import bundles
from benchmarks.records.store import data_folder, reference_images
from mri_edge.benchmarking.benchmark import subjects
from mri_edge.engines import open_engine
from mri_edge.export.parity.gate import DEFAULT_GATES
from mri_edge.inference.prediction import decide
from mri_edge.scans.readers import picture

SUBJECTS = [
    (name, bundle, subject) for name, bundle in bundles().items() for subject in subjects(bundle) if not subject.problem
]
# int8 kernels of other libraries round differently where a value is between two steps: one more label may change.
FLIPS = {"float32": 0, "float16": 0, "dynamic": 1, "int8": 1}


@pytest.mark.parametrize(
    ("bundle", "subject"),
    [
        pytest.param(bundle, subject, id=f"{name}-{subject.artifact.file}-{subject.engine}")
        for name, bundle, subject in SUBJECTS
    ],
)
def test_artifact_agrees_with_keras_on_the_reference_images(bundle, subject, report):
    data, manifest, artifact = data_folder(), bundle.manifest, subject.artifact
    images = reference_images(bundle, data)
    if not images or data is None:
        pytest.skip("no real scans, or a bundle without parity.json: set MRI_EDGE_DATA to the data folder")
    tensors = np.stack([manifest.preprocessing.resize_picture(picture.load(data / image["file"])) for image in images])
    engine = open_engine(bundle.path_of(artifact), engine=subject.engine, provider="cpu")
    found = np.concatenate([engine.run(tensors[begin : begin + 8]) for begin in range(0, len(tensors), 8)])
    engine.close()
    reference = np.array([image["probabilities"] for image in images], np.float32)
    before, after = (decide(values, manifest.positive, manifest.threshold) for values in (reference, found))
    difference, flips = np.abs(found - reference), int((before != after).sum())
    report("largest |Δp|", float(difference.max()))
    report("mean |Δp|", float(difference.mean()))
    report("labels changed", flips)
    gate = DEFAULT_GATES[artifact.precision]
    assert gate.max_difference is None or difference.max() <= gate.max_difference
    assert gate.mean_difference is None or difference.mean() <= gate.mean_difference
    assert flips <= (artifact.parity.flips if artifact.parity else 0) + FLIPS[artifact.precision]
