"""``--recipe small``: a network of a 140th of VGG16's weights, distilled from a robust teacher.

The images, the views of them and the roles are those of the robust recipe; what the teacher may not
see, the student does not see either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

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
from mri_edge.train.models.small_cnn import STACK, build_shipped, build_trainable, fold
from mri_edge.train.models.weights import BackboneWeights

from .base import Recipe
from .robust import THRESHOLD_RULE, Collection, Indices, Trained, calibrate, view_maker

POOL_VIEWS = 24576
_AT_ONCE = 64  # images at a time through the teachers


def plan_of(recipe: Recipe) -> distil.Plan:
    """The recipe's epochs, rate and batch as a plan of distillation."""
    return distil.Plan(
        epochs=recipe.epochs,
        batch=recipe.batch,
        rate=recipe.learning_rate,
        rise=250,
        weight_decay=0.002,
        temperature=2.0,
    )


def pool_bytes(recipe: Recipe) -> int:
    """Bytes that ``draw_pool`` writes to its store; the teacher's answers are nothing beside the views."""
    return POOL_VIEWS * recipe.preprocessing.height * recipe.preprocessing.width


def draw_pool(
    data: Collection,
    train: Indices,
    teacher: distil.Teacher,
    recipe: Recipe,
    store: Path,
    *,
    labels: Labels,
    seed: int,
    report: distil.Report = lambda done, total, loss: None,
) -> distil.Pool:
    """``POOL_VIEWS`` views of the images ``train`` with the teacher's answers; a whole pool in ``store`` is taken up.

    Views as the robust recipe draws them. Blends of two (mixup) in half of the pool did not help on the validation
    images (AUC 0.998 against 0.999, one run each): so small a network has little room for pictures it will never meet.
    """
    if (found := distil.open_pool(store)) is not None:
        return found
    steps = POOL_VIEWS // recipe.batch
    drawn = view_maker(data, train, recipe, steps, labels=labels, seed=seed)
    return distil.make_pool(lambda step: drawn(step)[0], steps, teacher, store, report)


def train_small(
    data: Collection,
    validation: Indices,
    pool: distil.Pool,
    recipe: Recipe,
    *,
    labels: Labels,
    seed: int,
    report: distil.Report = lambda done, total, loss: None,
) -> Trained:
    """Distil a network from ``pool`` and calibrate it on ``validation``; no other image is looked at."""
    classes, plan = len(labels.names), plan_of(recipe)
    student = build_trainable(recipe, classes, seed)
    losses = distil.distil(student, pool, plan, seed, report)
    network = build_shipped(recipe, classes)
    fold(student, network)
    temperature, threshold = calibrate(network, data, validation, recipe.preprocessing, labels.positive)
    return Trained(
        network,
        network,
        temperature,
        threshold,
        {
            "architecture": {"convolutions": [asdict(one) for one in STACK], "dropout": recipe.dropout},
            "plan": asdict(plan),
            "pool_views": len(pool.answers),
            "loss_by_epoch": np.reshape(losses, (recipe.epochs, -1)).mean(axis=1).tolist(),
            "temperature": temperature,
            "threshold_rule": THRESHOLD_RULE,
            "validation_images": len(validation),
        },
    )


class BundleTeacher:
    """The mean answer of one or more bundles, each in the engine that suits it here."""

    def __init__(self, bundles: Sequence[Bundle], labels: Labels, preprocessing: Preprocessing) -> None:
        """Open them.

        Raises
        ------
        DataError
            A bundle has other labels or another picture size.
        BundleError, EngineError
            A bundle cannot be run here.
        """
        size = (preprocessing.height, preprocessing.width)
        for bundle in bundles:
            manifest = bundle.manifest
            its_size = (manifest.preprocessing.height, manifest.preprocessing.width)
            if manifest.labels != labels.names or its_size != size:
                raise DataError(
                    f"{bundle.folder}: a teacher must have the labels {', '.join(labels.names)} and take "
                    f"{size[0]} x {size[1]} pixels. Received: {', '.join(manifest.labels)}, "
                    f"{its_size[0]} x {its_size[1]}",
                    "Name another --teacher",
                )
        self._classifiers = [open_classifier(bundle, None, None, "auto", None) for bundle in bundles]
        self.bundles = tuple(bundles)
        self.sha256 = tuple(one.artefact.sha256 for one in self._classifiers)

    def __call__(self, pixels: distil.Views) -> distil.Answers:
        """uint8 (N, height, width, 3) RGB -> probabilities float32 (N, classes)."""
        return np.mean([one.engine.run(pixels) for one in self._classifiers], axis=0, dtype=np.float32)

    def check_split(self, split: Split) -> None:
        """Raise DataError unless every teacher was trained by this very split: its answers would leak test images."""
        for bundle in self.bundles:
            if bundle.manifest.training.split_fingerprint != split.split_fingerprint:
                raise DataError(
                    f"{bundle.folder}: trained on another split of the images, so that it may know test images",
                    "Train a teacher on this data: mri-edge train --recipe robust",
                )

    def answers(self, pixels: distil.Views) -> TeacherAnswers:
        """The record of what they say of the test images, uint8 (N, height, width, 3) RGB in the split's order."""
        pieces = [self(pixels[start : start + _AT_ONCE]) for start in range(0, len(pixels), _AT_ONCE)]
        probabilities = np.concatenate(pieces)
        manifests = [bundle.manifest for bundle in self.bundles]
        thresholds = [one.threshold for one in manifests if one.threshold is not None]
        # Each teacher was calibrated by itself: the threshold of their mean is the mean of theirs.
        threshold = float(np.mean(thresholds)) if len(thresholds) == len(manifests) else None
        called = decide(probabilities, manifests[0].positive, threshold)
        return TeacherAnswers(
            self.names, tuple(called.tolist()), tuple(tuple(row) for row in probabilities.astype(float).tolist())
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Name, recipe and seed of each."""
        manifests = [bundle.manifest for bundle in self.bundles]
        return tuple(f"{one.name} ({one.training.recipe}, seed {one.training.seed})" for one in manifests)

    def origin(self) -> BackboneWeights:
        """The teachers in the place of a backbone's weights: whose answers the network has learned."""
        first = self.bundles[0].manifest
        licence = f"that of the teacher's backbone: {first.licences.get('backbone weights', 'not stated')}"
        return BackboneWeights((), f"distilled from {', '.join(self.names)}", licence, fingerprint(self.sha256))

    def close(self) -> None:
        """Close the engines."""
        for classifier in self._classifiers:
            classifier.close()
