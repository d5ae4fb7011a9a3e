"""The last steps of a recipe with calibration: score the test images, fit the feature distance, write the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from . import robust
from .backbone import BackboneWeights
from .data import Labels
from .metrics import measure
from .novelty import fit_novelty, keras_features
from .recipe import Recipe
from .record import write_bundle
from .robust import Collection, Indices, predict
from .run import Trained
from .split import Split


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
