"""Leak-free cross-validation of a recipe that trains a head alone: no near-duplicate is on both sides of a fold."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from mri_edge.errors import DataError
from mri_edge.files import make_folder, write_whole
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from . import duplicates
from .backbone import BackboneWeights, build_backbone, load_weights
from .data import decode, find_scans
from .evaluate import score
from .fit import Images, features_of, fit
from .metrics import measure
from .model import build_network
from .progress import training_progress
from .recipe import Recipe
from .record import creation


def cross_validate_reference(
    data: Path,
    out: Path,
    recipe: Recipe,
    *,
    folds: int | None,
    backbone_weights: str,
    seed: int,
    positive: str | None = None,
) -> dict[str, Any]:
    """Cross-validate ``recipe`` on the scans in ``data``; the figures go to ``out``/crossval.json and back.

    Every image is scored once, by a model that saw neither it nor a near-duplicate of it; nothing is
    chosen by the fold that is scored. ``folds`` of near-duplicate groups, or ``None`` for one a source.

    Raises
    ------
    DataError, WeightsError, OutputError
        The data, the backbone weights or the place for the result are unfit; all said before training.
    """
    make_folder(out)
    scans, labels = find_scans(data, positive)
    weights = load_weights(backbone_weights)
    truth = np.array([scan.label for scan in scans])
    with tempfile.TemporaryDirectory(dir=out) as work:
        decoded = decode(scans, recipe.preprocessing, Path(work) / "pixels.npy")
        if folds is None:
            fold_of = _by_source([scan.folder.rpartition("/")[0] for scan in scans])
        else:
            fold_of = grouped_folds(truth, duplicates.groups(decoded.hashes), folds, seed)
        probabilities = np.zeros((len(scans), len(labels.names)), np.float32)
        for fold in np.unique(fold_of):
            held, learn = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
            parts = [Images(decoded.pixels, rows, truth[rows]) for rows in (learn, held)]
            probabilities[held] = _train_and_ask(*parts, weights, recipe, len(labels.names), seed)
    scored = score(scans, probabilities, labels.positive, None)
    for one, fold in zip(scored["predictions"], fold_of.tolist(), strict=True):
        one["fold"] = fold
    record = {
        "recipe": recipe.name,
        "seed": seed,
        "folds": folds,
        "grouping": "near-duplicates" if folds else "sources",
        "labels": list(labels.names),
        "positive": labels.positive,
        "pooled": scored.pop("metrics"),
        "by_fold": [
            {name: asdict(one) for name, one in measure(truth[some], probabilities[some], labels.positive).items()}
            for some in (np.flatnonzero(fold_of == fold) for fold in np.unique(fold_of))
        ],
        **scored,
        "creation": asdict(creation()),
    }
    write_whole(out / "crossval.json", json.dumps(record, indent=1) + "\n")
    return record


def grouped_folds(truth: NDArray[np.intp], group: NDArray[np.intp], folds: int, seed: int) -> NDArray[np.intp]:
    """Fold of each image (N,), from 1: no group is divided, labels in their shares as near as that allows.

    Raises
    ------
    DataError
        A label has fewer groups than there are folds.
    """
    fewest = min(len(np.unique(group[truth == label])) for label in np.unique(truth))
    if fewest < folds:
        raise DataError(f"a class has {fewest} distinct images: too few for {folds} folds", "Ask for fewer folds")
    fold_of = np.zeros(len(truth), np.intp)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, held) in enumerate(splitter.split(truth, truth, group), start=1):
        fold_of[held] = fold
    return fold_of


def _by_source(sources: list[str]) -> NDArray[np.intp]:
    names, fold_of = np.unique(sources, return_inverse=True)
    if len(names) < 2:
        raise DataError("there is one source only", "Sources are folders of class folders: data/<source>/<class>/")
    return fold_of + 1


def _train_and_ask(
    learn: Images, held: Images, weights: BackboneWeights, recipe: Recipe, classes: int, seed: int
) -> NDArray[np.float32]:
    """Probabilities of ``held`` by a model of ``learn``; ``held`` is watched while it learns, and decides nothing."""
    backbone = build_backbone(weights, recipe.preprocessing.height, recipe.preprocessing.width)
    network = build_network(backbone, recipe, classes, seed)
    with training_progress(len(learn), recipe.epochs) as progress:
        fit(network, learn, held, recipe, seed=seed, trained=progress.images, epoch_ended=progress.epoch)
    answer = network.head.predict_on_batch(features_of(held, recipe, backbone.predict_on_batch))
    return np.asarray(answer, np.float32)
