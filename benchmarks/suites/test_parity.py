"""Parity on the reference split: every artefact in every engine against Keras, image by image."""

from __future__ import annotations

import numpy as np
import pytest
from records import data_folder, reference_images
from subjects import bundles

from mri_edge.benchmarking.benchmark import subjects as runnable
from mri_edge.engines import open_engine
from mri_edge.export.parity.gate import DEFAULT_GATES
from mri_edge.inference.prediction import decide
from mri_edge.scans.readers import picture

BUNDLES = bundles()
RUNNABLE = [(name, one) for name, bundle in BUNDLES.items() for one in runnable(bundle) if one.problem is None]
# int8 kernels of other libraries round otherwise on the edge between two steps: a label more may change.
FLIPS = {"float32": 0, "float16": 0, "dynamic": 1, "int8": 1}


@pytest.mark.parametrize(
    ("name", "one"), RUNNABLE, ids=[f"{name}-{one.artefact.file}-{one.engine}" for name, one in RUNNABLE]
)
def test_artefact_agrees_with_keras_on_the_reference_split(name, one, record_property):
    bundle, data = BUNDLES[name], data_folder()
    judges = reference_images(bundle, data)
    if not judges or data is None:
        pytest.skip("no real scans, or a bundle without parity.json: name the data folder in MRI_EDGE_DATA")
    manifest, parity = bundle.manifest, one.artefact.parity
    batch = np.stack([manifest.preprocessing.fit(picture.load(data / image["file"])) for image in judges])
    engine = open_engine(bundle.path_of(one.artefact), engine=one.engine, provider="cpu")
    found = np.concatenate([engine.run(batch[begin : begin + 8]) for begin in range(0, len(batch), 8)])
    engine.close()
    reference = np.array([image["probabilities"] for image in judges], np.float32)
    before, after = (decide(values, manifest.positive, manifest.threshold) for values in (reference, found))
    difference, flips = np.abs(found - reference), int((before != after).sum())
    record_property("largest and mean |Δp|, labels changed", [float(difference.max()), float(difference.mean()), flips])
    gate = DEFAULT_GATES[one.artefact.precision]
    if gate.max_difference is not None:
        assert difference.max() <= gate.max_difference
    if gate.mean_difference is not None:
        assert difference.mean() <= gate.mean_difference
    assert flips <= (parity.flips if parity else 0) + FLIPS[one.artefact.precision]
