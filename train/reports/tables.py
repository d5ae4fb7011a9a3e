"""Name the figures of records, and format them for the tables of the reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mri_edge.authoring.intervals import with_interval

NAMES = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "macro_auc": "AUC, mean of the labels",
    "sensitivity": "sensitivity",
    "macro_sensitivity": "sensitivity, mean of the labels",
    "specificity": "specificity",
    "precision": "precision",
    "macro_precision": "precision, mean of the labels",
    "f1": "F1",
    "macro_f1": "F1, mean of the labels",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}
_OF_LABEL = ("sensitivity", "precision", "f1", "auc")
LABEL_HEADS = ("label (95% intervals)", *(NAMES[key] for key in _OF_LABEL), "images")


def interval(metric: Mapping[str, Any]) -> str:
    """Format a metric of a record with its interval."""
    return with_interval(metric["value"], metric["low"], metric["high"])


def label_rows(by_label: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[tuple[str, ...]]:
    """Return a row for each label, to ``LABEL_HEADS``, from ``by_label`` of a record; ``–`` if undefined."""
    return [
        (
            label,
            *(interval(metrics[key]) if metrics.get(key) else "–" for key in _OF_LABEL),
            str(metrics["sensitivity"]["images"]) if metrics.get("sensitivity") else "0",
        )
        for label, metrics in by_label.items()
    ]
