"""Exact and interval statistics for small, paired test sets."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mri_edge.authoring.intervals import CONFIDENCE, Interval, wilson_interval

Flags = NDArray[np.bool_]


def bounds(successes: int, total: int) -> tuple[float, float]:
    """One-sided exact 95% bounds of a share, below and above (C. J. Clopper, E. S. Pearson, Biometrika 26, 1934)."""
    below = stats.binomtest(successes, total, alternative="greater").proportion_ci(CONFIDENCE, method="exact").low
    above = stats.binomtest(successes, total, alternative="less").proportion_ci(CONFIDENCE, method="exact").high
    return float(below), float(above)


def mcnemar(first: Flags, second: Flags) -> float:
    """Two-sided exact p-value that two classifiers err alike on the same images (Q. McNemar, Psychometrika 12, 1947).

    ``first`` and ``second`` say of each image whether that classifier was right.
    """
    lost, gained = int(np.sum(first & ~second)), int(np.sum(~first & second))
    return float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def paired_change(before: Flags, after: Flags) -> Interval:
    """Change of a share between two paired observations, with Newcombe's interval.

    R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based
    on paired data", Statistics in Medicine 17, 1998, method 10.
    """
    total = len(before)
    one, two = wilson_interval(int(before.sum()), total), wilson_interval(int(after.sum()), total)
    both, neither = int(np.sum(before & after)), int(np.sum(~before & ~after))
    lost, gained = int(np.sum(before & ~after)), int(np.sum(~before & after))
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    cross = both * neither - lost * gained
    if cross > total / 2:
        cross -= total / 2
    elif cross >= 0:
        cross = 0
    correlation = cross / math.sqrt(margins) if margins else 0.0
    change = two.value - one.value

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a + b * b - 2 * correlation * a * b))

    return Interval(
        change,
        change - reach(two.value - two.low, one.high - one.value),
        change + reach(two.high - two.value, one.value - one.low),
    )


def images_needed(rate: float) -> int:
    """How many images without a single event show, with 95% confidence, that its rate is at most ``rate``."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - rate))
