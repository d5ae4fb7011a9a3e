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
from mri_edge.errors import OutputError, UsageError
from mri_edge.files import fingerprint, make_folder, write_whole
from numpy.typing import NDArray

from . import distil
from .backbone import BackboneWeights, load_weights
from .crossval import figures
from .data import Labels, find_scans
from .intervals import bootstrap, percentile
from .metrics import area_of, measure
from .progress import step_progress
from .recipe import ROBUST, Recipe
from .record import creation
from .robust import Collection, Indices, Trained, choose_roles, collect, grouped_folds, hold_out, predict, train_robust
from .robust import plan_of as plan_of_robust
from .small import POOL_VIEWS, draw_pool, plan_of, train_small
from .small_network import STACK

STUDENTS = 3  # seeds a fold
SENSITIVITY = 0.95  # where specificity is compared


@dataclass
class Answers:
    """One model's answers over all folds: probability of the positive label and what it was called, of each image."""

    positive: NDArray[np.float64]
    called: NDArray[np.bool_]

    @classmethod
    def none(cls, images: int) -> Answers:
        """Before any fold."""
        return cls(np.zeros(images), np.zeros(images, bool))


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
) -> dict[str, Any]:
    """Cross-validate teacher and students on the scans in ``data``; the figures go to ``out``/crossval.json and back.

    Students have the seeds ``seed``, ``seed`` + 1, …; every image is scored once by a teacher and
    once by a student of each seed that saw neither it nor a near-duplicate of it.

    Parameters
    ----------
    only
        Train this fold alone, counted from 1. The figures are those of all folds that lie in ``out`` by then.

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
    weights = load_weights(backbone_weights)
    facts = [repr(ROBUST), repr(plan_of_robust(ROBUST)), POOL_VIEWS, folds, seed, weights.sha256]
    _claim(out, fingerprint([json.dumps(facts), *(f"{scan.file}\0{scan.sha256}\0{scan.label}" for scan in scans)]))
    collection = collect(scans, recipe.preprocessing)
    roles = np.array([image.role for image in choose_roles(collection).images])
    trainable = np.isin(roles, ("train", "validation"))
    everyone = np.arange(len(scans))
    students = {f"student {number}": number for number in range(seed, seed + STUDENTS)}
    models = {name: Answers.none(len(scans)) for name in ("teacher", *students)}
    fold_of = np.zeros(len(scans), int)
    with step_progress("cross-validation") as report:
        for fold, held in enumerate(grouped_folds(collection, everyone, folds), start=1):
            learn = everyone[trainable & ~np.isin(collection.group, collection.group[held])]
            validation = learn[hold_out(collection, learn)]
            train = np.setdiff1d(learn, validation)
            one_fold = _Fold(collection, labels, train, validation, held, out / f"fold-{fold}", students, report)
            if only not in (None, fold) and one_fold.missing(recipe):
                continue
            fold_of[held] = fold
            for name, (scores, called) in one_fold.answers(recipe, weights, seed).items():
                models[name].positive[held], models[name].called[held] = scores, called
    ill = collection.label == labels.positive

    def differences(rows: Indices) -> dict[str, Any]:
        teacher = models["teacher"].positive[rows]
        return {name: paired(ill[rows], teacher, models[name].positive[rows]) for name in students}

    scored = np.flatnonzero(fold_of)
    done = np.unique(fold_of[scored]).tolist()
    result = {
        "recipe": recipe.name,
        "folds": folds,
        "seed": seed,
        "grouping": "near-duplicates; test images and their neighbours train nothing",
        "plan": asdict(plan_of(recipe)),
        "teacher": {"recipe": ROBUST.name, "plan": asdict(plan_of_robust(ROBUST)), "seed": seed},
        "folds_scored": done,
        "pooled": {
            name: {
                **figures(collection, scored, labels.positive, one.positive, one.called, SENSITIVITY),
                "calibration_error": _calibration_error(ill[scored], one.positive[scored]),
            }
            for name, one in models.items()
        },
        "student_minus_teacher": differences(scored),
        "student_minus_teacher_by_fold": {str(fold): differences(np.flatnonzero(fold_of == fold)) for fold in done},
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
        "creation": asdict(creation()),
    }
    write_whole(out / "crossval.json", json.dumps(result, indent=1) + "\n")
    return result


def paired(
    ill: NDArray[np.bool_], teacher: NDArray[np.float64], student: NDArray[np.float64]
) -> dict[str, dict[str, Any]]:
    """Student's figure minus teacher's on the same images, with the interval of a paired bootstrap; plain types.

    Each resample holds the same images for both, so that what makes an image hard for both cancels out.
    ``specificity`` is that at a sensitivity of ``SENSITIVITY``, each model at its own threshold.
    """

    def differences(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return {
            "auc": area_of(ill, student)(weights) - area_of(ill, teacher)(weights),
            "specificity": specificity_at(ill, student, weights) - specificity_at(ill, teacher, weights),
        }

    found = {name: values[0] for name, values in differences(np.ones((1, len(ill)))).items()}
    resampled = bootstrap(differences, ill)
    return {name: asdict(percentile(value, resampled[name], len(ill))) for name, value in found.items()}


def specificity_at(
    ill: NDArray[np.bool_], score: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Specificity where the sensitivity first reaches ``SENSITIVITY``, as a function of weights (R, N): (R,)."""
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    found, cleared = (
        (weights[:, order] * kind[order]).cumsum(axis=1)[:, last_of_tie] / (weights @ kind)[:, None]
        for kind in (ill.astype(float), (~ill).astype(float))
    )
    first = (found >= SENSITIVITY - 1e-12).argmax(axis=1)
    return 1 - np.asarray(cleared[np.arange(len(first)), first])


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
    report: Callable[[int, int, float], None]

    def missing(self, recipe: Recipe) -> list[str]:
        """The models whose answers are not there, or are another recipe's."""
        made_by = {"teacher": ROBUST.name, **dict.fromkeys(self.students, _identity(recipe))}
        return [name for name, wanted in made_by.items() if self._made_by(name) != wanted]

    def answers(
        self, recipe: Recipe, weights: BackboneWeights, seed: int
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        """Scores and calls of the held images, by model; what is missing is trained."""
        missing = self.missing(recipe)
        if missing:
            self.folder.mkdir(parents=True, exist_ok=True)
            pool = distil.open_pool(self.folder)
            if pool is None or "teacher" in missing:
                pool = self._teach(recipe, weights, seed)
            for name in [one for one in self.students if one in missing]:
                student = train_small(
                    self.collection,
                    self.validation,
                    pool,
                    recipe,
                    labels=self.labels,
                    seed=self.students[name],
                    report=self.report,
                )
                self._keep(name, student, recipe, _identity(recipe))
        return {name: self._read(name) for name in ("teacher", *self.students)}

    def _teach(self, recipe: Recipe, weights: BackboneWeights, seed: int) -> distil.Pool:
        checkpoint = self.folder / "teacher-state.npz"
        trained = train_robust(
            self.collection,
            self.train,
            self.validation,
            weights,
            ROBUST,
            plan_of_robust(ROBUST),
            labels=self.labels,
            seed=seed,
            report=self.report,
            checkpoint=checkpoint,
        )

        def teacher(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            return predict(trained.quick.whole, pixels, ROBUST.preprocessing)

        pool = draw_pool(
            self.collection,
            self.train,
            teacher,
            recipe,
            self.folder,
            labels=self.labels,
            seed=seed,
            report=self.report,
        )
        self._keep("teacher", trained, ROBUST, ROBUST.name)
        checkpoint.unlink(missing_ok=True)
        return pool

    def _keep(self, name: str, trained: Trained, recipe: Recipe, made_by: str) -> None:
        scores = predict(trained.quick.whole, self.collection.pixels[self.held], recipe.preprocessing)
        partial = self.folder / f".{name}.npz"
        np.savez(partial, positive=scores[:, self.labels.positive], threshold=trained.threshold, made_by=made_by)
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
            f"{out}: holds a cross-validation with other data, recipe, seed or folds", "Name another folder with --out"
        )
    write_whole(mark, identity)
