"""Leak-free cross-validation of a recipe that trains a head alone: no near-duplicate is on both sides of a fold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mri_edge.authoring.provenance import current_provenance
from mri_edge.storage.atomic import atomic_write, make_folder
from mri_edge.train.data import duplicates
from mri_edge.train.data.audit import inspect, table
from mri_edge.train.data.folder import decode, pixel_bytes, select
from mri_edge.train.data.folds import by_group, by_source
from mri_edge.train.evaluation.evaluate import score
from mri_edge.train.evaluation.metrics import measure
from mri_edge.train.loops.checkpoint import check_space, kept, work_folder
from mri_edge.train.loops.head import Images, feature_bytes, fit
from mri_edge.train.loops.progress import training_progress
from mri_edge.train.models.vgg16 import build_network, predict
from mri_edge.train.models.weights import BackboneWeights, build_backbone, load_weights
from mri_edge.train.recipes.base import Recipe

_CHECKPOINT_BYTES = 50_000_000  # old and new


def cross_validate_reference(
    data: Path,
    out: Path,
    recipe: Recipe,
    *,
    folds: int | None,
    backbone_weights: str,
    seed: int,
    positive: str | None = None,
    excluded: Sequence[str] = (),
    groups: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Cross-validate ``recipe`` on the scans in ``data``; the figures go to ``out``/crossval.json and back.

    Every image is scored once, by a model that saw neither it nor a near-duplicate of it, nor another image of
    its patient; nothing is chosen by the fold that is scored. ``folds`` of such groups, or ``None`` for one a
    source. ``resume`` keeps the folds that a cross-validation has finished which was cut off; the rest is
    as for ``train_bundle``.

    Raises
    ------
    DataError, WeightsError, OutputError
        The data, the backbone weights or the place for the result are unfit; all said before training.
    """
    make_folder(out)
    selection = select(data, positive, excluded, groups)
    scans, labels = selection.scans, selection.labels
    weights = load_weights(backbone_weights, say)
    truth = np.array([scan.label for scan in scans])
    facts = [repr(recipe), seed, folds, weights.sha256, *selection.facts()]
    work = work_folder(out, facts, overwrite=overwrite, resume=resume)
    features = feature_bytes(len(scans), recipe.preprocessing)  # were all of them for validation
    check_space(work, pixel_bytes(scans, recipe.preprocessing) + features + _CHECKPOINT_BYTES)
    say(f"reading {len(scans)} scans")
    decoded = decode(scans, recipe.preprocessing, work / "pixels.npy")
    if findings := inspect(scans, decoded.hashes):
        say(table(scans, findings))
    group = duplicates.groups(decoded.hashes, patients=selection.patients)
    source = np.array([scan.source for scan in scans])
    held_out = by_group(truth, group, folds, seed) if folds else by_source(source, truth)
    fold_of = np.zeros(len(scans), int)
    probabilities = np.zeros((len(scans), len(labels.names)), np.float32)
    for fold, held in enumerate(held_out, start=1):
        fold_of[held] = fold
        learn = np.flatnonzero(~np.isin(group, group[held]))
        parts = [Images(decoded.pixels, rows, truth[rows]) for rows in (learn, held)]
        checkpoint = work / f"fold-{fold}.npz"
        label = f"fold {fold}/{len(held_out)}, "
        train_and_ask = partial(_train_and_ask, *parts, weights, recipe, len(labels.names), seed, checkpoint, label)
        probabilities[held] = kept(work / f"fold-{fold}.json", train_and_ask)
        checkpoint.unlink(missing_ok=True)
    scored = score(scans, probabilities, labels.positive, None, group)
    for one, fold in zip(scored["predictions"], fold_of.tolist(), strict=True):
        one["fold"] = fold
    record = {
        "recipe": recipe.name,
        "seed": seed,
        "folds": folds,
        "grouping": "near-duplicates" if folds else "sources",
        "patients": groups.name if groups else None,
        "excluded": [scan.file for scan in selection.left_out],
        "labels": list(labels.names),
        "positive": labels.positive,
        "pooled": scored.pop("metrics"),
        "by_fold": [
            {
                name: asdict(one)
                for name, one in measure(truth[held], probabilities[held], labels.positive, group=group[held]).items()
            }
            for held in held_out
        ],
        **scored,
        "creation": asdict(current_provenance()),
    }
    atomic_write(out / "crossval.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    shutil.rmtree(work, ignore_errors=True)
    return record


def _train_and_ask(
    learn: Images,
    held: Images,
    weights: BackboneWeights,
    recipe: Recipe,
    classes: int,
    seed: int,
    checkpoint: Path,
    label: str,
) -> list[list[float]]:
    """Probabilities of ``held`` by a model of ``learn``; ``held`` is watched while it learns, and decides nothing."""
    backbone = build_backbone(weights, recipe.preprocessing.height, recipe.preprocessing.width)
    network = build_network(backbone, recipe, classes, seed)
    with training_progress(len(learn), recipe.epochs, label) as progress:
        fit(
            network,
            learn,
            held,
            recipe,
            seed=seed,
            checkpoint=checkpoint,
            say=progress.note,
            began=progress.started,
            trained=progress.images,
            epoch_ended=progress.epoch,
        )
    return predict(network.whole, held.pixels, recipe.preprocessing, rows=held.rows).tolist()
