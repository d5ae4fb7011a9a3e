"""The robust recipe from a data folder to a bundle, or to the figures of its cross-validation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mri_edge.authoring.writer import check_target
from mri_edge.storage.atomic import atomic_write, make_folder
from mri_edge.train.data.audit import inspect, table
from mri_edge.train.data.folder import select
from mri_edge.train.data.splits import find_split
from mri_edge.train.loops.checkpoint import check_space, work_folder
from mri_edge.train.loops.finetune import fast_precision
from mri_edge.train.loops.progress import step_progress
from mri_edge.train.models.weights import load_weights
from mri_edge.train.recipes.base import Recipe
from mri_edge.train.recipes.robust import (
    Report,
    choose_roles,
    collect,
    epoch_steps,
    may_train,
    plan_of,
    store_bytes,
    train_robust,
)

from .bundle_finish import finish, rows_of
from .crossval import cross_validate
from .pipeline import Trained

# The bundle, some 90 MB, and the checkpoint, old and new: weights, both moments of AdamW and the running mean.
_MODEL_BYTES = 700_000_000


def train_robust_bundle(
    data: Path,
    out: Path,
    recipe: Recipe,
    *,
    backbone_weights: str,
    seed: int,
    name: str = "vgg16",
    positive: str | None = None,
    excluded: Sequence[str] = (),
    groups: Path | None = None,
    split: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Trained:
    """Train by the robust recipe on the scans in ``data`` and write a bundle at ``out``.

    Until it is done, its state lies in a folder beside ``out``, from which ``resume`` goes on.

    Parameters
    ----------
    excluded, groups
        As ``data.exclude`` and ``data.read_groups`` take them; no patient is divided between training,
        validation and test.
    split
        ``"reference"`` or ``"grouped"``, as ``robust.choose_roles`` takes it, or ``None`` as ``split.find_split`` does.
    say
        Takes the table of findings in the data, before training, and a line for each thing that takes long.

    Raises
    ------
    UsageError, DataError, WeightsError, OutputError
        The split, the data, the backbone weights or the place for the result are unfit; all said before training.
    """
    split = find_split(split, patients=groups is not None)
    check_target(out, overwrite=overwrite)
    selection = select(data, positive, excluded, groups)
    scans, labels = selection.scans, selection.labels
    weights = load_weights(backbone_weights, say)
    facts = [repr(recipe), fast_precision(), seed, split, weights.sha256, *selection.facts()]
    work = work_folder(out, facts, overwrite=overwrite, resume=resume)
    check_space(work, store_bytes(scans, recipe.preprocessing) + _MODEL_BYTES)
    say(f"reading {len(scans)} scans")
    collection = collect(scans, recipe.preprocessing, patients=selection.patients, store=work)
    findings = inspect(scans, collection.hashes)
    if findings:
        say(table(scans, findings))
    record = choose_roles(collection, split, selection.left_out)
    train, validation, _ = rows_of(record, collection)
    plan = plan_of(recipe)
    with step_progress("fine-tuning", first=plan.warm_steps, every=epoch_steps(recipe)) as report:
        trained = train_robust(
            collection,
            train,
            validation,
            weights,
            recipe,
            plan,
            labels=labels,
            seed=seed,
            report=report,
            checkpoint=work / "checkpoint.npz",
        )
    say("scoring the test images")
    kept_apart = "near-duplicates" if groups is None else f"near-duplicates and {groups.name}"
    finished = finish(
        out,
        trained,
        collection,
        record,
        labels=labels,
        recipe=recipe,
        weights=weights,
        seed=seed,
        name=name,
        overwrite=overwrite,
        split_name=f"test kept apart by {kept_apart}, validation by group",
        documents={"data.json": json.dumps([asdict(finding) for finding in findings], indent=1) + "\n"},
    )
    shutil.rmtree(work, ignore_errors=True)
    return finished


def cross_validate_robust(
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
) -> dict[str, object]:
    """Cross-validate the robust recipe on the scans in ``data``; the figures go to ``out``/crossval.json and back.

    ``folds`` of near-duplicate groups, or ``None`` to leave out one source at a time; ``resume`` keeps the
    folds that a cross-validation has finished which was cut off. The rest is as for ``train_robust_bundle``.
    """
    make_folder(out)
    selection = select(data, positive, excluded, groups)
    scans, labels = selection.scans, selection.labels
    weights = load_weights(backbone_weights, say)
    facts = [repr(recipe), fast_precision(), seed, folds, weights.sha256, *selection.facts()]
    work = work_folder(out, facts, overwrite=overwrite, resume=resume)
    check_space(work, store_bytes(scans, recipe.preprocessing) + _MODEL_BYTES)
    say(f"reading {len(scans)} scans")
    collection = collect(scans, recipe.preprocessing, patients=selection.patients, store=work)
    if findings := inspect(scans, collection.hashes):
        say(table(scans, findings))
    # The reference's split knows no patients: where they are known, no image is kept for it.
    trainable = may_train(collection) if groups is None else np.ones(len(scans), bool)
    plan, rounds = plan_of(recipe), folds or len(np.unique(collection.source))
    with ExitStack() as bars:

        def of_fold(fold: int) -> Report:
            bars.close()  # that of the fold before
            label = f"fold {fold}/{rounds}"
            return bars.enter_context(step_progress(label, first=plan.warm_steps, every=epoch_steps(recipe)))

        result = cross_validate(
            collection,
            trainable,
            weights,
            recipe,
            plan,
            labels=labels,
            folds=folds,
            seed=seed,
            report_of=of_fold,
            store=work,
        )
    result |= {"patients": groups.name if groups else None, "excluded": [scan.file for scan in selection.left_out]}
    atomic_write(out / "crossval.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    shutil.rmtree(work, ignore_errors=True)
    return result
