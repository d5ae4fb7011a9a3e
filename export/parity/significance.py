"""Tests and intervals for two classifiers on the same small test set."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mri_edge.authoring.intervals import CONFIDENCE, Interval, wilson_interval

Flags = NDArray[np.bool_]


def exact_bounds(successes: int, total: int) -> tuple[float, float]:
    """Lower and upper one-sided exact 95% bounds of a proportion.

    C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits", Biometrika 26, 1934.
    """
    lower = stats.binomtest(successes, total, alternative="greater").proportion_ci(CONFIDENCE, method="exact").low
    upper = stats.binomtest(successes, total, alternative="less").proportion_ci(CONFIDENCE, method="exact").high
    return float(lower), float(upper)


def mcnemar(first: Flags, second: Flags) -> float:
    """Two-sided exact p-value for equal error rates on the same images (Q. McNemar, Psychometrika 12, 1947).

    ``first`` and ``second`` hold for each image whether that classifier was right.
    """
    lost, gained = int(np.sum(first & ~second)), int(np.sum(~first & second))
    return float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def paired_change(before: Flags, after: Flags) -> Interval:
    """Change of a proportion between two classifiers on the same images, with Newcombe's interval.

    R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based
    on paired data", Statistics in Medicine 17, 1998, method 10.
    """
    total = len(before)
    first, second = wilson_interval(int(before.sum()), total), wilson_interval(int(after.sum()), total)
    both, neither = int(np.sum(before & after)), int(np.sum(~before & ~after))
    lost, gained = int(np.sum(before & ~after)), int(np.sum(~before & after))
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    cross: float = both * neither - lost * gained
    if cross >= 0:  # continuity correction
        cross = max(0.0, cross - total / 2)
    correlation = cross / math.sqrt(margins) if margins else 0.0
    change = second.value - first.value

    def half_width(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a + b * b - 2 * correlation * a * b))

    return Interval(
        change,
        change - half_width(second.value - second.low, first.high - first.value),
        change + half_width(second.high - second.value, first.value - first.low),
    )


def images_needed(rate: float) -> int:
    """Number of images without an event that shows, with 95% confidence, that its rate is at most ``rate``."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - rate))
