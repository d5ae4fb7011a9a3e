"""What a figure does when the images are drawn anew: the bootstrap within classes, for all figures at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.manifest import Metric

RESAMPLES = 2000
BOOTSTRAP = f"percentile bootstrap within each class, {RESAMPLES} resamples, seed 0 (Efron 1979)"
GROUP_BOOTSTRAP = (
    f"percentile bootstrap of groups within each class, {RESAMPLES} resamples, seed 0 (Field and Welsh 2007)"
)
BASIC_BOOTSTRAP = (
    f"basic bootstrap within each class, {RESAMPLES} resamples, seed 0 (Davison and Hinkley 1997); down to 0 where "
    f"{RESAMPLES} draws of outcomes from the probabilities themselves are as large (Bröcker and Smith 2007)"
)
_AT_ONCE = 4_000_000  # weights in memory at a time: 32 MB

Weights = NDArray[np.float64]
Figures = dict[str, NDArray[np.float64]]


def bootstrap(
    figures: Callable[[Weights], Figures], positive: NDArray[np.bool_], group: NDArray[np.intp] | None = None
) -> Figures:
    """Each figure in ``RESAMPLES`` resamples that hold as many images, or groups, of each kind as the data.

    B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979; within
    classes as by default in pROC (X. Robin et al., BMC Bioinformatics 12, 2011). With groups, whole ones are drawn: the
    cluster bootstrap (C. Field, A. Welsh, "Bootstrapping clustered data", Journal of the Royal Statistical Society B
    69, 2007). Groups that hold both classes are a kind of their own, so that no resample lacks a class.

    Parameters
    ----------
    figures
        Takes weights float64 (R, N), how often each image is in each resample; gives (R,) a figure.
    positive
        bool (N,), the two classes. Memory does not grow with N beyond one resample.
    group
        Group number of each image (N,); ``None`` where each image is its own.
    """
    rng = np.random.default_rng(0)
    member = np.arange(len(positive)) if group is None else np.unique(group, return_inverse=True)[1]
    share = np.bincount(member, positive) / np.bincount(member)  # of positives in each group
    kinds = [np.flatnonzero(kind) for kind in (share == 1, share == 0, (share > 0) & (share < 1))]
    rows = max(1, _AT_ONCE // len(positive))
    parts = []
    for start in range(0, RESAMPLES, rows):
        weights = np.zeros((min(rows, RESAMPLES - start), len(share)))
        for alike in kinds:
            if len(alike):
                even = np.full(len(alike), 1 / len(alike))
                weights[:, alike] = rng.multinomial(len(alike), even, len(weights))
        parts.append(figures(weights if group is None else weights[:, member]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def percentile(value: float, resampled: NDArray[Any], images: int, method: str = BOOTSTRAP) -> Metric:
    """The middle 95% of the resamples (B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, 13)."""
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Metric(float(value), float(low), float(high), images, method)


def basic(value: float, resampled: NDArray[Any], without: NDArray[Any], images: int) -> Metric:
    """For a figure, at least 0, that noise can only raise: the resamples mirrored at the value.

    A resample has the noise of the data and its own, and so lies above the value by about as much as
    the value lies above the truth (A. Davison, D. Hinkley, "Bootstrap Methods and their Application",
    1997, 5.2). Close to 0 that is too little, so 0 belongs to the interval unless the value is above
    97.5% of ``without``: the figure where the truth is 0 (J. Bröcker, L. Smith, "Increasing the
    reliability of reliability diagrams", Weather and Forecasting 22, 2007). The value itself always belongs to it.
    """
    low, high = 2 * value - np.quantile(resampled, (0.975, 0.025))
    if value <= np.quantile(without, 0.975):
        low = 0.0
    return Metric(float(value), max(0.0, min(float(low), value)), max(float(high), value), images, BASIC_BOOTSTRAP)


def draw_outcomes(
    figure: Callable[[NDArray[np.bool_]], NDArray[np.float64]], probability: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """A figure (RESAMPLES,) were each probability (N,) right; ``figure`` takes outcomes drawn so, bool (R, N)."""
    rng = np.random.default_rng(0)
    rows = max(1, _AT_ONCE // len(probability))
    counts = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    return np.concatenate([figure(rng.random((count, len(probability))) < probability) for count in counts])
