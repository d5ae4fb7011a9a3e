"""Two models on the same images: differences with a paired interval, and a threshold from answers out of fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .auc import both_kinds
from .calibration import choose_threshold
from .intervals import GROUP_BOOTSTRAP, bootstrap, percentile
from .metrics import area_of

SENSITIVITY = 0.95  # where specificity is compared

Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]


@dataclass
class Answers:
    """One model's answers over all folds: probability of the positive label and what it was called, of each image."""

    positive: NDArray[np.float64]
    called: Flags

    @classmethod
    def none(cls, images: int) -> Answers:
        """Before any fold."""
        return cls(np.zeros(images), np.zeros(images, bool))

    def of(self, rows: Indices) -> Answers:
        """Those to some of the images."""
        return Answers(self.positive[rows], self.called[rows])


def student_minus_teacher(ill: Flags, teacher: Answers, student: Answers, group: Indices) -> dict[str, dict[str, Any]]:
    """Student's figure minus teacher's on the same images (N,), with the interval of a paired bootstrap; plain types.

    Each resample holds the same images for both, so that what makes an image hard for both cancels out; it is drawn
    by ``group`` (N,), as ``intervals.bootstrap`` does. AUC and specificity want at least one image of each kind.
    ``specificity`` is that at a sensitivity of ``SENSITIVITY``, each model at a threshold that gives it;
    ``accuracy`` is that of what each model called.
    """

    def differences(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        parts = [_figures(ill, one, weights) for one in (student, teacher)]
        return {name: parts[0][name] - parts[1][name] for name in parts[0]}

    found = {name: values[0] for name, values in differences(np.ones((1, len(ill)))).items()}
    resampled = bootstrap(differences, ill, group)
    return {
        name: asdict(percentile(value, resampled[name], len(ill), GROUP_BOOTSTRAP)) for name, value in found.items()
    }


def _figures(ill: Flags, answers: Answers, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    accuracy = weights @ (answers.called == ill) / weights.sum(axis=1)
    if not both_kinds(ill):
        return {"accuracy": accuracy}
    return {
        "auc": area_of(ill, answers.positive)(weights),
        "specificity": specificity_at(ill, answers.positive, weights),
        "accuracy": accuracy,
    }


def specificity_at(ill: Flags, score: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Specificity where the sensitivity first reaches ``SENSITIVITY``, as a function of weights (R, N): (R,)."""
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    found, cleared = (
        (weights[:, order] * kind[order]).cumsum(axis=1)[:, last_of_tie] / (weights @ kind)[:, None]
        for kind in (ill.astype(float), (~ill).astype(float))
    )
    first = (found >= SENSITIVITY - 1e-12).argmax(axis=1)
    return 1 - np.asarray(cleared[np.arange(len(first)), first])


def threshold_of(ill: Flags, students: Sequence[Answers], rows: Indices) -> float:
    """One threshold for students of all seeds, chosen as on validation but on answers to images they did not see.

    There are more such images than any one validation has, and no network hangs on them: it is how
    scikit-learn's ``TunedThresholdClassifierCV`` chooses. ``rows`` must leave test images out.
    """
    scores = np.concatenate([one.positive[rows] for one in students])
    return choose_threshold(scores, np.tile(ill[rows], len(students)).astype(int))


def called_by_other_folds(
    ill: Flags, students: Mapping[str, Answers], fold_of: Indices, choosable: Flags
) -> dict[str, Answers]:
    """What students call the images of each fold at the threshold that the other folds choose.

    Parameters
    ----------
    ill
        bool (N,).
    students
        Answers (N,) of each.
    fold_of
        Fold of each image (N,), 0 for none; two folds at least.
    choosable
        Images (N,) on which a threshold may be chosen: no test image.
    """
    called = {name: np.zeros(len(ill), bool) for name in students}
    for fold in np.unique(fold_of[fold_of > 0]):
        others = np.flatnonzero((fold_of > 0) & (fold_of != fold) & choosable)
        threshold = threshold_of(ill, list(students.values()), others)
        held = fold_of == fold
        for name, one in students.items():
            called[name][held] = one.positive[held] >= threshold
    return {name: Answers(one.positive, called[name]) for name, one in students.items()}
