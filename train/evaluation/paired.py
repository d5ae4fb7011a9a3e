"""Compare two models on the same images with paired intervals; choose a threshold from out-of-fold answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .auc import both_kinds
from .calibration import choose_threshold
from .intervals import GROUP_BOOTSTRAP, bootstrap, percentile
from .metrics import weighted_auc

SENSITIVITY = 0.95  # where specificity is compared

Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]


@dataclass
class Answers:
    """One model's answers over all folds: of each image, positive probability and whether it was called positive."""

    positive: NDArray[np.float64]
    called: Flags

    def of(self, rows: Indices) -> Answers:
        """Return the answers to some of the images."""
        return Answers(self.positive[rows], self.called[rows])


def student_minus_teacher(
    is_positive: Flags, teacher: Answers, student: Answers, group: Indices
) -> dict[str, dict[str, Any]]:
    """Return the student's metrics minus the teacher's on the same images (N,), with paired intervals; plain types.

    Each bootstrap resample contains the same images for both models, so that difficulty which they share cancels
    out; it is drawn by ``group`` (N,) as in ``intervals.bootstrap``. AUC and specificity need an image of each class.
    ``specificity`` is measured at a sensitivity of ``SENSITIVITY``, with each model's own threshold; ``accuracy`` uses
    the labels that each model gave.
    """

    def differences(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        parts = [_figures(is_positive, answers, weights) for answers in (student, teacher)]
        return {name: parts[0][name] - parts[1][name] for name in parts[0]}

    found = {name: values[0] for name, values in differences(np.ones((1, len(is_positive)))).items()}
    resampled = bootstrap(differences, is_positive, group)
    return {
        name: asdict(percentile(value, resampled[name], len(is_positive), GROUP_BOOTSTRAP))
        for name, value in found.items()
    }


def _figures(is_positive: Flags, answers: Answers, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    accuracy = weights @ (answers.called == is_positive) / weights.sum(axis=1)
    if not both_kinds(is_positive):
        return {"accuracy": accuracy}
    return {
        "auc": weighted_auc(is_positive, answers.positive)(weights),
        "specificity": specificity_at(is_positive, answers.positive, weights),
        "accuracy": accuracy,
    }


def specificity_at(is_positive: Flags, score: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the specificity (R,) where the sensitivity first reaches ``SENSITIVITY``, for weights (R, N)."""
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    sensitivity, false_positive_rate = (
        (weights[:, order] * kind[order]).cumsum(axis=1)[:, last_of_tie] / (weights @ kind)[:, None]
        for kind in (is_positive.astype(float), (~is_positive).astype(float))
    )
    first = (sensitivity >= SENSITIVITY - 1e-12).argmax(axis=1)
    return 1 - np.asarray(false_positive_rate[np.arange(len(first)), first])


def threshold_of(is_positive: Flags, students: Sequence[Answers], rows: Indices) -> float:
    """Choose one threshold for students of all seeds from their answers to images that they were not trained on.

    Out-of-fold images are more numerous than one validation set; scikit-learn's ``TunedThresholdClassifierCV``
    chooses in the same way. ``rows`` must not contain test images.
    """
    scores = np.concatenate([student.positive[rows] for student in students])
    return choose_threshold(scores, np.tile(is_positive[rows], len(students)).astype(int))


def called_by_other_folds(
    is_positive: Flags, students: Mapping[str, Answers], fold_of: Indices, choosable: Flags
) -> dict[str, Answers]:
    """Label the images of each fold at the threshold that the other folds choose.

    Parameters
    ----------
    is_positive
        bool (N,).
    students
        Answers (N,) of each.
    fold_of
        Fold of each image (N,), 0 for none; at least two folds.
    choosable
        bool (N,): images from which a threshold may be chosen; no test images.
    """
    called = {name: np.zeros(len(is_positive), bool) for name in students}
    for fold in np.unique(fold_of[fold_of > 0]):
        others = np.flatnonzero((fold_of > 0) & (fold_of != fold) & choosable)
        threshold = threshold_of(is_positive, list(students.values()), others)
        held = fold_of == fold
        for name, student in students.items():
            called[name][held] = student.positive[held] >= threshold
    return {name: Answers(student.positive, called[name]) for name, student in students.items()}
