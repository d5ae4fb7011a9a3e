"""Compute the metrics of a model on labelled scans, each with its 95% interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import classification_report, confusion_matrix, roc_curve

from mri_edge.authoring.intervals import wilson_interval
from mri_edge.bundles.manifest import Metric
from mri_edge.inference.prediction import decide

from .intervals import (
    BASIC_BOOTSTRAP,
    BASIC_GROUP_BOOTSTRAP,
    BOOTSTRAP,
    GROUP_BOOTSTRAP,
    GROUPED_WILSON,
    Figures,
    Weights,
    auc,
    basic,
    bootstrap,
    both_kinds,
    draw_outcomes,
    grouped_wilson,
    mean_of,
    outer_bounds,
    percentile,
)

WILSON = "Wilson score interval (Wilson 1927)"
INDIRECT = "Wilson score interval of TP / (TP + FP + FN), as F1 (Lam et al. 2023)"
GROUPED_INDIRECT = f"{GROUPED_WILSON}, of TP / (TP + FP + FN), as F1 (Lam et al. 2023)"
BINS = 10  # of the calibration error and the reliability plot
LEAST_GROUPS = 10  # of each class: resamples of fewer differ too little from each other

Flags = NDArray[np.bool_]
Scores = NDArray[np.floating[Any]]
Groups = NDArray[np.intp] | None
Count = int | np.integer[Any]


def wilson_metric(hits: Count, total: Count) -> Metric:
    """Return ``hits`` / ``total`` with Wilson's interval (E. B. Wilson, JASA 22, 1927); 0 in [0, 1] if both are 0."""
    interval = wilson_interval(int(hits), int(total))
    return Metric(interval.value, interval.low, interval.high, int(total), WILSON)


def fraction_metric(hits: Flags, group: Groups = None) -> Metric:
    """Return the fraction of True in bool (N,) with Wilson's interval, widened if ``group`` (N,) has groups."""
    if group is None or len(np.unique(group)) == len(group):
        return wilson_metric(np.count_nonzero(hits), len(hits))
    return grouped_wilson(hits, group)


def _as_f1(part: Metric) -> Metric:
    """Return the F1 that belongs to TP / (TP + FP + FN)."""
    value, low, high = (2 * fraction / (1 + fraction) for fraction in (part.value, part.low, part.high))
    method = INDIRECT if part.method == WILSON else GROUPED_INDIRECT
    return replace(part, value=value, low=low, high=high, method=method)


def bins_of(score: Scores) -> NDArray[np.intp]:
    """Return the bin, 0 to ``BINS`` - 1, of each score (N,). Bins have equal counts, but equal scores share a bin."""
    return np.asarray(BINS * (rankdata(score) - 0.5) / len(score)).astype(np.intp)


def measure(
    truth: NDArray[np.intp],
    probabilities: NDArray[np.float32],
    positive: int | None,
    threshold: float | None = None,
    group: Groups = None,
) -> dict[str, Metric]:
    """Compute all metrics of a model from its probabilities.

    Parameters
    ----------
    truth
        int (N,), label indices; N at least 1.
    probabilities
        float32 (N, classes).
    positive, threshold
        As in the manifest. All metrics except accuracy compare the positive label with all others. If ``positive`` is
        None, all labels count equally.
    group
        int (N,): images of one group are not independent, and all intervals account for it.

    Returns
    -------
    Metrics by name.

    With a positive label: accuracy, auc, sensitivity, specificity, precision, f1, brier and calibration_error.
    Undefined ones are omitted: AUC if all images are of one class, sensitivity and F1 without positive images,
    specificity without negative ones, precision if no image was called positive, brier and calibration_error if a
    class has fewer than ``LEAST_GROUPS`` groups, or images without groups.

    Without a positive label: accuracy (of the most probable label), the means over labels macro_auc (each label against
    all others), macro_sensitivity, macro_precision and macro_f1, and brier and calibration_error. A mean includes the
    labels that have images; a label that is never called has a precision of 0. macro_auc is omitted if all images are
    of one label.

    Notes
    -----
    ``brier`` is the mean squared difference of probability and outcome, 0 or 1 (G. W. Brier, Monthly
    Weather Review 78, 1950); without a positive label it is the sum over labels, from 0 to 2, as Brier defined it.
    ``calibration_error`` is the expected calibration error (M. P. Naeini et al., AAAI 2015): the mean distance between
    probability and fraction of positives over ``BINS`` bins, here of equal count (K. Nguyen, B. O'Connor, EMNLP 2015);
    without a positive label, between the probability of the called label and the fraction of correct calls.
    """
    chosen = decide(probabilities, positive, threshold)
    return measure_answers(truth, probabilities, chosen, positive, group)


def measure_answers(
    truth: NDArray[np.intp],
    probabilities: Scores,
    chosen: NDArray[np.intp],
    positive: int | None,
    group: Groups = None,
) -> dict[str, Metric]:
    """Return the metrics of ``measure`` for labels (N,) that are already chosen."""
    if positive is None:
        return _measure_all_labels(truth, probabilities.astype(np.float64), chosen, group)
    score = probabilities[:, positive].astype(np.float64)
    is_positive, called = truth == positive, chosen == positive
    metrics = {"accuracy": fraction_metric(chosen == truth, group)}
    if both_kinds(is_positive):
        metrics["auc"] = auc(is_positive, score, group)
    fractions = {
        "sensitivity": (called, is_positive),
        "specificity": (~called, ~is_positive),
        "precision": (is_positive, called),
    }
    for name, (hits, among) in fractions.items():
        if among.any():
            metrics[name] = _fraction_among(hits, among, group)
    if is_positive.any():
        metrics["f1"] = _f1_of(is_positive, called, group)
    return metrics | _calibration_metrics(score, is_positive, (score - is_positive) ** 2, is_positive, group)


def _fraction_among(hits: Flags, among: Flags, group: Groups) -> Metric:
    return fraction_metric(hits[among], None if group is None else group[among])


def _f1_of(is_positive: Flags, called: Flags, group: Groups) -> Metric:
    either = is_positive | called
    return replace(_as_f1(_fraction_among(is_positive & called, either, group)), images=len(called))


def _calibration_metrics(
    score: Scores, outcome: Flags, squares: Scores, strata: NDArray[Any], group: Groups
) -> dict[str, Metric]:
    """Return Brier score and calibration error.

    ``score`` (N,) is the probability of ``outcome`` (N,), ``squares`` (N,) is what the Brier score is the mean of, and
    ``strata`` (N,) are the classes of the bootstrap. If one of them has fewer than ``LEAST_GROUPS`` groups, or
    independent images, both are omitted, because the bootstrap of few groups is too narrow. In the simulations of
    ``scripts/interval_coverage.py``, with 10 to 50 groups of each class, the interval of the Brier score covers the
    truth in 0.87 to 0.94 of the samples.
    """
    member = np.arange(len(score)) if group is None else group
    if any(len(np.unique(member[strata == kind])) < LEAST_GROUPS for kind in np.unique(strata)):
        return {}
    distance = _distance(score)
    error = score - outcome

    def figures(weights: Weights) -> Figures:
        images = weights.sum(axis=1)
        return {"brier": weights @ squares / images, "calibration_error": distance(weights * error, images)}

    values = {name: value[0] for name, value in figures(np.ones((1, len(score)))).items()}
    resampled = bootstrap(figures, strata, group)
    calibrated = draw_outcomes(lambda outcomes: distance(score - outcomes), score, group)
    methods = (BOOTSTRAP, BASIC_BOOTSTRAP) if group is None else (GROUP_BOOTSTRAP, BASIC_GROUP_BOOTSTRAP)
    return {
        "brier": percentile(values["brier"], resampled["brier"], len(score), methods[0]),
        "calibration_error": basic(
            values["calibration_error"], resampled["calibration_error"], calibrated, len(score), methods[1]
        ),
    }


def _measure_all_labels(
    truth: NDArray[np.intp], probabilities: NDArray[np.float64], chosen: NDArray[np.intp], group: Groups
) -> dict[str, Metric]:
    """Return the metrics of ``measure`` without a positive label."""
    labels = np.unique(truth).tolist()
    parts = [_label_metrics(truth, probabilities, chosen, label, group) for label in labels]
    never = Metric(0.0, 0.0, 1.0, 0, WILSON)  # the precision of a label that is never called
    figures = macro_figures(truth, probabilities, chosen, labels)
    resampled, method = bootstrap(figures, truth, group), BOOTSTRAP if group is None else GROUP_BOOTSTRAP
    metrics = {"accuracy": fraction_metric(chosen == truth, group)}
    for name, values in figures(np.ones((1, len(truth)))).items():
        combined = mean_of([part.get(name.removeprefix("macro_"), never) for part in parts], len(truth))
        # The labels are not independent, which the bootstrap accounts for. But where nearly all answers are right,
        # nearly all resamples are equal, and the bootstrap alone would be too narrow.
        metrics[name] = outer_bounds(percentile(values[0], resampled[name], len(truth), method), combined)
    right, images = chosen == truth, np.arange(len(truth))
    squares = ((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(axis=1)
    return metrics | _calibration_metrics(probabilities[images, chosen], right, squares, truth, group)


def macro_figures(
    truth: NDArray[np.intp], probabilities: NDArray[np.float64], chosen: NDArray[np.intp], labels: Sequence[int]
) -> Callable[[Weights], Figures]:
    """Return a function from image weights (R, N) to the means over ``labels``, of those that a resample contains."""
    areas = [weighted_auc(truth == label, probabilities[:, label]) for label in labels] if len(labels) > 1 else []

    def figures(weights: Weights) -> Figures:
        found = [
            [weights @ flags for flags in ((truth == label) & (chosen == label), truth == label, chosen == label)]
            for label in labels
        ]
        hits, of_label, called = (np.array(rows) for rows in zip(*found, strict=True))
        with np.errstate(invalid="ignore"):  # a resample without images of a label: 0 / 0
            parts = {"macro_auc": np.array([area(weights) for area in areas])} if areas else {}
            parts |= {
                "macro_sensitivity": hits / of_label,
                "macro_precision": np.where(of_label > 0, hits / np.maximum(called, 1), np.nan),
                "macro_f1": np.where(of_label > 0, 2 * hits / np.maximum(of_label + called, 1), np.nan),
            }
        return {name: np.asarray(np.nanmean(values, axis=0)) for name, values in parts.items()}

    return figures


def _label_metrics(
    truth: NDArray[np.intp], probabilities: NDArray[np.float64], chosen: NDArray[np.intp], label: int, group: Groups
) -> dict[str, Metric]:
    """Return the metrics of ``by_label`` of one label; undefined ones are omitted."""
    is_label, called = truth == label, chosen == label
    metrics = {}
    for name, hits, among in (("sensitivity", called, is_label), ("precision", is_label, called)):
        if among.any():
            metrics[name] = _fraction_among(hits, among, group)
    if is_label.any():
        metrics["f1"] = _f1_of(is_label, called, group)
    if both_kinds(is_label):
        metrics["auc"] = auc(is_label, probabilities[:, label], group)
    return metrics


def by_label(
    truth: NDArray[np.intp],
    probabilities: Scores,
    called: NDArray[np.intp],
    names: Sequence[str],
    group: Groups = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return sensitivity, precision, F1 and AUC of each label against all others, in plain types.

    Parameters
    ----------
    truth, called
        int (N,), label indices.
    probabilities
        float (N, classes).
    names
        The label names, in index order.
    group
        As for ``measure``.

    Returns
    -------
    ``{name: {metric: {"value", "low", "high", "images", "method"}}}`` with every label. Undefined metrics are omitted:
    sensitivity and F1 of a label without images, precision of a label that is never called, AUC if no or all images
    have the label.
    """
    scores = probabilities.astype(np.float64)
    return {
        name: {key: asdict(metric) for key, metric in _label_metrics(truth, scores, called, label, group).items()}
        for label, name in enumerate(names)
    }


def by_folder(
    folders: Sequence[str], truth: NDArray[np.intp], right: Flags, group: Groups = None
) -> list[dict[str, Any]]:
    """Return label index and fraction of correct images of each class folder in alphabetical order, in plain types.

    With two labels that fraction is the sensitivity in a folder of the positive label, else the specificity. ``group``
    (N,) is as for ``measure``.
    """
    names = np.asarray(folders)
    found = []
    for name in np.unique(names).tolist():
        inside = names == name
        part = _fraction_among(right, inside, group)
        found.append({"folder": name, "label": int(truth[inside][0]), **asdict(part)})
    return found


def reliability(positive: Flags, score: Scores, group: Groups = None) -> list[dict[str, float]]:
    """Return mean probability, fraction of positives with Wilson interval, and image count of each non-empty bin.

    ``group`` (N,) is as for ``measure``.
    """
    found = bins_of(score)
    points = []
    for number in np.unique(found):
        inside = found == number
        part = _fraction_among(positive, inside, group)
        points.append(
            {
                "probability": float(score[inside].mean()),
                "share": part.value,
                "low": part.low,
                "high": part.high,
                "images": part.images,
            }
        )
    return points


def _distance(score: Scores) -> Callable[..., NDArray[np.float64]]:
    """Return a function from weighted errors (R, N) to calibration errors (R,), the absolute sums over the bins.

    Its second argument is the number of images (R,) of each resample, by default N.
    """
    order = np.argsort(score, kind="stable")
    first_of_bin = np.unique(bins_of(score)[order], return_index=True)[1]

    def distance(errors: NDArray[np.float64], images: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        total = np.abs(np.add.reduceat(errors[:, order], first_of_bin, axis=1)).sum(axis=1)
        return np.asarray(total / (len(score) if images is None else images))

    return distance


def weighted_auc(positive: Flags, score: Scores) -> Callable[[Weights], NDArray[np.float64]]:
    """Return a function from weights (R, N) to the area under the ROC curve (R,), computed from ranks."""
    order = np.argsort(score, kind="stable")
    first_of_tie = np.unique(score[order], return_index=True)[1]

    def auc_of(weights: Weights) -> NDArray[np.float64]:
        above, below = (
            np.add.reduceat((weights * kind)[:, order], first_of_tie, axis=1) for kind in (positive, ~positive)
        )
        beaten = below.cumsum(axis=1) - below / 2
        return np.asarray((above * beaten).sum(axis=1) / (above.sum(axis=1) * below.sum(axis=1)))

    return auc_of


def report_text(truth: NDArray[np.intp], chosen: NDArray[np.intp], names: Sequence[str]) -> str:
    """Return scikit-learn's classification report as text, with one row for each label name."""
    text: str = classification_report(
        truth, chosen, labels=range(len(names)), target_names=list(names), zero_division=0
    )
    return text


def details(
    truth: NDArray[np.intp],
    probabilities: NDArray[np.float32],
    positive: int | None,
    threshold: float | None = None,
    *,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return classification report, confusion matrix (rows: truth) and ROC points, in plain types.

    With ``names``, rows of the report have label names instead of indices, and ``labels`` names the rows and columns of
    the confusion matrix. ``roc`` is None if there is no positive label, or no image with or without it.
    """
    chosen = decide(probabilities, positive, threshold)
    indices = range(probabilities.shape[1])
    rows = {} if names is None else {"labels": indices, "target_names": list(names)}
    return {
        "report": classification_report(truth, chosen, zero_division=0, output_dict=True, **rows),
        **({} if names is None else {"labels": list(names)}),
        "confusion_matrix": confusion_matrix(truth, chosen, labels=indices).tolist(),
        "roc": roc_of(truth, probabilities, positive),
    }


def roc_of(truth: NDArray[np.intp], probabilities: Scores, label: int | None) -> dict[str, list[Any]] | None:
    """Return ``roc`` of a label against all others, or None if it is None or only one kind has images."""
    if label is None or not both_kinds(truth == label):
        return None
    return roc(truth == label, probabilities[:, label])


def roc(positive: Flags, score: Scores) -> dict[str, list[Any]]:
    """Return the points of the ROC curve, in plain types. Both classes must have images."""
    false_positive, true_positive, thresholds = roc_curve(positive, score)
    return {
        "false_positive_rate": false_positive.tolist(),
        "true_positive_rate": true_positive.tolist(),
        # scikit-learn starts at infinity, which JSON cannot represent.
        "threshold": [None, *thresholds[1:].tolist()],
    }
