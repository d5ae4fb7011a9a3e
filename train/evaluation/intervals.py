"""Compute 95% intervals of areas under ROC curves, proportions and means, of independent or grouped images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, rankdata
from scipy.stats import t as student_t

from mri_edge.bundles.manifest import Metric

DELONG = (
    "DeLong's variance on the logit scale (DeLong et al. 1988, Pepe 2003); Newcombe's method 5 (2006) where it is 0"
)
GROUPED_DELONG = f"{DELONG}; of groups by Obuchowski (1997), with Student's t"
GROUPED_WILSON = (
    "Wilson score interval (Wilson 1927) of the effective number of images (Kish 1965), reduced by Student's t "
    "(Korn and Graubard 1998)"
)
_Z = float(norm.ppf(0.975))

RESAMPLES = 2000
BOOTSTRAP = f"percentile bootstrap within each class, {RESAMPLES} resamples, seed 0 (Efron 1979)"
GROUP_BOOTSTRAP = (
    f"percentile bootstrap of groups within each class, {RESAMPLES} resamples, seed 0 (Field and Welsh 2007)"
)
_TO_ZERO = (
    f"down to 0 where {RESAMPLES} draws of outcomes from the probabilities themselves are as large "
    "(Bröcker and Smith 2007)"
)
BASIC_BOOTSTRAP = (
    f"basic bootstrap within each class, {RESAMPLES} resamples, seed 0 (Davison and Hinkley 1997); {_TO_ZERO}"
)
BASIC_GROUP_BOOTSTRAP = (
    f"basic bootstrap of groups within each class, {RESAMPLES} resamples, seed 0 (Davison and Hinkley 1997, Field and "
    f"Welsh 2007); {_TO_ZERO}"
)
GROUPED_MEAN = "Student's t interval with the variance between groups (Cochran 1977)"
COMBINED = "the intervals of the parts combined as independent (Zou and Donner 2008)"
_AT_ONCE = 4_000_000  # weights in memory at the same time: 32 MB

Weights = NDArray[np.float64]
Figures = dict[str, NDArray[np.float64]]
Flags = NDArray[np.bool_]


def both_kinds(positive: Flags) -> bool:
    """Return whether bool (N,) contains both classes; otherwise the AUC is undefined."""
    return bool(0 < np.count_nonzero(positive) < len(positive))


def auc(positive: Flags, score: NDArray[np.floating[Any]], group: NDArray[np.intp] | None = None) -> Metric:
    """Compute the area under the ROC curve: the fraction of (positive, negative) pairs in order, ties count half.

    A percentile bootstrap would be too narrow: with 20 images of each class, few or no pairs are misranked, and the
    interval often collapses to a point. For groups the variance is that of N. A. Obuchowski, Biometrics 53, 1997, with
    Student's t, because few groups estimate it badly. In the simulations of ``scripts/interval_coverage.py``, with 3 to
    100 groups of 20 images of each class, such an interval covers the truth in 0.91 to 1.00 of the samples, an interval
    for independent images in 0.41 to 0.95.

    Parameters
    ----------
    positive
        bool (N,), at least one of each class.
    score
        float (N,), higher for positive images.
    group
        int (N,): images of one group are not independent. None means that all images are.
    """
    above = _placements(score, positive)
    below = 1 - _placements(score, ~positive)
    value = float(above.mean())
    groups = np.arange(len(score)) if group is None else np.unique(group, return_inverse=True)[1]
    of_above, of_below = groups[positive], groups[~positive]
    counts = len(np.unique(of_above)), len(np.unique(of_below))
    variance = _variance(above - value, below - value, of_above, of_below)
    if 0 < value < 1 and variance > 0:
        z = _Z if len(np.unique(groups)) == len(score) else _quantile(min(counts))
        half = z * np.sqrt(variance) / (value * (1 - value))
        low, high = expit(logit(value) - half), expit(logit(value) + half)
    else:
        # Count each group once, because near-duplicates add no evidence.
        low, high = _lowest(value, *counts), 1 - _lowest(1 - value, *counts)
    return Metric(value, float(low), float(high), len(score), DELONG if group is None else GROUPED_DELONG)


def _placements(score: NDArray[np.floating[Any]], chosen: Flags) -> NDArray[np.float64]:
    """Return the fraction of other scores below each chosen one, ties count half, by ranks (X. Sun, W. Xu, 2014)."""
    others = len(score) - np.count_nonzero(chosen)
    return np.asarray((rankdata(score)[chosen] - rankdata(score[chosen])) / others)


def _variance(
    above: NDArray[np.float64], below: NDArray[np.float64], of_above: NDArray[np.intp], of_below: NDArray[np.intp]
) -> float:
    """Return the variance of the AUC from centered placements and their groups; 0 if a class is a single group."""
    groups = np.union1d(of_above, of_below)
    sums = [
        np.bincount(np.searchsorted(groups, of_kind), values, len(groups))
        for values, of_kind in ((above, of_above), (below, of_below))
    ]
    counts = [len(np.unique(of_kind)) for of_kind in (of_above, of_below)]
    if min(counts) < 2:
        return 0.0
    parts = [
        count / (count - 1) * (total @ total) / len(values) ** 2
        for count, total, values in zip(counts, sums, (above, below), strict=True)
    ]
    shared = len(groups) / (len(groups) - 1) * (sums[0] @ sums[1]) / (len(above) * len(below))
    return float(sum(parts) + 2 * shared)


def effective_size(hits: Flags, group: NDArray[np.intp]) -> float:
    """Return the number of independent images that would determine a proportion as well as these grouped images.

    It is the number of images divided by the design effect, the ratio of the proportion's variance by groups to that of
    independent images (L. Kish, "Survey Sampling", 1965), and is reduced by Student's t because few groups estimate
    that variance badly (E. Korn, B. Graubard, Survey Methodology 24, 1998). Only the groups that hold the rarer outcome
    show how alike the images of a group are, so the degrees of freedom are one less than these. Where they are too few,
    the images of a group count as copies of each other. The result never exceeds the number of images.

    In the simulations of ``scripts/interval_coverage.py``, with 12 to 400 groups of 1 to 40 images, a Wilson interval
    of this size covers the truth in 0.90 to 1.00 of the samples (median 0.96), an interval for independent images in
    0.14 to 0.99. C. Franco et al., Journal of Survey Statistics and Methodology 7, 2019, compare more.

    Parameters
    ----------
    hits
        bool (N,), at least one.
    group
        int (N,): images of one group are not independent.
    """
    member, counts = np.unique(group, return_inverse=True, return_counts=True)[1:]
    images, groups, value = len(hits), len(counts), float(hits.mean())
    if groups in (1, images):
        return float(groups)
    as_copies = independent_groups(counts)
    excess = np.bincount(member, hits - value)
    variance = groups / (groups - 1) * float(excess @ excess) / images**2
    independent = value * (1 - value) / variance if variance > 1e-12 else as_copies
    informative = len(np.unique(member[hits != (value >= 0.5)]))
    size = max(
        min(independent, as_copies) * (_Z / _quantile(groups)) ** 2, independent * (_Z / _quantile(informative)) ** 2
    )
    return min(size, float(images))


def _quantile(groups: int) -> float:
    """Return Student's t for 95% intervals from so many groups; one group says nothing about the others."""
    return float(student_t.ppf(0.975, groups - 1)) if groups > 1 else float("inf")


def independent_groups(counts: NDArray[np.intp]) -> float:
    """Return how many independent images groups of these sizes are worth if a group counts as one image.

    L. Kish, "Survey Sampling", 1965: the squared sum of the sizes divided by the sum of their squares; 0 for no group.
    """
    return float(counts.sum() ** 2 / (counts @ counts)) if len(counts) else 0.0


def wilson_bounds(fraction: float, size: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a fraction of ``size`` independent images, which need not be a whole number.

    E. B. Wilson, JASA 22, 1927, with the effective number of images in the place of their number.
    """
    z = float(norm.ppf((1 + confidence) / 2))
    middle = (fraction + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * float(np.sqrt(fraction * (1 - fraction) / size + z**2 / (4 * size**2)))
    # At 0 and 1 the bounds are exact, but their floating-point values are not.
    return min(max(0.0, middle - half), fraction), max(min(1.0, middle + half), fraction)


def grouped_wilson(hits: Flags, group: NDArray[np.intp]) -> Metric:
    """Return the fraction of True in bool (N,) with Wilson's interval for ``effective_size`` images."""
    value = float(hits.mean())
    return Metric(value, *wilson_bounds(value, effective_size(hits, group)), len(hits), GROUPED_WILSON)


def grouped_mean(values: NDArray[np.float64], group: NDArray[np.intp]) -> Metric | None:
    """Return the mean of values (N,) with an interval from its groups (N,), or None for fewer than two groups.

    The variance is that of a ratio of sums over groups (W. Cochran, "Sampling Techniques", 1977, 9A.1). A percentile
    bootstrap of few groups would be too narrow: in the simulations of ``scripts/interval_coverage.py``, with 2 to 50
    groups of 6 values, this interval covers the truth in 0.93 to 0.96 of the samples.
    """
    member = np.unique(group, return_inverse=True)[1]
    groups = len(np.unique(member))
    if groups < 2:
        return None
    value = float(values.mean())
    excess = np.bincount(member, values - value)
    half = _quantile(groups) * float(np.sqrt(groups / (groups - 1) * (excess @ excess))) / len(values)
    return Metric(value, value - half, value + half, len(values), GROUPED_MEAN)


def mean_of(parts: Sequence[Metric], images: int, method: str = COMBINED) -> Metric:
    """Return the mean of independent metrics, with an interval recovered from theirs.

    G. Zou, A. Donner, "Construction of confidence limits about effect measures: a general approach", Statistics in
    Medicine 27, 2008: the distances of the bounds from the value are added in squares.
    """
    values, low, high = (np.array([getattr(part, name) for part in parts]) for name in ("value", "low", "high"))
    value, count = float(values.mean()), len(parts)
    below, above = (float(np.sqrt(np.sum(distance**2))) / count for distance in (values - low, high - values))
    return Metric(value, value - below, value + above, images, method)


def outer_bounds(metric: Metric, other: Metric) -> Metric:
    """Return a share with the lower of both lower bounds and the upper of both upper ones, within 0 and 1."""
    low, high = max(0.0, min(metric.low, other.low)), min(1.0, max(metric.high, other.high))
    return replace(metric, low=low, high=high, method=f"{metric.method}; at least as wide as {other.method}")


def _lowest(value: float, positives: int, negatives: int) -> float:
    """Return the lowest AUC that is compatible with ``value`` (R. G. Newcombe, Statistics in Medicine 25, 2006)."""
    if value <= 0:
        return 0.0
    spread = (positives + negatives) / 2 - 1

    def excess(auc: float) -> float:
        variance = auc * (1 - auc) * (1 + spread * ((1 - auc) / (2 - auc) + auc / (1 + auc))) / (positives * negatives)
        return (value - auc) ** 2 - _Z**2 * variance

    return float(brentq(excess, 0, min(value, 1 - 1e-12)))


def bootstrap(
    figures: Callable[[Weights], Figures],
    label: NDArray[np.bool_] | NDArray[np.intp],
    group: NDArray[np.intp] | None = None,
) -> Figures:
    """Compute each metric in ``RESAMPLES`` resamples with as many images, or groups, of each class as the data.

    B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979; within
    classes as by default in pROC (X. Robin et al., BMC Bioinformatics 12, 2011). With groups, whole ones are drawn: the
    cluster bootstrap (C. Field, A. Welsh, "Bootstrapping clustered data", Journal of the Royal Statistical Society B
    69, 2007). Groups with images of several classes form another stratum, so that with two classes every resample has
    both.

    Parameters
    ----------
    figures
        Takes weights float64 (R, N), the count of each image in each resample; returns (R,) for each metric.
    label
        bool or int (N,), the class of each image. Memory grows with N only beyond the size of one resample.
    group
        Group number of each image (N,); ``None`` means that all images are independent.
    """
    rng = np.random.default_rng(0)
    member = np.arange(len(label)) if group is None else np.unique(group, return_inverse=True)[1]
    strata = _strata(np.unique(label, return_inverse=True)[1], member)
    rows = max(1, _AT_ONCE // len(label))
    parts = []
    for start in range(0, RESAMPLES, rows):
        weights = np.zeros((min(rows, RESAMPLES - start), member.max() + 1))
        for groups in strata:
            if len(groups):
                uniform = np.full(len(groups), 1 / len(groups))
                weights[:, groups] = rng.multinomial(len(groups), uniform, len(weights))
        parts.append(figures(weights if group is None else weights[:, member]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _strata(kind: NDArray[np.intp], member: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Return the groups with only images of the last kind, …, of the first kind, and of several kinds."""
    lowest, highest = np.full(member.max() + 1, kind.max()), np.zeros(member.max() + 1, np.intp)
    np.minimum.at(lowest, member, kind)
    np.maximum.at(highest, member, kind)
    pure = lowest == highest
    strata = [np.flatnonzero(pure & (lowest == number)) for number in range(kind.max(), -1, -1)]
    return [*strata, np.flatnonzero(~pure)]


def percentile(value: float, resampled: NDArray[Any], images: int, method: str = BOOTSTRAP) -> Metric:
    """Take the middle 95% of the resamples (B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, 13)."""
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Metric(float(value), float(low), float(high), images, method)


def basic(
    value: float, resampled: NDArray[Any], without: NDArray[Any], images: int, method: str = BASIC_BOOTSTRAP
) -> Metric:
    """Mirror the resamples at the value, for a metric that is at least 0 and that noise can only increase.

    A resample adds its own noise to that of the data, so it exceeds the value by about as much as the value exceeds
    the truth (A. Davison, D. Hinkley, "Bootstrap Methods and their Application", 1997, 5.2). Near 0 this corrects too
    little, so the interval includes 0 unless the value is above 97.5% of ``without``, the metric where the truth is 0
    (J. Bröcker, L. Smith, "Increasing the reliability of reliability diagrams", Weather and Forecasting 22, 2007).
    The interval always includes the value itself.
    """
    low, high = 2 * value - np.quantile(resampled, (0.975, 0.025))
    if value <= np.quantile(without, 0.975):
        low = 0.0
    return Metric(float(value), max(0.0, min(float(low), value)), max(float(high), value), images, method)


def draw_outcomes(
    figure: Callable[[NDArray[np.bool_]], NDArray[np.float64]],
    probability: NDArray[np.floating[Any]],
    group: NDArray[np.intp] | None = None,
) -> NDArray[np.float64]:
    """Return a metric (RESAMPLES,) under the assumption that each probability (N,) is correct.

    ``figure`` takes outcomes bool (R, N) that are drawn from the probabilities. Images of one ``group`` (N,) share one
    random number, because near-duplicates have the same outcome.
    """
    rng = np.random.default_rng(0)
    member = np.arange(len(probability)) if group is None else np.unique(group, return_inverse=True)[1]
    rows = max(1, _AT_ONCE // len(probability))
    counts = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    drawn = (rng.random((count, member.max() + 1)) for count in counts)
    return np.concatenate([figure((part if group is None else part[:, member]) < probability) for part in drawn])
