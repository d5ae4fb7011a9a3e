"""Test AUC, intervals and metrics against slow definitions, and in edge cases with few or no images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import t

metrics_of_sklearn = pytest.importorskip("sklearn.metrics", reason="needs the extra 'train'")

from mri_edge.train.evaluation import intervals
from mri_edge.train.evaluation.intervals import auc, both_kinds
from mri_edge.train.evaluation.metrics import (
    _as_f1,
    bins_of,
    by_folder,
    details,
    measure,
    reliability,
    roc,
    weighted_auc,
    wilson_metric,
)

Z = 1.959964


@pytest.mark.parametrize(
    ("flags", "both"), [([1, 1], False), ([0, 0], False), ([0, 1], True), ([1, 0, 0, 0], True), ([1, 1, 1, 0], True)]
)
def test_both_kinds_requires_one_of_each(flags, both):
    assert bool(both_kinds(np.array(flags, bool))) is both


# --- AUC


def scores(seed: int, positives: int, negatives: int, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = np.arange(positives + negatives) < positives
    return positive, rng.normal(apart * positive).round(1)  # rounded, so that there are ties


def variance_by_definition(positive, score, group) -> float:
    """Compute the variance of N. A. Obuchowski, Biometrics 53, 1997, sum by sum: within and across classes."""
    pairs = np.subtract.outer(score[positive], score[~positive])
    right = (pairs > 0) + (pairs == 0) / 2
    area = right.mean()
    above, below = right.mean(1) - area, right.mean(0) - area
    all_groups = sorted(set(group.tolist()))
    of_positive = {number: above[group[positive] == number].sum() for number in all_groups}
    of_negative = {number: below[group[~positive] == number].sum() for number in all_groups}
    positives, negatives = positive.sum(), (~positive).sum()
    positive_groups, negative_groups = len(set(group[positive].tolist())), len(set(group[~positive].tolist()))
    return float(
        positive_groups / (positive_groups - 1) * sum(number**2 for number in of_positive.values()) / positives**2
        + negative_groups / (negative_groups - 1) * sum(number**2 for number in of_negative.values()) / negatives**2
        + 2
        * len(all_groups)
        / (len(all_groups) - 1)
        * sum(of_positive[number] * of_negative[number] for number in all_groups)
        / (positives * negatives)
    )


@pytest.mark.parametrize("seed", range(4))
def test_interval_of_grouped_images_equals_its_definition(seed):
    """With groups of images of both classes, the covariance across classes counts as well."""
    positive, score = scores(seed, 25, 31)
    group = np.random.default_rng(seed).integers(0, 17, len(score)) * 3
    spread = np.sqrt(variance_by_definition(positive, score, group))
    found = auc(positive, score, group)
    groups = min(len(set(group[kind].tolist())) for kind in (positive, ~positive))
    half = t.ppf(0.975, groups - 1) * spread / (found.value * (1 - found.value))
    odds = [np.log(value / (1 - value)) for value in (found.low, found.value, found.high)]
    assert np.diff(odds) == pytest.approx([half, half], rel=1e-5)
    assert found.images == 56


def test_groups_of_one_image_change_nothing():
    positive, score = scores(5, 12, 20)
    alone, grouped = auc(positive, score), auc(positive, score, np.arange(32)[::-1] * 7)
    assert (grouped.low, grouped.value, grouped.high) == pytest.approx((alone.low, alone.value, alone.high), rel=0.02)
    assert grouped.method != alone.method


@pytest.mark.parametrize("group", [None, np.arange(30) // 2])
def test_inverted_scores_give_the_mirrored_interval(group):
    positive, score = scores(6, 12, 18)
    found, turned = auc(positive, score, group), auc(positive, -score, group)
    assert (turned.low, turned.value, turned.high) == pytest.approx((1 - found.high, 1 - found.value, 1 - found.low))


@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (2, 2), (5, 9), (20, 20), (31, 20)])
def test_interval_of_perfectly_ordered_pairs_equals_newcombe(positives, negatives):
    """R. G. Newcombe, Statistics in Medicine 25, 2006, method 5: the AUC A at which 1 - A is Z standard errors."""
    positive = np.arange(positives + negatives) < positives
    found = auc(positive, positive.astype(float))
    assert (found.value, found.high) == (1, 1)
    area, middle = found.low, (positives + negatives) / 2
    variance = area * (1 - area) / (positives * negatives)
    variance *= 1 + (middle - 1) * (1 - area) / (2 - area) + (middle - 1) * area / (1 + area)
    assert 1 - area == pytest.approx(Z * np.sqrt(variance), rel=1e-5)
    turned = auc(positive, -positive.astype(float))
    assert (turned.low, turned.value) == (0, 0)
    assert turned.high == pytest.approx(1 - found.low)


def test_single_group_of_a_class_has_no_variance():
    positive, score = scores(7, 6, 6)
    group = np.where(positive, 0, np.arange(12))
    found = auc(positive, score, group)
    assert 0 < found.low < found.value < found.high < 1  # Newcombe's, for lack of a variance
    plain = auc(positive, score)
    assert (found.low, found.high) != (plain.low, plain.high)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_auc_equals_scikit_learn(seed):
    positive, score = scores(seed, 30, 40)
    weights = np.random.default_rng(seed).integers(0, 4, (5, 70)).astype(float)
    expected = [metrics_of_sklearn.roc_auc_score(positive, score, sample_weight=row) for row in weights]
    assert weighted_auc(positive, score)(weights) == pytest.approx(expected)


# --- resampling


@pytest.mark.parametrize("images", [7, 2500, 9001])
def test_resamples_keep_the_class_counts_with_any_memory_limit(images):
    """Large sets are resampled in parts: still 2,000 resamples in total, and all parts differ."""
    positive = np.arange(images) % 3 == 0
    seen = []

    def figures(weights):
        seen.append(weights.shape)
        return {
            "is_positive": weights[:, positive].sum(1),
            "well": weights[:, ~positive].sum(1),
            "first": weights[:, 0],
        }

    found = intervals.bootstrap(figures, positive)
    assert {name: len(values) for name, values in found.items()} == {"is_positive": 2000, "well": 2000, "first": 2000}
    assert set(found["is_positive"]) == {positive.sum()}
    assert set(found["well"]) == {(~positive).sum()}
    assert found["first"].mean() == pytest.approx(1, abs=0.1)
    assert sum(rows for rows, _ in seen) == 2000
    assert max(rows * columns for rows, columns in seen) <= 4_000_000


def test_drawn_outcomes_have_the_given_probabilities():
    probability = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    for place, chance in enumerate(probability):
        drawn = intervals.draw_outcomes(lambda outcomes, place=place: outcomes[:, place].astype(float), probability)
        assert drawn.shape == (2000,)
        assert drawn.mean() == pytest.approx(chance, abs=0.04 if 0 < chance < 1 else 0)
    many = np.full(3001, 0.5)
    parts = []
    intervals.draw_outcomes(lambda outcomes: parts.append(len(outcomes)) or outcomes.mean(1), many)
    assert sum(parts) == 2000
    assert len(parts) > 1


def test_percentile_interval_is_the_middle_95_percent():
    found = intervals.percentile(0.5, np.linspace(0, 1, 1001), 12)
    assert (found.value, found.low, found.high, found.images) == (0.5, 0.025, 0.975, 12)


@pytest.mark.parametrize(
    ("value", "resampled", "without", "low", "high"),
    [
        (0.3, (0.30, 0.40), 0.2, 0.20, 0.30),  # mirrored: 0.6 - 0.4 and 0.6 - 0.3
        (0.3, (0.20, 0.40), 0.2, 0.20, 0.40),
        (0.3, (0.20, 0.40), 0.3, 0.00, 0.40),  # no larger than noise alone would be
        (0.3, (0.35, 0.40), 0.2, 0.20, 0.30),  # the value belongs to it
        (0.3, (0.10, 0.20), 0.2, 0.30, 0.50),
        (0.1, (0.10, 0.30), 0.0, 0.00, 0.10),  # never below 0
    ],
)
def test_basic_interval_is_mirrored_and_reaches_0_like_noise(value, resampled, without, low, high):
    spread = np.repeat(resampled, 500)  # quantiles of two values are these values
    found = intervals.basic(value, spread, np.full(100, without), 12)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.value, found.images) == (value, 12)


# --- metrics


def test_fraction_of_no_images_is_unknown():
    found = wilson_metric(0, 0)
    assert (found.value, found.low, found.high, found.images) == (0, 0, 1, 0)
    assert (
        wilson_metric(0, 5).value,
        wilson_metric(0, 5).low,
        wilson_metric(5, 5).value,
        wilson_metric(5, 5).high,
    ) == (0, 0, 1, 1)


@pytest.mark.parametrize(("hits", "wrong"), [(0, 5), (8, 4), (5, 0)])
def test_f1_matches_its_counts(hits, wrong):
    part = wilson_metric(hits, hits + wrong)
    found = _as_f1(part)
    assert found.value == pytest.approx(2 * hits / (2 * hits + wrong))
    assert found.low == pytest.approx(2 * part.low / (1 + part.low))
    assert found.high == pytest.approx(2 * part.high / (1 + part.high))


def test_bins_are_numbered_from_0_to_9():
    assert bins_of(np.arange(10.0)).tolist() == list(range(10))
    assert bins_of(np.arange(20.0)[::-1]).tolist() == [9 - place // 2 for place in range(20)]
    assert bins_of(np.zeros(7)).tolist() == [5] * 7


def test_reliability_computed_by_hand():
    score = np.array([0.1, 0.3, 0.6, 0.8]).repeat(5)
    positive = np.arange(20) % 5 >= np.array([4, 3, 1, 0]).repeat(5)
    found = reliability(positive, score)
    assert [item["probability"] for item in found] == pytest.approx([0.1, 0.3, 0.6, 0.8])
    assert [item["share"] for item in found] == [0.2, 0.4, 0.8, 1.0]
    assert [item["images"] for item in found] == [5] * 4
    assert [(item["low"], item["high"]) for item in found] == [
        (wilson_metric(n, 5).low, wilson_metric(n, 5).high) for n in (1, 2, 4, 5)
    ]


def test_each_folder_has_its_own_accuracy():
    folders = ["b/yes", "a/no", "b/yes", "a/no", "a/no"]
    found = by_folder(folders, np.array([1, 0, 1, 0, 0]), np.array([True, False, False, False, True]))
    assert [(item["folder"], item["label"], item["value"], item["images"]) for item in found] == [
        ("a/no", 0, pytest.approx(1 / 3), 3),
        ("b/yes", 1, 0.5, 2),
    ]


def test_calibration_error_of_few_images_computed_by_hand():
    """Two of twenty images are a bin, so the error is the mean distance of their sums of probabilities and outcomes."""
    score = np.linspace(0.025, 0.975, 20).astype(np.float32)
    truth = np.array([0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 1])
    found = measure(truth, np.stack([1 - score, score], axis=1), 1)
    assert found["calibration_error"].value == pytest.approx(
        np.abs((score - truth).reshape(10, 2).sum(axis=1)).sum() / 20, abs=1e-6
    )
    assert found["brier"].value == pytest.approx(((score - truth) ** 2).mean(), abs=1e-6)
    assert {one.images for name, one in found.items() if name in ("brier", "calibration_error", "f1")} == {20}


def test_metrics_of_several_labels_describe_the_positive_one():
    rows = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3], [0.5, 0.1, 0.4]], np.float32)
    truth = np.array([0, 1, 2, 0, 2])
    found = measure(truth, rows, 1)
    assert found["accuracy"].value == 3 / 5
    assert (found["sensitivity"].value, found["sensitivity"].images) == (1, 1)
    assert (found["specificity"].value, found["specificity"].images) == (3 / 4, 4)
    assert (found["precision"].value, found["precision"].images) == (1 / 2, 2)
    assert found["f1"].value == pytest.approx(2 / 3)
    matrix = details(truth, rows, 1)["confusion_matrix"]
    assert matrix == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]


def test_roc_has_a_point_per_threshold_and_starts_without_one():
    found = roc(np.array([True, False, True, False]), np.array([0.9, 0.4, 0.35, 0.1]))
    assert found["threshold"][0] is None
    assert None not in found["threshold"][1:]
    assert (found["false_positive_rate"][0], found["true_positive_rate"][0]) == (0, 0)
    assert (found["false_positive_rate"][-1], found["true_positive_rate"][-1]) == (1, 1)
    points = set(zip(found["threshold"][1:], found["true_positive_rate"][1:], strict=True))
    assert (0.9, 0.5) in points


@pytest.mark.parametrize("labels", list(itertools.product((0, 1), repeat=2)))
def test_metrics_undefined_for_two_images_are_omitted(labels):
    found = measure(np.array(labels), np.array([[0.2, 0.8], [0.7, 0.3]], np.float32), 1)
    assert ("auc" in found) == (len(set(labels)) == 2)
    assert ("sensitivity" in found) == ("f1" in found) == (1 in labels)
    assert ("specificity" in found) == (0 in labels)
    assert "precision" in found  # one was called positive
