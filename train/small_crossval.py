"""Leak-free cross-validation of the small recipe beside its teacher: the same folds, the same images, paired.

In each fold a teacher is trained by the robust recipe, and students of several seeds are distilled from it.
What is finished lies in the folder of the figures: a run that was cut off, or one with another plan for the
students, goes on from there. Folds may be done one at a time, on several machines: their answers, a few kilobytes
each, are put together in one folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.provenance import current_provenance
from mri_edge.errors import OutputError, UsageError
from mri_edge.storage.atomic import atomic_write, fingerprint, make_folder
from mri_edge.train.data.folder import KNOWN_LABELS, Labels, find_scans
from mri_edge.train.evaluation.metrics import measure
from mri_edge.train.evaluation.paired import (
    SENSITIVITY,
    Answers,
    called_by_other_folds,
    student_minus_teacher,
    threshold_of,
)
from mri_edge.train.loops import distil
from mri_edge.train.loops.checkpoint import check_space
from mri_edge.train.loops.progress import step_progress
from mri_edge.train.models.small_cnn import STACK
from mri_edge.train.models.weights import BackboneWeights, load_weights
from mri_edge.train.recipes.base import ROBUST, Recipe
from mri_edge.train.recipes.distilled import POOL_VIEWS, draw_pool, plan_of, pool_bytes, train_small
from mri_edge.train.recipes.robust import (
    Collection,
    Indices,
    Trained,
    choose_roles,
    collect,
    epoch_steps,
    grouped_folds,
    hold_out,
    may_train,
    predict,
    train_robust,
)
from mri_edge.train.recipes.robust import plan_of as plan_of_robust

from .crossval import figures, grouping

STUDENTS = 3  # seeds a fold
_STATE_BYTES = 600_000_000  # of a teacher at work, old and new: weights, both moments of AdamW and the running mean


def cross_validate_small(
    data: Path,
    out: Path,
    recipe: Recipe,
    *,
    folds: int | None,
    backbone_weights: str,
    seed: int,
    positive: str | None = None,
    only: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Cross-validate teacher and students on the scans in ``data``; the figures go to ``out``/crossval.json and back.

    Students have the seeds ``seed``, ``seed`` + 1, …; every image is scored once by a teacher and
    once by a student of each seed that saw neither it nor a near-duplicate of it.

    Parameters
    ----------
    only
        Train this fold alone, counted from 1. The figures are those of all folds that lie in ``out`` by then.
    say
        Takes a line for each thing that takes long.

    Raises
    ------
    UsageError
        There is no such fold, or folds are asked for by source.
    DataError, WeightsError, OutputError
        The data, the backbone weights or the place for the result are unfit, or hold another run.
    """
    if folds is None:
        raise UsageError("recipe 'small' is cross-validated by near-duplicates, not by source", "Say --cv 3")
    if only is not None and not 1 <= only <= folds:
        raise UsageError(f"--fold: there are folds 1 to {folds}. Received: {only}")
    make_folder(out)
    scans, labels = find_scans(data, positive)
    weights = load_weights(backbone_weights, say)
    facts = [repr(ROBUST), repr(plan_of_robust(ROBUST)), POOL_VIEWS, folds, seed, weights.sha256]
    if (labels.names, labels.positive) != (KNOWN_LABELS, 1):
        facts.append(labels.names[labels.positive])  # said by --positive; what goes without saying was never a fact
    _claim(out, fingerprint([json.dumps(facts), *(f"{scan.file}\0{scan.sha256}\0{scan.label}" for scan in scans)]))
    say(f"reading {len(scans)} scans")
    collection = collect(scans, recipe.preprocessing)
    split = choose_roles(collection)  # of a bundle that is trained on these scans
    roles = np.array([image.role for image in split.images])
    trainable = may_train(collection)
    everyone = np.arange(len(scans))
    students = {f"student {number}": number for number in range(seed, seed + STUDENTS)}
    models = {name: Answers.none(len(scans)) for name in ("teacher", *students)}
    fold_of = np.zeros(len(scans), int)
    parts = {}
    for fold, held in enumerate(grouped_folds(collection, everyone, folds), start=1):
        learn = everyone[trainable & ~np.isin(collection.group, collection.group[held])]
        validation = learn[hold_out(collection, learn)]
        train = np.setdiff1d(learn, validation)
        parts[fold] = _Fold(
            collection, labels, train, validation, held, out / f"fold-{fold}", students, f"fold {fold}/{folds}"
        )
    untaught = sum(one.untaught(recipe) for fold, one in parts.items() if only in (None, fold))
    check_space(out, untaught * pool_bytes(recipe) + (_STATE_BYTES if untaught else 0))
    for fold, one_fold in parts.items():
        if only not in (None, fold) and one_fold.missing(recipe):
            continue
        held = one_fold.held
        fold_of[held] = fold
        for name, (scores, called) in one_fold.answers(recipe, weights, seed).items():
            models[name].positive[held], models[name].called[held] = scores, called
    result = {
        "recipe": recipe.name,
        "folds": folds,
        "seed": seed,
        "labels": list(labels.names),
        "positive": labels.positive,
        "split_fingerprint": split.split_fingerprint,
        "grouping": grouping("near-duplicates", trainable),
        "plan": asdict(plan_of(recipe)),
        "teacher": {"recipe": ROBUST.name, "plan": asdict(plan_of_robust(ROBUST)), "seed": seed},
        # No threshold is chosen on an image that tests the bundle which may get it.
        **_compare(collection, labels, models, fold_of, np.isin(roles, ("train", "validation"))),
        "images": [
            {
                "file": scan.file,
                "label": scan.label,
                "fold": int(fold_of[index]),
                **{name: float(one.positive[index]) for name, one in models.items()},
            }
            for index, scan in enumerate(scans)
            if fold_of[index]
        ],
        "creation": asdict(current_provenance()),
    }
    atomic_write(out / "crossval.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def _compare(
    collection: Collection,
    labels: Labels,
    models: Mapping[str, Answers],
    fold_of: Indices,
    choosable: NDArray[np.bool_],
) -> dict[str, Any]:
    """The figures of ``models``, teacher and students, on the images that have a fold; plain types.

    A threshold is chosen on ``choosable`` images (N,) alone.
    """
    ill = collection.label == labels.positive
    scored = np.flatnonzero(fold_of)
    done = np.unique(fold_of[scored]).tolist()
    students = {name: one for name, one in models.items() if name != "teacher"}
    unseen = np.flatnonzero(choosable & (fold_of > 0))

    def pooled(one: Answers) -> dict[str, Any]:
        return figures(collection, scored, labels.positive, one.positive, one.called, SENSITIVITY)

    def differences(rows: Indices, of: Mapping[str, Answers] = students) -> dict[str, Any]:
        teacher = models["teacher"].of(rows)
        group = collection.group[rows]
        return {name: student_minus_teacher(ill[rows], teacher, one.of(rows), group) for name, one in of.items()}

    found = {
        "folds_scored": done,
        "pooled": {
            name: {**pooled(one), "calibration_error": _calibration_error(ill[scored], one.positive[scored])}
            for name, one in models.items()
        },
        # For a bundle of this recipe: the threshold of its own validation hangs on few healthy images.
        "threshold": {
            "value": threshold_of(ill, list(students.values()), unseen),
            "rule": f"best Youden index among those of the target sensitivity, on answers of {len(students)} students "
            f"to {len(unseen)} images out of fold, no test image among them",
        },
        "student_minus_teacher": differences(scored),
        "student_minus_teacher_by_fold": {str(fold): differences(np.flatnonzero(fold_of == fold)) for fold in done},
    }
    if len(done) > 1:
        called = called_by_other_folds(ill, students, fold_of, choosable)
        found["pooled_at_threshold_of_other_folds"] = {name: pooled(one) for name, one in called.items()}
        found["student_minus_teacher_at_threshold_of_other_folds"] = differences(scored, called)
    return found


@dataclass(frozen=True)
class _Fold:
    """One fold: who trains, who calibrates, who is scored, and the folder that keeps what is finished."""

    collection: Collection
    labels: Labels
    train: Indices
    validation: Indices
    held: Indices
    folder: Path
    students: Mapping[str, int]  # seed of each
    label: str

    def missing(self, recipe: Recipe) -> list[str]:
        """The models whose answers are not there, or are another recipe's."""
        made_by = {"teacher": ROBUST.name, **dict.fromkeys(self.students, _identity(recipe))}
        return [name for name, wanted in made_by.items() if self._made_by(name) != wanted]

    def untaught(self, recipe: Recipe) -> bool:
        """Whether a teacher must be trained before the missing students can learn."""
        missing = self.missing(recipe)
        return bool(missing) and ("teacher" in missing or distil.open_pool(self.folder) is None)

    def answers(
        self, recipe: Recipe, weights: BackboneWeights, seed: int
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        """Scores and calls of the held images, by model; what is missing is trained."""
        missing = self.missing(recipe)
        if missing:
            self.folder.mkdir(parents=True, exist_ok=True)
            pool = self._teach(recipe, weights, seed) if self.untaught(recipe) else distil.open_pool(self.folder)
            for name in [one for one in self.students if one in missing]:
                with step_progress(f"{self.label}, {name}", every=len(pool.answers) // recipe.batch) as report:
                    student = train_small(
                        self.collection,
                        self.validation,
                        pool,
                        recipe,
                        labels=self.labels,
                        seed=self.students[name],
                        report=report,
                    )
                self._keep(name, student, recipe, _identity(recipe))
        return {name: self._read(name) for name in ("teacher", *self.students)}

    def _teach(self, recipe: Recipe, weights: BackboneWeights, seed: int) -> distil.Pool:
        checkpoint = self.folder / "teacher-state.npz"
        plan = plan_of_robust(ROBUST)
        with step_progress(f"{self.label}, teacher", first=plan.warm_steps, every=epoch_steps(ROBUST)) as report:
            trained = train_robust(
                self.collection,
                self.train,
                self.validation,
                weights,
                ROBUST,
                plan,
                labels=self.labels,
                seed=seed,
                report=report,
                checkpoint=checkpoint,
            )

        def teacher(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            return predict(trained.quick.whole, pixels, ROBUST.preprocessing)

        with step_progress(f"{self.label}, asking the teacher") as report:
            pool = draw_pool(
                self.collection,
                self.train,
                teacher,
                recipe,
                self.folder,
                labels=self.labels,
                seed=seed,
                report=report,
            )
        self._keep("teacher", trained, ROBUST, ROBUST.name)
        checkpoint.unlink(missing_ok=True)
        return pool

    def _keep(self, name: str, trained: Trained, recipe: Recipe, made_by: str) -> None:
        held, validation = (
            predict(trained.quick.whole, self.collection.pixels[rows], recipe.preprocessing)[:, self.labels.positive]
            for rows in (self.held, self.validation)
        )
        partial = self.folder / f".{name}.npz"
        # With the scores of validation another rule for the threshold can be weighed without training again.
        ill = self.collection.label[self.validation] == self.labels.positive
        kept = {"positive": held, "threshold": trained.threshold, "validation": validation, "validation_ill": ill}
        np.savez(partial, **kept, made_by=made_by)
        partial.replace(self.folder / f"{name}.npz")

    def _made_by(self, name: str) -> str | None:
        if not (self.folder / f"{name}.npz").is_file():
            return None
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as kept:
            return str(kept["made_by"])

    def _read(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as kept:
            scores = kept["positive"].astype(np.float64)
            return scores, scores >= kept["threshold"]


def _identity(recipe: Recipe) -> str:
    """What decides a student but for its seed and the pool."""
    return repr((recipe, plan_of(recipe), STACK))


def _calibration_error(ill: NDArray[np.bool_], positive: NDArray[np.float64]) -> dict[str, Any]:
    both = np.stack([1 - positive, positive], axis=1).astype(np.float32)
    return asdict(measure(ill.astype(np.intp), both, 1)["calibration_error"])


def _claim(out: Path, identity: str) -> None:
    """Mark the folder as this run's. Raises OutputError if another run lies there."""
    mark = out / "identity"
    if mark.is_file() and mark.read_text(encoding="utf-8") != identity:
        raise OutputError(
            f"{out}: holds a cross-validation with other data, positive label, recipe, seed or folds",
            "Name another folder with --out",
        )
    atomic_write(mark, identity)
