"""Simulate grouped images, and count how often the 95% intervals of this project cover the truth.

    python -m scripts.interval_coverage    # three minutes; train/evaluation/ quotes its output

Images of a group have a share of their variance in common, the intraclass correlation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm

from mri_edge.bundles.manifest import Metric
from mri_edge.train.evaluation.crossval_figures import SENSITIVITY, false_positive_rate
from mri_edge.train.evaluation.intervals import auc, grouped_mean, grouped_wilson, wilson_bounds
from mri_edge.train.evaluation.metrics import LEAST_GROUPS, measure

SAMPLES = 400
GROUPS, SIZES, CORRELATIONS = (12, 30, 100, 400), (2, 10, 40, None), (0.02, 0.2, 0.6)  # None: 1 to 40 images each
PROPORTIONS, DISTANCES = (0.7, 0.9, 0.97, 0.99), (1.5, 2.5)  # of the classes, in standard deviations
PATIENTS, SLICES = (3, 5, 10, 20, 100), 20  # of each class
SCANS, LESIONS = (2, 3, 5, 14, 50), 6  # of each scan

Drawn = tuple[float, Sequence[Metric | tuple[float, float]]]  # the truth, and intervals from one sample


def proportions() -> Iterator[Callable[[np.random.Generator], Drawn]]:
    """Yield for each setting a function that draws one sample: intervals with groups, and without."""
    for groups, size, truth, correlation in product(GROUPS, SIZES, PROPORTIONS, CORRELATIONS):
        sizes = np.full(groups, size) if size else np.random.default_rng(groups).integers(1, 41, groups)
        group = np.repeat(np.arange(groups), sizes)
        shapes = truth * (1 / correlation - 1), (1 - truth) * (1 / correlation - 1)

        def draw(rng: np.random.Generator, group=group, truth=truth, shapes=shapes, groups=groups) -> Drawn:
            hits = rng.random(len(group)) < rng.beta(*shapes, groups)[group]
            return truth, (grouped_wilson(hits, group), wilson_bounds(float(hits.mean()), len(hits)))

        yield draw


def scores(
    rng: np.random.Generator, patients: int, slices: int, distance: float, correlation: float
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.intp]]:
    """Return labels, scores and groups of as many patients of each class."""
    group = np.repeat(np.arange(2 * patients), slices)
    positive = group < patients
    own, shared = rng.normal(size=len(group)), rng.normal(size=2 * patients)[group]
    return positive, distance * positive + np.sqrt(1 - correlation) * own + np.sqrt(correlation) * shared, group


def areas() -> Iterator[Callable[[np.random.Generator], Drawn]]:
    """As ``proportions``, for the area under the ROC curve."""
    for patients, distance, correlation in product(PATIENTS, DISTANCES, CORRELATIONS):

        def draw(rng: np.random.Generator, setting=(patients, SLICES, distance, correlation)) -> Drawn:
            positive, score, group = scores(rng, *setting)
            return float(norm.cdf(setting[2] / np.sqrt(2))), (auc(positive, score, group), auc(positive, score))

        yield draw


def rates() -> Iterator[Callable[[np.random.Generator], Drawn]]:
    """As ``proportions``, for the false positive rate at a sensitivity; the second interval has a fixed threshold."""
    for patients, slices, distance in product((50, 100), (1, 4), (2, 3)):

        def draw(rng: np.random.Generator, setting=(patients, slices, distance, 0.3)) -> Drawn:
            positive, score, group = scores(rng, *setting)
            found = Metric(**false_positive_rate(positive, score, group))
            called = score[~positive] >= np.quantile(score[positive], 1 - SENSITIVITY)
            return float(norm.sf(norm.ppf(1 - SENSITIVITY) + setting[2])), (
                found,
                grouped_wilson(called, group[~positive]),
            )

        yield draw


def means() -> Iterator[Callable[[np.random.Generator], Drawn]]:
    """As ``proportions``, for the mean of values."""
    for scans, correlation in product(SCANS, CORRELATIONS):
        group = np.repeat(np.arange(scans), LESIONS)

        def draw(rng: np.random.Generator, group=group, scans=scans, correlation=correlation) -> Drawn:
            own, shared = rng.normal(size=len(group)), rng.normal(size=scans)[group]
            values = np.sqrt(1 - correlation) * own + np.sqrt(correlation) * shared
            return 0.0, [grouped_mean(values, each) for each in (group, np.arange(len(group)))]

        yield draw


def briers() -> Iterator[Callable[[np.random.Generator], Drawn]]:
    """As ``proportions``, for the Brier score of as many patients of each class as it needs at least, or more."""
    for patients, correlation in product((LEAST_GROUPS, 20, 50), CORRELATIONS):

        def answers(rng: np.random.Generator, patients: int, correlation=correlation) -> tuple[Any, ...]:
            positive, score, group = scores(rng, patients, 4, 1.5, correlation)
            probability = expit(2 * score - 1.5)
            return positive.astype(np.intp), np.stack([1 - probability, probability], axis=1), group

        positive, probabilities, _ = answers(np.random.default_rng(1), 20_000)
        truth = float(np.mean((probabilities[:, 1] - positive) ** 2))

        def draw(rng: np.random.Generator, answers=answers, patients=patients, truth=truth) -> Drawn:
            positive, probabilities, group = answers(rng, patients)
            return truth, [measure(positive, probabilities, 1, group=each)["brier"] for each in (group, None)]

        yield draw


def coverage(draw: Callable[[np.random.Generator], Drawn], samples: int) -> list[float]:
    """Return the share of samples in which each interval covers the truth."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(samples):
        truth, found = draw(rng)
        bounds = [(each.low, each.high) if isinstance(each, Metric) else each for each in found]
        covered.append([low <= truth <= high for low, high in bounds])
    return np.mean(covered, axis=0).tolist()


def main() -> None:
    """Print lowest, median and highest coverage over all settings."""
    print("| interval | lowest | median | highest |\n| --- | ---: | ---: | ---: |")
    kinds = (
        ("proportion", proportions(), ("of groups", "of independent images"), SAMPLES),
        ("AUC", areas(), ("of groups", "of independent images"), SAMPLES),
        ("mean", means(), ("of groups", "of independent values"), SAMPLES),
        ("Brier score", briers(), ("of groups", "of independent images"), SAMPLES // 4),
        ("false positive rate", rates(), (f"at {SENSITIVITY:g} sensitivity", "at a fixed threshold"), SAMPLES // 4),
    )
    for kind, settings, names, samples in kinds:
        found = np.array([coverage(draw, samples) for draw in settings])
        for name, column in zip(names, found.T, strict=True):
            shares = " | ".join(f"{value:.3f}" for value in (column.min(), np.median(column), column.max()))
            print(f"| {kind} {name} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
