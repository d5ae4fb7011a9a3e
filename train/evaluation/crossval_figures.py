"""Compute the figures of a cross-validation from its record, and those of held-out scans with changed gray levels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_curve

from mri_edge.bundles.manifest import Metric
from mri_edge.bundles.split import short
from mri_edge.train.data.collection import Indices
from mri_edge.train.transforms.mri import CHANGES

from .calibration import choose_threshold
from .crossval_record import TEACHER, ScoredImages
from .intervals import (
    COMBINED,
    GROUP_BOOTSTRAP,
    Figures,
    Weights,
    auc,
    bootstrap,
    both_kinds,
    mean_of,
    outer_bounds,
    percentile,
)
from .metrics import by_label, fraction_metric, macro_figures, measure_answers, weighted_auc

SENSITIVITY = 0.95  # where specificity is compared

Flags = NDArray[np.bool_]


def figures_from(record: Mapping[str, Any]) -> dict[str, Any]:
    """Compute all figures of a record from its columns of answers; see ``crossval_record`` for both.

    A cross-validation writes its record with this function, so computing the figures of a stored record again gives
    the same values.

    Parameters
    ----------
    record
        ``schema_version``, ``labels``, ``positive`` and ``images`` are used.

    Returns
    -------
    ``pooled``, ``by_source``, ``by_fold``, ``mean_of_folds``, ``threshold`` and, where they are defined,
    ``pooled_at_threshold_of_other_folds`` and the comparisons of students and teacher, in plain types.

    Raises
    ------
    DataError
        The record has another schema version.
    """
    images, names, positive = ScoredImages.of(record), record["labels"], record["positive"]

    def figures_of(rows: Indices) -> dict[str, Any]:
        return {
            name: figures(images, rows, names, positive, probabilities, images.called[name])
            for name, probabilities in images.probabilities.items()
        }

    by_fold = [
        {
            "fold": fold,
            "sources": np.unique(images.source[images.fold == fold]).tolist(),
            "models": figures_of(np.flatnonzero(images.fold == fold)),
        }
        for fold in np.unique(images.fold).tolist()
    ]
    found = {
        "pooled": figures_of(np.arange(len(images))),
        "by_source": {
            source: figures_of(np.flatnonzero(images.source == source)) for source in np.unique(images.source).tolist()
        },
        "by_fold": by_fold,
        "mean_of_folds": {name: _mean_of_folds([fold["models"][name] for fold in by_fold]) for name in images.called},
    }
    return found | _threshold_figures(images, names, positive) | _compare_students(images, positive)


def threshold_for(record: Mapping[str, Any], tested: Collection[str]) -> dict[str, Any] | None:
    """Choose the threshold of a bundle on the out-of-fold answers of a record, without the bundle's test images.

    Parameters
    ----------
    record, tested
        As for ``images_for``.

    Returns
    -------
    The entry ``threshold`` of a record, or None if there is no positive label or no image of one of the classes.

    Raises
    ------
    DataError
        The record has another schema version.
    """
    return _choose_threshold(images_for(record, tested), record["positive"])


def images_for(record: Mapping[str, Any], tested: Collection[str]) -> ScoredImages:
    """Return the images of a record, of which those that may choose the threshold of a bundle are ``selectable``.

    Parameters
    ----------
    record
        As for ``figures_from``.
    tested
        SHA-256 of the bundle's test images, of any number of digits from 16. Images of their groups choose nothing
        either, nor do those that the record excludes.

    Raises
    ------
    DataError
        The record has another schema version.
    """
    images = ScoredImages.of(record)
    test = np.isin(images.sha256, [short(sha256) for sha256 in tested])
    return replace(images, selectable=images.selectable & ~np.isin(images.group, images.group[test]))


def figures(
    images: ScoredImages,
    rows: Indices,
    names: Sequence[str],
    positive: int | None,
    probabilities: NDArray[np.float64],
    called: Indices,
) -> dict[str, Any]:
    """Compute the figures of one model's answers to the images ``rows``, in plain types.

    They are the ``figures`` of ``crossval_record``. ``false_positive_rate_at_sensitivity`` is measured where the
    sensitivity first reaches ``SENSITIVITY``. All intervals account for groups.

    Parameters
    ----------
    probabilities, called
        float64 (N, classes) and int (N,) of all images.
    """
    label, answer, group = images.label[rows], called[rows], images.group[rows]
    metrics = measure_answers(label, probabilities[rows], answer, positive, group)
    found: dict[str, Any] = {name: asdict(metric) for name, metric in metrics.items()}
    if positive is not None and both_kinds(label == positive):
        found["false_positive_rate_at_sensitivity"] = false_positive_rate(
            label == positive, probabilities[rows, positive], group
        )
    folder, right = images.folder[rows], answer == label
    found["right_by_folder"] = {
        name: asdict(fraction_metric(right[folder == name], group[folder == name]))
        for name in np.unique(folder).tolist()
    }
    found["confusion_matrix"] = confusion_matrix(label, answer, labels=range(len(names))).tolist()
    if len(names) > 2:
        found["by_label"] = by_label(label, probabilities[rows], answer, names, group)
    return found


def false_positive_rate(is_positive: Flags, score: NDArray[np.float64], group: Indices) -> dict[str, Any]:
    """Return the false positive rate where the sensitivity first reaches ``SENSITIVITY``.

    The threshold depends on the same images, so each resample chooses it again. The interval is at least as wide as
    that of a fixed threshold, because nearly all resamples are equal where nearly all answers are right. In simulations
    it covers the truth in 0.90 to 0.99 of the samples, that of a fixed threshold in 0.67 to 0.89
    (``scripts/interval_coverage.py``).
    """
    _, sensitivity, thresholds = roc_curve(is_positive, score, drop_intermediate=False)
    threshold = thresholds[np.argmax(sensitivity >= SENSITIVITY - 1e-12)]
    fixed = fraction_metric(score[~is_positive] >= threshold, group[~is_positive])
    resampled = bootstrap(lambda weights: {"rate": 1 - specificity_at(is_positive, score, weights)}, is_positive, group)
    drawn = percentile(fixed.value, resampled["rate"], fixed.images, GROUP_BOOTSTRAP)
    return asdict(outer_bounds(drawn, fixed))


def _mean_of_folds(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of the folds' own areas under the ROC curve, over the folds in which it is defined."""
    found = {}
    for name in ("auc", "macro_auc"):
        parts = [Metric(**fold[name]) for fold in folds if name in fold]
        if parts:
            method = f"mean of {len(parts)} folds; {COMBINED}"
            found[name] = asdict(mean_of(parts, sum(part.images for part in parts), method))
    return found


def _threshold_figures(images: ScoredImages, names: Sequence[str], positive: int | None) -> dict[str, Any]:
    """Choose a threshold on all out-of-fold answers, and judge the thresholds that the other folds choose."""
    threshold = _choose_threshold(images, positive)
    if threshold is None or positive is None or "by_fold" not in threshold:
        return {"threshold": threshold}
    by_fold = {entry["fold"]: entry["value"] for entry in threshold["by_fold"]}
    called = called_by_other_folds(_shipped(_binary_answers(images, positive)), images.fold, by_fold)
    everything = np.arange(len(images))
    return {
        "threshold": threshold,
        "pooled_at_threshold_of_other_folds": {
            name: figures(
                images,
                everything,
                names,
                positive,
                images.probabilities[name],
                _labels_at(model.called, images.probabilities[name], positive),
            )
            for name, model in called.items()
        },
    }


def _choose_threshold(images: ScoredImages, positive: int | None) -> dict[str, Any] | None:
    """Return the entry ``threshold`` of a record."""
    if positive is None:
        return None
    is_positive = images.label == positive
    models = _shipped(_binary_answers(images, positive))
    chosen_on = np.flatnonzero(images.selectable)
    if not both_kinds(is_positive[chosen_on]):
        return None
    of_whom = f"{len(models)} students" if TEACHER in images.called else "one model in each fold"
    # Suggested for a bundle of this recipe, because its own validation set has few negative images.
    threshold: dict[str, Any] = {
        "value": threshold_of(is_positive, list(models.values()), chosen_on),
        "rule": f"best Youden index among those of the target sensitivity, on answers of {of_whom} to "
        f"{len(chosen_on)} images out of fold, no test image among them",
        "images": len(chosen_on),
    }
    by_fold = thresholds_of_other_folds(is_positive, models, images.fold, images.selectable)
    if by_fold is None:
        return threshold
    called = called_by_other_folds(models, images.fold, by_fold)
    threshold["by_fold"] = [{"fold": fold, "value": value} for fold, value in by_fold.items()]
    for name, kind, answer in (("sensitivity", is_positive, True), ("specificity", ~is_positive, False)):
        if kind.any():
            hits = np.concatenate([model.called[kind] == answer for model in called.values()])
            # Answers of several students to an image are in its group, so they count as copies.
            metric = fraction_metric(hits, np.tile(images.group[kind], len(called)))
            threshold[name] = asdict(replace(metric, images=int(np.count_nonzero(kind))))
    return threshold


def _binary_answers(images: ScoredImages, positive: int) -> dict[str, BinaryAnswers]:
    return {
        name: BinaryAnswers(probabilities[:, positive], images.called[name] == positive)
        for name, probabilities in images.probabilities.items()
    }


def _shipped(models: dict[str, BinaryAnswers]) -> dict[str, BinaryAnswers]:
    """Return the models that a bundle of the recipe may contain: all but the teacher."""
    return {name: model for name, model in models.items() if name != TEACHER}


def _labels_at(is_called: Flags, probabilities: NDArray[np.float64], positive: int) -> Indices:
    """Return the positive label where it ``is_called`` (N,), elsewhere the most probable other one, as ``decide``."""
    others = probabilities.copy()
    others[:, positive] = -1
    return np.where(is_called, positive, others.argmax(axis=1))


def _compare_students(images: ScoredImages, positive: int | None) -> dict[str, Any]:
    """Compare every student with its teacher on the same images; return {} without a teacher."""
    if TEACHER not in images.called:
        return {}
    folds = np.unique(images.fold).tolist()

    def differences(rows: Indices, called: Mapping[str, BinaryAnswers] | None = None) -> dict[str, Any]:
        if positive is None:
            students = [name for name in images.called if name != TEACHER]
            return {name: _minus_teacher_over_labels(images, rows, name) for name in students}
        models = _binary_answers(images, positive)
        return {
            name: student_minus_teacher(
                images.label[rows] == positive, models[TEACHER].of(rows), model.of(rows), images.group[rows]
            )
            for name, model in (called or _shipped(models)).items()
        }

    everything = np.arange(len(images))
    found = {
        "student_minus_teacher": differences(everything),
        "student_minus_teacher_by_fold": {
            str(fold): differences(np.flatnonzero(images.fold == fold)) for fold in folds
        },
    }
    if positive is not None:
        is_positive = images.label == positive
        students = _shipped(_binary_answers(images, positive))
        by_fold = thresholds_of_other_folds(is_positive, students, images.fold, images.selectable)
        if by_fold is not None:
            called = called_by_other_folds(students, images.fold, by_fold)
            found["student_minus_teacher_at_threshold_of_other_folds"] = differences(everything, called)
    return found


def _minus_teacher_over_labels(images: ScoredImages, rows: Indices, student: str) -> dict[str, dict[str, Any]]:
    """Return the difference of accuracy and of the means over labels, as ``student_minus_teacher`` without a label."""
    label = images.label[rows]
    labels = np.unique(label).tolist()
    macros, right = [], []
    for name in (student, TEACHER):
        called = images.called[name][rows]
        macros.append(macro_figures(label, images.probabilities[name][rows], called, labels))
        right.append((called == label).astype(float))

    def differences(weights: Weights) -> Figures:
        first, second = (macro(weights) for macro in macros)
        accuracy = weights @ (right[0] - right[1]) / weights.sum(axis=1)
        return {"accuracy": accuracy} | {name: first[name] - second[name] for name in first}

    return _paired(differences, label, images.group[rows])


def _paired(measure: Callable[[Weights], Figures], strata: NDArray[Any], group: Indices) -> dict[str, dict[str, Any]]:
    """Return figures of several models with the percentile intervals of resamples that all models share."""
    found = {name: values[0] for name, values in measure(np.ones((1, len(strata)))).items()}
    resampled = bootstrap(measure, strata, group)
    return {
        name: asdict(percentile(value, resampled[name], len(strata), GROUP_BOOTSTRAP)) for name, value in found.items()
    }


@dataclass(frozen=True)
class Stress:
    """Answers of one fold under changes.

    ``rows`` (M,) of the collection, ``probabilities`` (1 + changes, M, classes) and ``called`` (1 + changes, M), the
    unchanged scans first.
    """

    rows: Indices
    probabilities: NDArray[np.floating[Any]]
    called: Indices

    @classmethod
    def empty(cls) -> Stress:
        """Return the value for a fold without scored images."""
        return cls(np.empty(0, np.intp), np.empty((0, 0, 0), np.float32), np.empty((0, 0), np.intp))


def stress_figures(parts: Sequence[Stress], label: Indices, group: Indices, positive: int | None) -> dict[str, Any]:
    """Return the main metrics under each change, over all folds, or {} if no image was scored.

    They are AUC, sensitivity and specificity, or, without a positive label, accuracy and macro AUC. ``label`` and
    ``group`` (N,) are those of the collection.
    """
    scored = [part for part in parts if len(part.rows)]
    if not scored:
        return {}
    rows = np.concatenate([part.rows for part in scored])
    probabilities = np.concatenate([part.probabilities for part in scored], axis=1)
    called = np.concatenate([part.called for part in scored], axis=1)
    truth, of_group = label[rows], group[rows]
    return {
        change: {
            name: asdict(metric) for name, metric in _main_metrics(truth, scores, answer, positive, of_group).items()
        }
        for change, scores, answer in zip(("none", *CHANGES), probabilities, called, strict=True)
    }


def _main_metrics(
    truth: Indices, probabilities: NDArray[np.floating[Any]], called: Indices, positive: int | None, group: Indices
) -> dict[str, Metric]:
    if positive is None:
        metrics = measure_answers(truth, probabilities, called, None, group)
        return {name: metrics[name] for name in ("accuracy", "macro_auc")}
    is_positive = truth == positive
    return {
        "auc": auc(is_positive, probabilities[:, positive].astype(np.float64), group),
        "sensitivity": fraction_metric((called == positive)[is_positive], group[is_positive]),
        "specificity": fraction_metric((called != positive)[~is_positive], group[~is_positive]),
    }


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
    """Return the student's metrics minus the teacher's on the same images, as ``mean_difference``."""
    return mean_difference(is_positive, [(student, teacher)], group)


def mean_difference(
    is_positive: Flags, pairs: Sequence[tuple[BinaryAnswers, BinaryAnswers]], group: Indices
) -> dict[str, dict[str, Any]]:
    """Return the metrics of the first model minus those of the second, mean of all ``pairs``, with paired intervals.

    Each bootstrap resample contains the same images (N,) for all models, so that images which are hard for both cancel
    out. It is drawn by ``group`` (N,), see ``intervals.bootstrap``. AUC and specificity need images of both classes.
    ``specificity`` is measured where each model reaches a sensitivity of ``SENSITIVITY``; ``accuracy`` uses the labels
    that each model predicted.
    """

    def differences(weights: Weights) -> Figures:
        parts = [[_paired_figures(is_positive, answers, weights) for answers in pair] for pair in pairs]
        return _mean_of([{name: ours[name] - theirs[name] for name in ours} for ours, theirs in parts])

    return _paired(differences, is_positive, group)


def mean_figures(is_positive: Flags, answers: Sequence[BinaryAnswers], group: Indices) -> dict[str, dict[str, Any]]:
    """Return the metrics of ``mean_difference``, mean of several models, with intervals of the same resamples."""

    def means(weights: Weights) -> Figures:
        return _mean_of([_paired_figures(is_positive, each, weights) for each in answers])

    return _paired(means, is_positive, group)


def _mean_of(parts: Sequence[Figures]) -> Figures:
    return {name: np.mean([part[name] for part in parts], axis=0) for name in parts[0]}


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


def thresholds_of_other_folds(
    is_positive: Flags, students: Mapping[str, BinaryAnswers], fold_of: Indices, choosable: Flags
) -> dict[int, float] | None:
    """Return for each fold the threshold that the other folds choose.

    None if there is only one fold, or if the images that would choose one of the thresholds are all of one class.

    Parameters
    ----------
    is_positive
        bool (N,).
    students
        BinaryAnswers (N,) of each student.
    fold_of
        Fold of each image (N,), 0 for none.
    choosable
        bool (N,): images that may choose a threshold. Test images must be excluded.
    """
    found = {}
    for fold in np.unique(fold_of[fold_of > 0]).tolist():
        others = np.flatnonzero((fold_of > 0) & (fold_of != fold) & choosable)
        if not both_kinds(is_positive[others]):
            return None
        found[fold] = threshold_of(is_positive, list(students.values()), others)
    return found


def called_by_other_folds(
    students: Mapping[str, BinaryAnswers], fold_of: Indices, thresholds: Mapping[int, float]
) -> dict[str, BinaryAnswers]:
    """Label the images of each fold at its threshold, as ``thresholds_of_other_folds`` returns them."""
    called = {name: np.zeros(len(fold_of), bool) for name in students}
    for fold, threshold in thresholds.items():
        held = fold_of == fold
        for name, student in students.items():
            called[name][held] = student.positive[held] >= threshold
    return {name: BinaryAnswers(student.positive, called[name]) for name, student in students.items()}
