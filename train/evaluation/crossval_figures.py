"""Compute the figures of a cross-validation: of each model, under stress, and of students minus their teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from mri_edge.train.data.collection import Collection, Indices
from mri_edge.train.transforms.mri import CHANGES

from .calibration import choose_threshold
from .intervals import GROUP_BOOTSTRAP, auc, bootstrap, both_kinds, percentile
from .metrics import fraction_metric, measure_answers, weighted_auc, wilson_metric

SENSITIVITY = 0.95  # where specificity is compared

Flags = NDArray[np.bool_]


@dataclass
class Answers:
    """One model's answers over all folds: the positive probability and the predicted label index of each image (N,)."""

    positive: NDArray[np.float64]
    called: Indices

    @classmethod
    def empty(cls, images: int) -> Answers:
        """Return zeros, which the folds fill in one by one."""
        return cls(np.zeros(images), np.zeros(images, np.intp))

    def columns(self) -> tuple[NDArray[np.float64], Indices]:
        """Return both arrays in the order of the parameters of ``figures``."""
        return self.positive, self.called


@dataclass(frozen=True)
class Stress:
    """Answers under changes: rows (M,), probabilities and positive calls (1 + changes, M), unchanged scans first."""

    rows: Indices
    positive: NDArray[np.floating[Any]]
    called: Flags

    @classmethod
    def empty(cls) -> Stress:
        """Return the value for a fold without scored images."""
        return cls(np.empty(0, np.intp), np.empty((0, 0), np.float32), np.empty((0, 0), bool))


def figures(
    data: Collection, chosen: Indices, positive_label: int, positive: NDArray[np.float64], called: Indices
) -> dict[str, Any]:
    """Compute the metrics of the answers (N,) to the images ``chosen``, in plain types.

    These are the metrics of ``metrics.measure``, with labels at the thresholds of the folds;
    ``false_positive_rate_at_sensitivity``, measured where the sensitivity first reaches ``SENSITIVITY``;
    ``right_by_folder`` for each class folder; and ``auc_by_source``. Metrics that need both classes are omitted if
    there is only one. Intervals of the AUC account for groups of near-duplicates; those of proportions treat images as
    independent.
    """
    label = data.label[chosen]
    is_positive = label == positive_label
    score, answer, group = positive[chosen], called[chosen], data.group[chosen]
    right = answer == label
    found = {
        name: asdict(metric)
        for name, metric in measure_answers(label, score, answer, positive_label, group=group).items()
    }
    if both_kinds(is_positive):
        false_positive, true_positive, _ = roc_curve(is_positive, score, drop_intermediate=False)
        first = int(np.argmax(true_positive >= SENSITIVITY))
        negatives = int((~is_positive).sum())
        found["false_positive_rate_at_sensitivity"] = asdict(
            wilson_metric(round(false_positive[first] * negatives), negatives)
        )
    folder = np.array([data.scans[index].folder for index in chosen])
    found["right_by_folder"] = {
        name: asdict(fraction_metric(right[folder == name])) for name in np.unique(folder).tolist()
    }
    source = data.source[chosen]
    masks = {name: source == name for name in np.unique(source).tolist()}
    found["auc_by_source"] = {
        name: asdict(auc(is_positive[mask], score[mask], group[mask]))
        for name, mask in masks.items()
        if both_kinds(is_positive[mask])
    }
    return found


def stress_figures(parts: Sequence[Stress], is_positive: Flags) -> dict[str, Any]:
    """Return AUC, sensitivity and specificity under each change, over all folds, or {} if no image was scored."""
    scored = [part for part in parts if len(part.rows)]
    if not scored:
        return {}
    truth = is_positive[np.concatenate([part.rows for part in scored])]
    positive = np.concatenate([part.positive for part in scored], axis=1)
    called = np.concatenate([part.called for part in scored], axis=1)
    return {
        change: {
            "auc": asdict(auc(truth, score.astype(np.float64))),
            "sensitivity": asdict(fraction_metric(answer[truth])),
            "specificity": asdict(fraction_metric(~answer[~truth])),
        }
        for change, score, answer in zip(("none", *CHANGES), positive, called, strict=True)
    }


def compare_students(
    data: Collection,
    positive_label: int,
    answers: Mapping[str, Answers],
    teacher: str,
    fold_of: Indices,
    selectable: Flags,
) -> dict[str, Any]:
    """Compare every student with the teacher on the images that a fold scored, in plain types.

    Thresholds are chosen on ``selectable`` images (N,) only.
    """
    is_positive = data.label == positive_label
    scored = np.flatnonzero(fold_of)
    folds = np.unique(fold_of[scored]).tolist()
    flags = {name: BinaryAnswers(model.positive, model.called == positive_label) for name, model in answers.items()}
    students = {name: model for name, model in flags.items() if name != teacher}
    unseen = np.flatnonzero(selectable & (fold_of > 0))

    def differences(rows: Indices, of: Mapping[str, BinaryAnswers] = students) -> dict[str, Any]:
        of_teacher, group = flags[teacher].of(rows), data.group[rows]
        return {
            name: student_minus_teacher(is_positive[rows], of_teacher, model.of(rows), group)
            for name, model in of.items()
        }

    found = {
        # Suggested for a bundle of this recipe, because its own validation set has few negative images.
        "threshold": {
            "value": threshold_of(is_positive, list(students.values()), unseen),
            "rule": f"best Youden index among those of the target sensitivity, on answers of {len(students)} students "
            f"to {len(unseen)} images out of fold, no test image among them",
        },
        "student_minus_teacher": differences(scored),
        "student_minus_teacher_by_fold": {str(fold): differences(np.flatnonzero(fold_of == fold)) for fold in folds},
    }
    if len(folds) > 1:
        called = called_by_other_folds(is_positive, students, fold_of, selectable)
        found["pooled_at_threshold_of_other_folds"] = {
            name: figures(
                data,
                scored,
                positive_label,
                model.positive,
                _labels_of(model.called, answers[name].called, positive_label, data),
            )
            for name, model in called.items()
        }
        found["student_minus_teacher_at_threshold_of_other_folds"] = differences(scored, called)
    return found


def _labels_of(called_positive: Flags, called: Indices, positive_label: int, data: Collection) -> Indices:
    """Return label indices for calls at another threshold; images that are no longer positive get another label."""
    another = (positive_label + 1) % (int(data.label.max()) + 1)
    others = np.where(called == positive_label, another, called)
    return np.where(called_positive, positive_label, others).astype(np.intp)


@dataclass
class BinaryAnswers:
    """One model's answers over all folds: the positive probability of each image (N,), and whether it is positive."""

    positive: NDArray[np.float64]
    called: Flags

    def of(self, rows: Indices) -> BinaryAnswers:
        """Return the answers to some of the images."""
        return BinaryAnswers(self.positive[rows], self.called[rows])


def student_minus_teacher(
    is_positive: Flags, teacher: BinaryAnswers, student: BinaryAnswers, group: Indices
) -> dict[str, dict[str, Any]]:
    """Return the student's metrics minus the teacher's on the same images (N,), with paired intervals.

    Each bootstrap resample contains the same images for both models, so that images which are hard for both cancel
    out. It is drawn by ``group`` (N,), see ``intervals.bootstrap``. AUC and specificity need images of both classes.
    ``specificity`` is measured where each model reaches a sensitivity of ``SENSITIVITY``; ``accuracy`` uses the labels
    that each model predicted.
    """

    def differences(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        parts = [_paired_figures(is_positive, answers, weights) for answers in (student, teacher)]
        return {name: parts[0][name] - parts[1][name] for name in parts[0]}

    found = {name: values[0] for name, values in differences(np.ones((1, len(is_positive)))).items()}
    resampled = bootstrap(differences, is_positive, group)
    return {
        name: asdict(percentile(value, resampled[name], len(is_positive), GROUP_BOOTSTRAP))
        for name, value in found.items()
    }


def _paired_figures(
    is_positive: Flags, answers: BinaryAnswers, weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
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


def threshold_of(is_positive: Flags, students: Sequence[BinaryAnswers], rows: Indices) -> float:
    """Choose one threshold for students of all seeds from their out-of-fold answers to the images ``rows``.

    There are more such images than in one validation set; scikit-learn's ``TunedThresholdClassifierCV`` works in the
    same way. ``rows`` must not contain test images.
    """
    scores = np.concatenate([student.positive[rows] for student in students])
    return choose_threshold(scores, np.tile(is_positive[rows], len(students)).astype(int))


def called_by_other_folds(
    is_positive: Flags, students: Mapping[str, BinaryAnswers], fold_of: Indices, choosable: Flags
) -> dict[str, BinaryAnswers]:
    """Label the images of each fold at the threshold that the other folds choose.

    Parameters
    ----------
    is_positive
        bool (N,).
    students
        BinaryAnswers (N,) of each student.
    fold_of
        Fold of each image (N,), 0 for none. There must be at least two folds.
    choosable
        bool (N,): images that may choose a threshold. Test images must be excluded.
    """
    called = {name: np.zeros(len(is_positive), bool) for name in students}
    for fold in np.unique(fold_of[fold_of > 0]):
        others = np.flatnonzero((fold_of > 0) & (fold_of != fold) & choosable)
        threshold = threshold_of(is_positive, list(students.values()), others)
        held = fold_of == fold
        for name, student in students.items():
            called[name][held] = student.positive[held] >= threshold
    return {name: BinaryAnswers(student.positive, called[name]) for name, student in students.items()}
