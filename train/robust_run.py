"""The robust recipe from a data folder to a bundle, or to the figures of its cross-validation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from mri_edge.bundle import check_free
from mri_edge.files import make_folder, write_whole

from .backbone import load_weights
from .crossval import cross_validate
from .data import find_scans
from .metrics import measure
from .novelty import fit_novelty, keras_features
from .progress import step_progress
from .recipe import Recipe
from .record import write_bundle
from .robust import Report, choose_roles, collect, plan_of, predict, train_robust
from .run import Trained


def train_robust_bundle(
    data: Path,
    out: Path,
    recipe: Recipe,
    *,
    backbone_weights: str,
    seed: int,
    name: str = "vgg16",
    positive: str | None = None,
    overwrite: bool = False,
) -> Trained:
    """Train by the robust recipe on the scans in ``data`` and write a bundle at ``out``.

    Raises
    ------
    DataError, WeightsError, OutputError
        The data, the backbone weights or the place for the result are unfit; all said before training.
    """
    check_free(out, overwrite=overwrite)
    scans, labels = find_scans(data, positive)
    weights = load_weights(backbone_weights)
    collection = collect(scans, recipe.preprocessing)
    split = choose_roles(collection)
    roles = np.array([image.role for image in split.images])
    train, validation, test = (np.flatnonzero(roles == role) for role in ("train", "validation", "test"))
    with step_progress("fine-tuning") as report:
        trained = train_robust(
            collection, train, validation, weights, recipe, plan_of(recipe), labels=labels, seed=seed, report=report
        )
    probabilities = predict(trained.network.whole, collection.pixels[test], recipe.preprocessing)
    metrics = measure(collection.label[test], probabilities, labels.positive, trained.threshold)
    write_bundle(
        out,
        trained.network,
        name=name,
        recipe=recipe,
        seed=seed,
        labels=labels,
        split=split,
        weights=weights,
        history=[],
        probabilities=probabilities,
        metrics=metrics,
        overwrite=overwrite,
        threshold=trained.threshold,
        split_name="test kept apart by near-duplicates, validation by group",
        training_details=trained.details,
        novelty=fit_novelty(
            keras_features(trained.network.backbone, recipe.preprocessing),
            collection.pixels,
            train,
            validation,
            seed,
            source=collection.source,
        ),
    )
    truth = collection.label[test]
    return Trained(trained.network, labels, split, [], truth, probabilities, metrics, trained.threshold)


def cross_validate_robust(
    data: Path,
    out: Path,
    recipe: Recipe,
    *,
    folds: int | None,
    backbone_weights: str,
    seed: int,
    positive: str | None = None,
) -> dict[str, object]:
    """Cross-validate the robust recipe on the scans in ``data``; the figures go to ``out``/crossval.json and back.

    ``folds`` of near-duplicate groups, or ``None`` to leave out one source at a time.
    """
    make_folder(out)
    scans, labels = find_scans(data, positive)
    weights = load_weights(backbone_weights)
    collection = collect(scans, recipe.preprocessing)
    roles = np.array([image.role for image in choose_roles(collection).images])
    with step_progress("cross-validation") as report:
        rounds = folds or len(np.unique(collection.source))

        def of_fold(fold: int) -> Report:
            return lambda done, total, loss: report((fold - 1) * total + done, rounds * total, loss)

        result = cross_validate(
            collection,
            np.isin(roles, ("train", "validation")),
            weights,
            recipe,
            plan_of(recipe),
            labels=labels,
            folds=folds,
            seed=seed,
            report_of=of_fold,
        )
    write_whole(out / "crossval.json", json.dumps(result, indent=1) + "\n")
    return result
