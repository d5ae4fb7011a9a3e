"""Leak-free cross-validation of the small recipe beside its teacher: the same folds, the same images, paired.

In each fold a teacher is trained by the robust recipe, and students of several seeds are distilled from it.
What is finished lies in the folder of the figures: a run that was cut off, or one with another plan for the
students, goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
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
) -> dict[str, Any]:
    """Cross-validate teacher and students on the scans in ``data``; the figures go to ``out``/crossval.json and back.

    Students have the seeds ``seed``, ``seed`` + 1, …; every image is scored once by a teacher and
    once by a student of each seed that saw neither it nor a near-duplicate of it.

    Raises
    ------
    DataError, WeightsError, OutputError
        The data, the backbone weights or the place for the result are unfit, or hold another run.
    """
    if folds is None:
        raise UsageError("recipe 'small' is cross-validated by near-duplicates, not by source", "Say --cv 3")
    make_folder(out)
    scans, labels = find_scans(data, positive)
    weights = load_weights(backbone_weights)
    facts = [repr(ROBUST), repr(plan_of_robust(ROBUST)), POOL_VIEWS, folds, seed, weights.sha256]
    _claim(out, fingerprint([json.dumps(facts), *(f"{scan.file}\0{scan.sha256}\0{scan.label}" for scan in scans)]))
    collection = collect(scans, recipe.preprocessing)
    roles = np.array([image.role for image in choose_roles(collection).images])
    trainable = np.isin(roles, ("train", "validation"))
    everyone = np.arange(len(scans))
    models = {"teacher": Answers.none(len(scans))}
    models |= {f"student {number}": Answers.none(len(scans)) for number in range(seed, seed + STUDENTS)}
    fold_of = np.zeros(len(scans), int)
    with step_progress("cross-validation") as report:
        for fold, held in enumerate(grouped_folds(collection, everyone, folds), start=1):
            fold_of[held] = fold
            learn = everyone[trainable & ~np.isin(collection.group, collection.group[held])]
            validation = learn[hold_out(collection, learn)]
            one_fold = _Fold(
                collection, labels, np.setdiff1d(learn, validation), validation, held, out / f"fold-{fold}", report
            )
            for name, (scores, called) in one_fold.answers(recipe, weights, seed).items():
                models[name].positive[held], models[name].called[held] = scores, called
    ill = collection.label == labels.positive
    teacher = models["teacher"]
    result = {
        "recipe": recipe.name,
        "folds": folds,
        "seed": seed,
        "grouping": "near-duplicates; test images and their neighbours train nothing",
        "plan": asdict(plan_of(recipe)),
        "teacher": {"recipe": ROBUST.name, "plan": asdict(plan_of_robust(ROBUST)), "seed": seed},
        "pooled": {
            name: {
                **figures(collection, everyone, labels.positive, one.positive, one.called, SENSITIVITY),
                "calibration_error": _calibration_error(ill, one.positive),
            }
            for name, one in models.items()
        },
        "student_minus_teacher": {
            name: paired(ill, teacher.positive, one.positive) for name, one in models.items() if one is not teacher
        },
        "images": [
            {
                "file": scan.file,
                "label": scan.label,
                "fold": int(fold_of[index]),
                **{name: float(one.positive[index]) for name, one in models.items()},
            }
            for index, scan in enumerate(scans)
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
    report: Callable[[int, int, float], None]

    def answers(
        self, recipe: Recipe, weights: BackboneWeights, seed: int
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        """Scores and calls of the held images, by model."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = {}
        pool = distil.open_pool(self.folder)
        if pool is None or not (self.folder / "teacher.npz").is_file():
            pool = self._teach(recipe, weights, seed)
        found["teacher"] = self._read("teacher")
        for number in range(seed, seed + STUDENTS):
            name = f"student {number}"
            made_by = repr((recipe, plan_of(recipe), STACK))
            if not (self.folder / f"{name}.npz").is_file() or self._made_by(name) != made_by:
                student = train_small(
                    self.collection,
                    self.validation,
                    pool,
                    recipe,
                    labels=self.labels,
                    seed=number,
                    report=self.report,
                )
                self._keep(name, student, recipe, made_by)
            found[name] = self._read(name)
        return found

    def _teach(self, recipe: Recipe, weights: BackboneWeights, seed: int) -> distil.Pool:
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
        )

        def teacher(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            return predict(trained.quick.whole, pixels, ROBUST.preprocessing)

        self._keep("teacher", trained, ROBUST, ROBUST.name)
        return draw_pool(
            self.collection,
            self.train,
            teacher,
            recipe,
            self.folder,
            labels=self.labels,
            seed=seed,
            report=self.report,
        )

    def _keep(self, name: str, trained: Trained, recipe: Recipe, made_by: str) -> None:
        scores = predict(trained.quick.whole, self.collection.pixels[self.held], recipe.preprocessing)
        partial = self.folder / f".{name}.npz"
        np.savez(partial, positive=scores[:, self.labels.positive], threshold=trained.threshold, made_by=made_by)
        partial.replace(self.folder / f"{name}.npz")

    def _made_by(self, name: str) -> str:
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as kept:
            return str(kept["made_by"])

    def _read(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as kept:
            scores = kept["positive"].astype(np.float64)
            return scores, scores >= kept["threshold"]


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
