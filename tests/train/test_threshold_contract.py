"""Test calibration and the comparison of two models against slow definitions."""

from __future__ import annotations

import numpy as np
import pytest

from mri_edge.errors import DataError

metrics_of_sklearn = pytest.importorskip("sklearn.metrics", reason="needs the extra 'train'")
pytest.importorskip("keras", reason="needs the extra 'train'")

from mri_edge.train.evaluation.calibration import choose_threshold, fit_temperature, scale_probabilities
from mri_edge.train.evaluation.crossval_figures import (
    BinaryAnswers,
    called_by_other_folds,
    specificity_at,
    student_minus_teacher,
    threshold_of,
    thresholds_of_other_folds,
)


def figures_at(threshold: float, score: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    called = score >= threshold
    return float(called[label == 1].mean()), float((~called[label == 0]).mean())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("sensitivity", [0.8, 0.95, 1.0])
def test_no_other_threshold_is_better_than_the_chosen_one(seed, sensitivity):
    rng = np.random.default_rng(seed)
    label = (np.arange(30) < 12).astype(int)
    score = np.clip(rng.normal(0.4 + 0.25 * label, 0.2), 0, 1).round(2)
    threshold = choose_threshold(score, label, sensitivity)
    found, cleared = figures_at(threshold, score, label)
    assert found >= sensitivity
    everywhere = [figures_at(threshold, score, label) for threshold in np.linspace(0, 1, 1001)]
    assert found + cleared >= max(sum(pair) for pair in everywhere if pair[0] >= sensitivity) - 1e-12
    assert not np.isclose(score, threshold).any()  # it sits on no image


def test_middle_of_the_widest_gap_is_chosen_among_equally_good_thresholds():
    label = np.array([0, 0, 0, 1, 1])
    assert choose_threshold(np.array([0.1, 0.2, 0.3, 0.7, 0.8]), label) == pytest.approx(0.5)
    # A threshold between 0.2 and 0.3 clears one image less than one between 0.3 and 0.9, whose gap therefore counts.
    assert choose_threshold(np.array([0.1, 0.2, 0.3, 0.9, 0.95]), label) == pytest.approx(0.6)
    assert choose_threshold(np.array([0.9, 0.2]), np.array([0, 1])) == pytest.approx(0.1)  # everyone is called


@pytest.mark.parametrize("label", [[0, 0, 0], [1, 1, 1]])
def test_single_class_has_no_threshold(label):
    with pytest.raises(DataError, match="all of one class"):
        choose_threshold(np.array([0.1, 0.5, 0.9]), np.array(label))


def test_temperature_reaches_its_bounds_for_extreme_answers():
    sure = np.tile([[0.01, 0.99], [0.99, 0.01]], (20, 1))
    assert fit_temperature(sure, np.tile([0, 1], 20)) == pytest.approx(10, rel=0.01)
    doubtful = np.tile([[0.49, 0.51], [0.51, 0.49]], (20, 1))
    assert fit_temperature(doubtful, np.tile([1, 0], 20)) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("images", [10, 100, 1000])
def test_answers_that_are_all_right_are_as_sure_as_their_number_allows(images):
    """The likelihood alone would ask for certainty, and the first wrong answer elsewhere would be a certain one."""
    right = np.tile([[0.2, 0.8], [0.8, 0.2]], (images, 1))
    label = np.tile([1, 0], images)
    calibrated = scale_probabilities(right, fit_temperature(right, label))
    assert calibrated[0, 1] == pytest.approx((images + 1) / (images + 2), rel=1e-3)


def test_scaled_probabilities_equal_divided_logits():
    logits = np.array([[1.0, 3.0, -2.0], [0.0, 0.0, 5.0]])

    def softmax(values):
        powers = np.exp(values)
        return powers / powers.sum(axis=1, keepdims=True)

    for temperature in (0.5, 1.0, 4.0):
        np.testing.assert_allclose(scale_probabilities(softmax(logits), temperature), softmax(logits / temperature))
    certain = scale_probabilities(np.array([[0.0, 1.0]]), 2.0)
    assert certain[0, 0] == pytest.approx(1e-6, rel=1e-3)
    assert certain.sum() == pytest.approx(1)


# --- comparison of two models


def test_specificity_uses_the_first_threshold_with_the_sensitivity():
    rng = np.random.default_rng(0)
    is_positive = np.arange(60) % 2 == 0
    score = rng.normal(1.3 * is_positive).round(1)
    weights = rng.integers(0, 3, (6, 60)).astype(float)
    found = specificity_at(is_positive, score, weights)
    for row, one in zip(weights, found, strict=True):
        best = None
        for threshold in sorted(set(score.tolist()), reverse=True):
            called = score >= threshold
            if (row * (called & is_positive)).sum() / (row * is_positive).sum() >= 0.95 - 1e-12:
                best = (row * (~called & ~is_positive)).sum() / (row * ~is_positive).sum()
                break
        assert one == pytest.approx(best)


def test_difference_is_student_minus_teacher():
    is_positive = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    teacher = BinaryAnswers(
        np.array([0.9, 0.8, 0.7, 0.6, 0.65, 0.2, 0.1, 0.3]), np.array([1, 1, 1, 1, 1, 0, 0, 0], bool)
    )
    student = BinaryAnswers(
        np.array([0.9, 0.8, 0.7, 0.2, 0.65, 0.1, 0.1, 0.3]), np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)
    )
    found = student_minus_teacher(is_positive, teacher, student, np.arange(8))
    assert found["accuracy"]["value"] == pytest.approx(5 / 8 - 7 / 8)
    assert found["auc"]["value"] == pytest.approx((16 - 2) / 16 - 15 / 16)
    assert found["specificity"]["value"] == pytest.approx(2 / 4 - 3 / 4)
    for one in found.values():
        assert one["low"] <= one["value"] <= one["high"]
        assert one["images"] == 8
    alone = student_minus_teacher(np.ones(8, bool), teacher, student, np.arange(8))
    assert set(alone) == {"accuracy"}
    same = student_minus_teacher(is_positive, teacher, teacher, np.arange(8))
    assert {(metric["low"], metric["value"], metric["high"]) for metric in same.values()} == {(0, 0, 0)}


def test_threshold_uses_all_students_and_only_the_given_images():
    is_positive = np.array([0, 0, 1, 1, 1], bool)
    first = BinaryAnswers(np.array([0.1, 0.2, 0.6, 0.8, 0.0]), np.zeros(5, bool))
    second = BinaryAnswers(np.array([0.1, 0.3, 0.5, 0.9, 0.0]), np.zeros(5, bool))
    rows = np.array([0, 1, 2, 3])  # not the positive image that both miss
    assert threshold_of(is_positive, [first, second], rows) == pytest.approx(0.4)


def test_each_fold_uses_the_threshold_of_the_others():
    """All scores of fold 2 are higher, so its own threshold would give other calls."""
    is_positive = np.array([0, 0, 1, 1] * 2, bool)
    fold = np.array([1] * 4 + [2] * 4)
    score = np.array([0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    students, everything = {"s": BinaryAnswers(score, np.zeros(8, bool))}, np.ones(8, bool)
    by_fold = thresholds_of_other_folds(is_positive, students, fold, everything)
    called = called_by_other_folds(students, fold, by_fold)["s"]
    assert called.called.tolist() == [False] * 4 + [True] * 4
    assert called.positive.tolist() == score.tolist()
    outside = np.array([1] * 4 + [2] * 3 + [0])  # no fold: not called
    by_fold = thresholds_of_other_folds(is_positive, students, outside, everything)
    part = called_by_other_folds(students, outside, by_fold)
    assert part["s"].called.tolist() == [False] * 4 + [True] * 3 + [False]
