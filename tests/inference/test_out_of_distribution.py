"""The distance from the training images: its arithmetic, damaged files, and the warning in a prediction."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mri_edge import Classifier, IntegrityError
from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Novelty, TensorSpec
from mri_edge.inference.out_of_distribution import OutOfDistributionCheck, distances
from mri_edge.scans.checks import ResultWarning
from mri_edge.testing import FakeEngine

ENTRY = Novelty("novelty.npy", "residual", limit=0.5, quantile=0.99, fitted_images=10, held_out_images=10)
# Roots of typical features are (1, 2, 3); they vary along the first channel alone.
PLANE = np.array([[1, 2, 3], [1, 0, 0]], np.float32)


class FeatureEngine(FakeEngine):
    """A fake engine that returns the features passed to it."""

    def __init__(self, features: list[float]) -> None:
        super().__init__((128, 128, 3))
        self.outputs = (*self.outputs, TensorSpec("features", "float32", (None, len(features))))
        self._features = np.array(features, np.float32)

    def run_outputs(self, batch, names):
        outputs = {"probabilities": self.run(batch), "features": np.repeat(self._features[None], len(batch), axis=0)}
        return {name: outputs[name] for name in names}


def with_plane(folder: Path, content: bytes) -> Bundle:
    with rewrite_bundle(Bundle.open(folder)) as writer:
        writer.add_document(ENTRY.file, content)
        writer.update(novelty=ENTRY)
    return Bundle.open(folder)


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_the_distance_is_the_part_outside_the_plane():
    features = np.array([[1, 4, 9], [25, 4, 9], [1, 9, 9], [1, 9, 16]], np.float32)
    np.testing.assert_allclose(distances(features, PLANE), [0, 0, 1, np.sqrt(2)], atol=1e-6)


@pytest.mark.parametrize(("features", "doubted"), [([36, 4, 9], False), ([1, 9, 9], True)])
def test_a_prediction_warns_about_a_picture_unlike_the_training_images(tiny_bundle, features, doubted):
    bundle = with_plane(tiny_bundle, saved(PLANE))
    picture = np.zeros((128, 128), np.uint8)
    picture[30:90, 30:90] = 150
    with Classifier(bundle, bundle.manifest.artifacts[0], FeatureEngine(features)) as classifier:
        warnings = classifier.predict(picture).warnings
    expected = ResultWarning("unlike_training", "unlike the training images: distance 1.00, limit 0.50", 1.0, 0.5)
    assert warnings == ((expected,) if doubted else ())


@pytest.mark.parametrize(
    "content",
    [b"no array", saved(PLANE)[:-5], saved(PLANE.astype(np.float64)), saved(PLANE[0]), saved(np.array([{}]))],
    ids=["text", "cut", "float64", "one row", "pickle"],
)
def test_damaged_plane_is_refused(tiny_bundle, content):
    with pytest.raises(IntegrityError, match=r"novelty\.npy"):
        OutOfDistributionCheck.of(with_plane(tiny_bundle, content))


def test_bundle_without_a_plane_warns_of_nothing(tiny_bundle):
    assert OutOfDistributionCheck.of(Bundle.open(tiny_bundle)) is None


def test_manifest_that_names_an_unlisted_file_is_refused(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    broken = replace(bundle, manifest=replace(bundle.manifest, novelty=ENTRY))
    with pytest.raises(IntegrityError, match="does not list it"):
        OutOfDistributionCheck.of(broken)
