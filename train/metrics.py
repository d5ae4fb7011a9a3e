"""How good a model is on labelled scans, each figure with its 95% interval."""

from __future__ import annotations

from typing import Any

import numpy as np
from mri_edge.manifest import Metric
from mri_edge.prediction import decide
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import classification_report, confusion_matrix, roc_curve

RESAMPLES = 2000
WILSON = "Wilson score interval (Wilson 1927)"
BOOTSTRAP = f"percentile bootstrap within each class, {RESAMPLES} resamples, seed 0 (Efron 1979)"


def share(hits: int, total: int) -> Metric:
    """``hits`` of ``total`` with Wilson's interval; of none, 0 with the interval [0, 1]."""
    hits, total = int(hits), int(total)
    if total == 0:
        return Metric(0.0, 0.0, 1.0, 0, WILSON)
    interval = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    return Metric(hits / total, float(interval.low), float(interval.high), total, WILSON)


def auc(positive: NDArray[np.bool_], score: NDArray[np.floating[Any]]) -> Metric:
    """Area under the ROC curve: share of (positive, negative) pairs in right order, ties half.

    Parameters
    ----------
    positive
        bool (N,), at least one of each kind.
    score
        float (N,), higher for positive.
    """
    above, below = score[positive], score[~positive]
    right = (above[:, None] > below) + 0.5 * (above[:, None] == below)
    rng = np.random.default_rng(0)
    # A resample is a count for each image; its AUC a product of counts, so no pair is compared twice.
    rows = rng.multinomial(len(above), np.full(len(above), 1 / len(above)), RESAMPLES)
    columns = rng.multinomial(len(below), np.full(len(below), 1 / len(below)), RESAMPLES)
    resampled = np.einsum("ri,ri->r", rows, columns @ right.T) / right.size
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Metric(float(right.mean()), float(low), float(high), len(score), BOOTSTRAP)


def measure(
    truth: NDArray[np.intp], probabilities: NDArray[np.float32], positive: int, threshold: float | None = None
) -> dict[str, Metric]:
    """Accuracy, AUC, sensitivity, specificity.

    Parameters
    ----------
    truth
        int (N,), label indices.
    probabilities
        float32 (N, classes).
    positive, threshold
        As in the manifest.
    """
    chosen = decide(probabilities, positive, threshold)
    ill, called = truth == positive, chosen == positive
    return {
        "accuracy": share(np.count_nonzero(chosen == truth), len(truth)),
        "auc": auc(ill, probabilities[:, positive]),
        "sensitivity": share(np.count_nonzero(called & ill), np.count_nonzero(ill)),
        "specificity": share(np.count_nonzero(~called & ~ill), np.count_nonzero(~ill)),
    }


def report_text(truth: NDArray[np.intp], chosen: NDArray[np.intp]) -> str:
    """scikit-learn's classification report, rows named by label index as in the reference."""
    text: str = classification_report(truth, chosen, zero_division=0)
    return text


def details(
    truth: NDArray[np.intp], probabilities: NDArray[np.float32], positive: int, threshold: float | None = None
) -> dict[str, Any]:
    """What tables and plots are drawn from: report, confusion matrix (rows: truth), ROC points. Plain types."""
    chosen = decide(probabilities, positive, threshold)
    false_positive, true_positive, thresholds = roc_curve(truth == positive, probabilities[:, positive])
    return {
        "report": classification_report(truth, chosen, zero_division=0, output_dict=True),
        "confusion_matrix": confusion_matrix(truth, chosen, labels=range(probabilities.shape[1])).tolist(),
        "roc": {
            "false_positive_rate": false_positive.tolist(),
            "true_positive_rate": true_positive.tolist(),
            # scikit-learn begins at infinity, which JSON does not know.
            "threshold": [None, *thresholds[1:].tolist()],
        },
    }
