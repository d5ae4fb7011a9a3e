"""Compute the metrics of a cross-validation: per model, under stress, and of students compared with their teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from mri_edge.train.data.collection import Collection, Indices
from mri_edge.train.transforms.shifts import CHANGES

from . import paired
from .auc import auc, both_kinds
from .metrics import measure_answers, wilson_metric

Flags = NDArray[np.bool_]


@dataclass
class Answers:
    """One model's answers over all folds: probability of the positive label, and label index, for each image (N,)."""

    positive: NDArray[np.float64]
    called: Indices

    @classmethod
    def empty(cls, images: int) -> Answers:
        """Return zeros, to be filled fold by fold."""
        return cls(np.zeros(images), np.zeros(images, np.intp))

    def columns(self) -> tuple[NDArray[np.float64], Indices]:
        """Return both arrays, in the order in which ``figures`` takes them."""
        return self.positive, self.called


@dataclass(frozen=True)
class Stress:
    """Answers under changes: rows (M,), probabilities and whether called positive (1 + changes, M); unchanged first."""

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
    """Compute the metrics of the answers (N,) to the images ``chosen``; plain types.

    These are the metrics of ``metrics.measure``, with labels at the folds' own thresholds, and also:
    ``false_positive_rate_at_sensitivity``, the fraction of other images called positive where the fraction of
    positives found first reaches ``paired.SENSITIVITY``; ``right_by_folder`` for each class folder; ``auc_by_source``.
    Metrics that need both classes are left out if there is only one. Intervals of the AUC account for groups of
    near-duplicates, those of proportions treat images as independent.
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
        first = int(np.argmax(true_positive >= paired.SENSITIVITY))
        negatives = int((~is_positive).sum())
        found["false_positive_rate_at_sensitivity"] = asdict(
            wilson_metric(round(false_positive[first] * negatives), negatives)
        )
    folder = np.array([data.scans[index].folder for index in chosen])
    found["right_by_folder"] = {
        name: asdict(wilson_metric(int(right[folder == name].sum()), int((folder == name).sum())))
        for name in np.unique(folder).tolist()
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
    """Return AUC, sensitivity and specificity under each change, over all folds; empty if no image was scored."""
    scored = [part for part in parts if len(part.rows)]
    if not scored:
        return {}
    truth = is_positive[np.concatenate([part.rows for part in scored])]
    positive = np.concatenate([part.positive for part in scored], axis=1)
    called = np.concatenate([part.called for part in scored], axis=1)
    return {
        change: {
            "auc": asdict(auc(truth, score.astype(np.float64))),
            "sensitivity": asdict(wilson_metric(int(answer[truth].sum()), int(truth.sum()))),
            "specificity": asdict(wilson_metric(int((~answer[~truth]).sum()), int((~truth).sum()))),
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
    """Compare every student with the teacher on the images that have a fold; plain types.

    Thresholds are chosen on ``selectable`` images (N,) only.
    """
    is_positive = data.label == positive_label
    scored = np.flatnonzero(fold_of)
    folds = np.unique(fold_of[scored]).tolist()
    flags = {name: paired.Answers(model.positive, model.called == positive_label) for name, model in answers.items()}
    students = {name: model for name, model in flags.items() if name != teacher}
    unseen = np.flatnonzero(selectable & (fold_of > 0))

    def differences(rows: Indices, of: Mapping[str, paired.Answers] = students) -> dict[str, Any]:
        of_teacher, group = flags[teacher].of(rows), data.group[rows]
        return {
            name: paired.student_minus_teacher(is_positive[rows], of_teacher, model.of(rows), group)
            for name, model in of.items()
        }

    found = {
        # For a bundle of this recipe: the threshold of its own validation depends on few negative images.
        "threshold": {
            "value": paired.threshold_of(is_positive, list(students.values()), unseen),
            "rule": f"best Youden index among those of the target sensitivity, on answers of {len(students)} students "
            f"to {len(unseen)} images out of fold, no test image among them",
        },
        "student_minus_teacher": differences(scored),
        "student_minus_teacher_by_fold": {str(fold): differences(np.flatnonzero(fold_of == fold)) for fold in folds},
    }
    if len(folds) > 1:
        called = paired.called_by_other_folds(is_positive, students, fold_of, selectable)
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
    """Label indices for calls at another threshold: images that are no longer positive get another label."""
    another = (positive_label + 1) % (int(data.label.max()) + 1)
    others = np.where(called == positive_label, another, called)
    return np.where(called_positive, positive_label, others).astype(np.intp)
