"""Draw the plots of an evaluation as SVG: ROC curve and reliability diagram."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from mri_edge.authoring.intervals import with_interval

_BLUE, _GRAY, _RED = "#1f5fa8", "#9aa5b1", "#a51d24"
_SIZE = (4.2, 4.2)  # inches


def roc_plot(record: dict[str, Any]) -> bytes:
    """Draw the ROC curve with its AUC and the point of the threshold, from the record of ``evaluate``."""
    points, metrics = record["roc"], record["metrics"]
    auc, sensitivity, specificity = (metrics[name] for name in ("auc", "sensitivity", "specificity"))
    figure, axes = _square("1 - specificity", "sensitivity")
    label = f"AUC {with_interval(auc['value'], auc['low'], auc['high'])}"
    axes.plot(points["false_positive_rate"], points["true_positive_rate"], color=_BLUE, label=label)
    axes.errorbar(
        [1 - specificity["value"]],
        [sensitivity["value"]],
        xerr=[[specificity["high"] - specificity["value"]], [specificity["value"] - specificity["low"]]],
        yerr=[[sensitivity["value"] - sensitivity["low"]], [sensitivity["high"] - sensitivity["value"]]],
        fmt="o",
        color=_RED,
        capsize=3,
        label="at the threshold, 95% intervals",
    )
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    return _svg(figure)


def reliability_plot(record: dict[str, Any]) -> bytes:
    """Draw the fraction of positives over probability, with Wilson intervals; below, a histogram of probabilities."""
    points, positive = record["reliability"], record["positive"]
    figure, axes = _square("probability of the positive label", "share of positives")
    axes.errorbar(
        [point["probability"] for point in points],
        [point["share"] for point in points],
        yerr=[
            [point["share"] - point["low"] for point in points],
            [point["high"] - point["share"] for point in points],
        ],
        fmt="o-",
        color=_BLUE,
        capsize=3,
        label=f"{len(points)} bins of equal count",
    )
    scores = [prediction["probabilities"][positive] for prediction in record["predictions"]]
    counts, edges = np.histogram(scores, bins=20, range=(0, 1))
    axes.stairs(counts / counts.max() / 4, edges, fill=True, color=_GRAY, alpha=0.35)  # the lower quarter of the plot
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    return _svg(figure)


def _square(right: str, up: str) -> tuple[Figure, Any]:
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.add_subplot(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=right, ylabel=up, box_aspect=1)
    axes.plot([0, 1], [0, 1], color=_GRAY, linewidth=0.8, linestyle="--")
    return figure, axes


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    # With a fixed salt and no date, the same record gives the same file.
    with rc_context({"svg.hashsalt": "mri-edge"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
