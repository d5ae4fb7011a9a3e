"""The last steps of a recipe with calibration: score the test images, fit the feature distance, write the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mri_edge.train.data.folder import Labels
from mri_edge.train.data.splits import Split
from mri_edge.train.evaluation.metrics import measure
from mri_edge.train.evaluation.out_of_distribution import fit_novelty, keras_features
from mri_edge.train.models.weights import BackboneWeights
from mri_edge.train.recipes import robust
from mri_edge.train.recipes.base import Recipe
from mri_edge.train.recipes.robust import Collection, Indices, predict

from .bundle import write_bundle
from .pipeline import Trained


def rows_of(split: Split, collection: Collection) -> tuple[Indices, Indices, Indices]:
    """Rows of the collection that train, validate and test. What was left out before stands last in a split."""
    roles = np.array([image.role for image in split.images[: len(collection.scans)]])
    train, validation, test = (np.flatnonzero(roles == role) for role in ("train", "validation", "test"))
    return train, validation, test


def finish(
    out: Path,
    model: robust.Trained,
    collection: Collection,
    split: Split,
    *,
    labels: Labels,
    recipe: Recipe,
    weights: BackboneWeights,
    seed: int,
    **recorded: Any,
) -> Trained:
    """Write a bundle at ``out``; ``recorded`` is what ``record.write_bundle`` takes besides. Raises what it does."""
    train, validation, test = rows_of(split, collection)
    truth = collection.label[test]
    probabilities = predict(model.network.whole, collection.pixels, recipe.preprocessing, rows=test)
    metrics = measure(truth, probabilities, labels.positive, model.threshold)
    novelty = fit_novelty(
        keras_features(model.network.backbone, recipe.preprocessing),
        collection.pixels,
        train,
        validation,
        seed,
        source=collection.source,
    )
    write_bundle(
        out,
        model.network,
        recipe=recipe,
        seed=seed,
        labels=labels,
        split=split,
        weights=weights,
        history=[],
        probabilities=probabilities,
        metrics=metrics,
        threshold=model.threshold,
        training_details=model.details,
        novelty=novelty,
        **recorded,
    )
    return Trained(model.network, labels, split, [], truth, probabilities, metrics, model.threshold)
