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

from .intervals import Figures, Weights, auc, basic, bootstrap, both_kinds, draw_outcomes, percentile

WILSON = "Wilson score interval (Wilson 1927)"
INDIRECT = "Wilson score interval of TP / (TP + FP + FN), as F1 (Lam et al. 2023)"
BINS = 10  # of the calibration error and the reliability plot

Flags = NDArray[np.bool_]
Scores = NDArray[np.floating[Any]]
Count = int | np.integer[Any]


def wilson_metric(hits: Count, total: Count) -> Metric:
    """Return ``hits`` / ``total`` with Wilson's interval (E. B. Wilson, JASA 22, 1927); 0 in [0, 1] if both are 0."""
    interval = wilson_interval(int(hits), int(total))
    return Metric(interval.value, interval.low, interval.high, int(total), WILSON)


def fraction_metric(hits: Flags) -> Metric:
    """Return the fraction of True in bool (N,) with Wilson's interval."""
    return wilson_metric(np.count_nonzero(hits), len(hits))


def f1(hits: Count, wrong: Count) -> Metric:
    """Return F1 of ``hits`` true positives and ``wrong`` false positives and negatives, with a Wilson interval.

    K. F. Y. Lam, V. Gopal, J. Qian, "Confidence Intervals for the F1 Score", 2023, the indirect method.
    """
    part = wilson_metric(hits, hits + wrong)
    value, low, high = (2 * fraction / (1 + fraction) for fraction in (part.value, part.low, part.high))
    return replace(part, value=value, low=low, high=high, method=INDIRECT)


def bins_of(score: Scores) -> NDArray[np.intp]:
    """Return the bin, 0 to ``BINS`` - 1, of each score (N,). Bins have equal counts, but equal scores share a bin."""
    return np.asarray(BINS * (rankdata(score) - 0.5) / len(score)).astype(np.intp)


def measure(
    truth: NDArray[np.intp],
    probabilities: NDArray[np.float32],
    positive: int,
    threshold: float | None = None,
    group: NDArray[np.intp] | None = None,
) -> dict[str, Metric]:
    """Compute accuracy, AUC, sensitivity, specificity, precision, F1, Brier score and calibration error.

    Parameters
    ----------
    truth
        int (N,), label indices; N at least 1.
    probabilities
        float32 (N, classes).
    positive, threshold
        As in the manifest. All metrics except accuracy compare the positive label with all others.
    group
        int (N,): images of one group are not independent; the interval of the AUC accounts for it.

    Returns
    -------
    Metrics by name. Undefined ones are omitted: AUC if all images are of one class, sensitivity and F1 without
    positive images, specificity without negative ones, precision if no image was called positive.

    Notes
    -----
    ``brier`` is the mean squared difference of probability and outcome, 0 or 1 (G. W. Brier, Monthly
    Weather Review 78, 1950). ``calibration_error`` is the expected calibration error (M. P. Naeini et al.,
    AAAI 2015): the mean distance between probability and fraction of positives over ``BINS`` bins, here of
    equal count (K. Nguyen, B. O'Connor, EMNLP 2015).
    """
    chosen = decide(probabilities, positive, threshold)
    return measure_answers(truth, probabilities[:, positive].astype(np.float64), chosen, positive, group)


def measure_answers(
    truth: NDArray[np.intp],
    score: NDArray[np.float64],
    chosen: NDArray[np.intp],
    positive: int,
    group: NDArray[np.intp] | None = None,
) -> dict[str, Metric]:
    """Return the figures of ``measure`` from probabilities of the positive label (N,) and chosen labels (N,)."""
    is_positive, called = truth == positive, chosen == positive
    figures = _figures(is_positive, score)
    values = {name: value[0] for name, value in figures(np.ones((1, len(truth)))).items()}
    resampled = bootstrap(figures, is_positive)
    metrics = {"accuracy": fraction_metric(chosen == truth)}
    if both_kinds(is_positive):
        metrics["auc"] = auc(is_positive, score, group)
    fractions = {
        "sensitivity": (np.count_nonzero(called & is_positive), np.count_nonzero(is_positive)),
        "specificity": (np.count_nonzero(~called & ~is_positive), np.count_nonzero(~is_positive)),
        "precision": (np.count_nonzero(called & is_positive), np.count_nonzero(called)),
    }
    metrics.update({name: wilson_metric(hits, total) for name, (hits, total) in fractions.items() if total})
    if is_positive.any():
        metrics["f1"] = replace(
            f1(np.count_nonzero(called & is_positive), np.count_nonzero(called ^ is_positive)), images=len(truth)
        )
    metrics["brier"] = percentile(values["brier"], resampled["brier"], len(truth))
    distance = _distance(score)
    calibrated = draw_outcomes(lambda outcomes: distance(score - outcomes), score)
    metrics["calibration_error"] = basic(
        values["calibration_error"], resampled["calibration_error"], calibrated, len(truth)
    )
    return metrics


def by_folder(folders: Sequence[str], truth: NDArray[np.intp], right: Flags) -> list[dict[str, Any]]:
    """Return label index and fraction of correct images of each class folder in alphabetical order, in plain types.

    With two labels that fraction is the sensitivity in a folder of the positive label, else the specificity.
    """
    names = np.asarray(folders)
    found = []
    for name in np.unique(names).tolist():
        inside = names == name
        found.append({"folder": name, "label": int(truth[inside][0]), **asdict(fraction_metric(right[inside]))})
    return found


def reliability(positive: Flags, score: Scores) -> list[dict[str, float]]:
    """Return mean probability, fraction of positives with Wilson interval, and image count of each non-empty bin."""
    found = bins_of(score)
    points = []
    for number in np.unique(found):
        inside = found == number
        part = fraction_metric(positive[inside])
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


def _figures(is_positive: Flags, score: Scores) -> Callable[[Weights], Figures]:
    """Return a function from image weights (R, N) to Brier score and calibration error."""
    error = score - is_positive
    distance = _distance(score)

    def figures(weights: Weights) -> Figures:
        return {"brier": weights @ error**2 / len(score), "calibration_error": distance(weights * error)}

    return figures


def _distance(score: Scores) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return a function from weighted errors (R, N) to calibration errors (R,), the absolute sums over the bins."""
    order = np.argsort(score, kind="stable")
    first_of_bin = np.unique(bins_of(score)[order], return_index=True)[1]

    def distance(errors: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.abs(np.add.reduceat(errors[:, order], first_of_bin, axis=1)).sum(axis=1) / len(score))

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


def report_text(truth: NDArray[np.intp], chosen: NDArray[np.intp]) -> str:
    """Return scikit-learn's classification report as text, with label indices as row names, as in the reference."""
    text: str = classification_report(truth, chosen, zero_division=0)
    return text


def details(
    truth: NDArray[np.intp], probabilities: NDArray[np.float32], positive: int, threshold: float | None = None
) -> dict[str, Any]:
    """Return classification report, confusion matrix (rows: truth) and ROC points, in plain types."""
    chosen = decide(probabilities, positive, threshold)
    return {
        "report": classification_report(truth, chosen, zero_division=0, output_dict=True),
        "confusion_matrix": confusion_matrix(truth, chosen, labels=range(probabilities.shape[1])).tolist(),
        "roc": roc(truth == positive, probabilities[:, positive]),
    }


def roc(positive: Flags, score: Scores) -> dict[str, list[Any]]:
    """Return the points of the ROC curve, in plain types. Both classes must have images."""
    false_positive, true_positive, thresholds = roc_curve(positive, score)
    return {
        "false_positive_rate": false_positive.tolist(),
        "true_positive_rate": true_positive.tolist(),
        # scikit-learn starts at infinity, which JSON cannot represent.
        "threshold": [None, *thresholds[1:].tolist()],
    }
