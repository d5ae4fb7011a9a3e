"""Trained bundles as the teacher of a distillation: their mean answer, and the record of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mri_edge.authoring.teacher import TeacherAnswers
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.split import Split
from mri_edge.errors import DataError
from mri_edge.inference.prediction import decide
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import fingerprint
from mri_edge.train.data.folder import Labels
from mri_edge.train.evaluation.evaluate import open_classifier
from mri_edge.train.loops import distil
from mri_edge.train.models.weights import BackboneWeights

_BATCH = 64  # images that the teachers score at once


class BundleTeacher:
    """The mean answer of one or more bundles, each in the best engine for this machine."""

    def __init__(self, bundles: Sequence[Bundle], labels: Labels, preprocessing: Preprocessing) -> None:
        """Open the bundles.

        Raises
        ------
        DataError
            A bundle has other labels or another input size, or is recalibrated.
        BundleError, EngineError
            A bundle cannot run on this machine.
        """
        size = (preprocessing.height, preprocessing.width)
        for bundle in bundles:
            manifest = bundle.manifest
            if manifest.recalibration:
                raise DataError(
                    f"{bundle.folder}: is recalibrated for scans of one place, so it cannot be a teacher",
                    "Name the bundle that it was made from",
                )
            input_size = (manifest.preprocessing.height, manifest.preprocessing.width)
            if manifest.labels != labels.names or input_size != size:
                raise DataError(
                    f"{bundle.folder}: a teacher must have the labels {', '.join(labels.names)} and take "
                    f"{size[0]} x {size[1]} pixels. Received: {', '.join(manifest.labels)}, "
                    f"{input_size[0]} x {input_size[1]}",
                    "Name another --teacher",
                )
        self._classifiers = [open_classifier(bundle, None, None, "auto", None) for bundle in bundles]
        self.bundles = tuple(bundles)
        self.sha256 = tuple(classifier.artifact.sha256 for classifier in self._classifiers)

    def __call__(self, pixels: distil.Views) -> distil.Answers:
        """uint8 (N, height, width, 3) RGB -> probabilities float32 (N, classes)."""
        answers = [classifier.engine.run(pixels) for classifier in self._classifiers]
        return np.asarray(np.mean(answers, axis=0, dtype=np.float32))

    def check_split(self, split: Split) -> None:
        """Raise DataError unless every teacher was trained on exactly this split, else its answers leak."""
        for bundle in self.bundles:
            if bundle.manifest.training.split_fingerprint != split.split_fingerprint:
                raise DataError(
                    f"{bundle.folder}: trained on another split of the images, so it may have seen test images",
                    "Train a teacher on this data: mri-edge train --recipe robust",
                )

    def answers(self, pixels: distil.Views) -> TeacherAnswers:
        """Record their answers to the test images, uint8 (N, height, width, 3) RGB in the order of the split."""
        pieces = [self(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
        probabilities = np.concatenate(pieces)
        manifests = [bundle.manifest for bundle in self.bundles]
        thresholds = [manifest.threshold for manifest in manifests if manifest.threshold is not None]
        # Each teacher was calibrated separately: the threshold of their mean is the mean of their thresholds.
        threshold = float(np.mean(thresholds)) if len(thresholds) == len(manifests) else None
        called = decide(probabilities, manifests[0].positive, threshold)
        return TeacherAnswers(
            self.names, tuple(called.tolist()), tuple(tuple(row) for row in probabilities.astype(float).tolist())
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Name, recipe and seed of each teacher."""
        manifests = [bundle.manifest for bundle in self.bundles]
        return tuple(
            f"{manifest.name} ({manifest.training.recipe}, seed {manifest.training.seed})" for manifest in manifests
        )

    def origin(self) -> BackboneWeights:
        """Describe the teachers where a manifest describes backbone weights: the network learned their answers."""
        first = self.bundles[0].manifest
        licence = f"that of the teacher's backbone: {first.licences.get('backbone weights', 'not stated')}"
        return BackboneWeights((), f"distilled from {', '.join(self.names)}", licence, fingerprint(self.sha256))

    def close(self) -> None:
        """Close the engines."""
        for classifier in self._classifiers:
            classifier.close()
