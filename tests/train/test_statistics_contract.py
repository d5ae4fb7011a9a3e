"""Test metrics and intervals against independent second implementations."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import t

metrics_of_sklearn = pytest.importorskip("sklearn.metrics", reason="needs the extra 'train'")

from mri_edge.train.data.folder import Scan
from mri_edge.train.evaluation.calibration import choose_threshold
from mri_edge.train.evaluation.crossval_figures import BinaryAnswers, specificity_at, student_minus_teacher
from mri_edge.train.evaluation.evaluate import score as score_scans
from mri_edge.train.evaluation.intervals import RESAMPLES, auc, basic, draw_outcomes, percentile
from mri_edge.train.evaluation.metrics import bins_of, by_folder, details, measure, reliability, weighted_auc

Z = 1.959964


def variance_of(found, groups: int) -> float:
    """Recover the variance of an AUC from its interval on the logit scale, of so many groups of the rarer class."""
    half = (logit(found.high) - logit(found.low)) / 2
    return (half / t.ppf(0.975, groups - 1) * found.value * (1 - found.value)) ** 2


def obuchowski(is_positive, score, group) -> float:
    """Compute the variance of the AUC of clustered data, term by term.

    N. A. Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53, 1997, equations 3 to 6.
    """

    def beats(x, y):
        return 1.0 if x > y else 0.5 if x == y else 0.0

    positives, negatives = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
    m, n = len(positives), len(negatives)
    v10 = {i: sum(beats(score[i], score[j]) for j in negatives) / n for i in positives}
    v01 = {j: sum(beats(score[i], score[j]) for i in positives) / m for j in negatives}
    area = sum(v10.values()) / m
    clusters = sorted(set(group))
    of_ill = {c: [i for i in positives if group[i] == c] for c in clusters}
    of_well = {c: [j for j in negatives if group[j] == c] for c in clusters}
    excess10 = {c: sum(v10[i] for i in of_ill[c]) - len(of_ill[c]) * area for c in clusters}
    excess01 = {c: sum(v01[j] for j in of_well[c]) - len(of_well[c]) * area for c in clusters}
    i10, i01, i = sum(map(bool, of_ill.values())), sum(map(bool, of_well.values())), len(clusters)
    s10 = i10 / ((i10 - 1) * m) * sum(value**2 for value in excess10.values())
    s01 = i01 / ((i01 - 1) * n) * sum(value**2 for value in excess01.values())
    s11 = i / (i - 1) * sum(excess10[c] * excess01[c] for c in clusters)
    return s10 / m + s01 / n + 2 * s11 / (m * n)


@pytest.mark.parametrize("seed", range(3))
def test_variance_of_groups_with_both_classes_equals_obuchowski(seed):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 9, 40)
    is_positive = rng.random(40) < 0.5
    score = rng.normal(is_positive + rng.normal(0, 1, 9)[group], 1).round(1)  # rounded: ties happen
    assert any(0 < is_positive[group == index].mean() < 1 for index in range(9))
    groups = min(len(np.unique(group[kind])) for kind in (is_positive, ~is_positive))
    found = variance_of(auc(is_positive, score, group), groups)
    assert found == pytest.approx(obuchowski(is_positive, score, group), rel=1e-5)


def test_variance_of_patients_with_both_classes_equals_simulation():
    """Each patient has a healthy and a tumor slice, and both look brighter in some patients than in others.

    What raises both scores of a patient raises no area, so the classes' covariance must be in the variance: without
    it, the variance would be twice as large.
    """
    rng = np.random.default_rng(1)
    patients, studies = 60, 800
    is_positive, group = np.arange(2 * patients) % 2 == 0, np.arange(2 * patients) // 2
    found = []
    for _ in range(studies):
        patient = rng.normal(0, 1.5, patients).repeat(2)
        found.append(auc(is_positive, rng.normal(1.2 * is_positive + patient, 0.8), group))
    real = np.var([metric.value for metric in found])
    estimated = np.mean([variance_of(metric, patients) for metric in found])
    # The standard deviation of the variance of 800 values is 5%.
    assert estimated == pytest.approx(real, rel=0.2)


@pytest.mark.parametrize(("positives", "negatives"), [(10, 10), (31, 20), (100, 30), (5, 40)])
def test_interval_of_separated_classes_solves_newcombes_equation(positives, negatives):
    """R. G. Newcombe, Statistics in Medicine 25, 2006, method 5: Hanley and McNeil's variance with N as the mean."""

    def variance(area):
        mean = (positives + negatives) / 2
        parts = (mean - 1) * (1 - area) / (2 - area) + (mean - 1) * area / (1 + area)
        return area * (1 - area) * (1 + parts) / (positives * negatives)

    is_positive = np.arange(positives + negatives) < positives
    found = auc(is_positive, is_positive.astype(float))
    assert found.high == 1
    assert 1 - found.low == pytest.approx(Z * np.sqrt(variance(found.low)), rel=1e-5)
    reversed_ = auc(is_positive, (~is_positive).astype(float))
    assert reversed_.value == reversed_.low == 0
    assert reversed_.high == pytest.approx(1 - found.low)


@pytest.mark.parametrize("turned", [False, True])
def test_copies_do_not_narrow_the_interval_of_separated_classes(turned):
    """Intervals count groups, not images, even if no pair is misranked."""
    is_positive = np.arange(30) < 12
    score = (is_positive != turned).astype(float)
    once, copied = auc(is_positive, score), auc(is_positive.repeat(20), score.repeat(20), np.arange(30).repeat(20))
    assert (copied.low, copied.high) == (once.low, once.high)
    assert copied.images == 600
    assert once.high - once.low > 0.1


def test_weighted_auc_equals_scikit_learn_with_ties():
    rng = np.random.default_rng(2)
    is_positive = rng.random(80) < 0.4
    score = rng.normal(is_positive, 1).round(0)  # many ties between the classes
    weights = rng.integers(0, 4, (5, 80)).astype(float)
    found = weighted_auc(is_positive, score)(weights)
    for row, area in zip(weights, found, strict=True):
        assert area == pytest.approx(metrics_of_sklearn.roc_auc_score(is_positive, score, sample_weight=row))


def test_percentile_interval_is_the_middle_95_percent():
    found = percentile(0.4, np.random.default_rng(0).permutation(np.linspace(0, 1, 10_001)), 7)
    assert (found.value, found.images) == (0.4, 7)
    assert (found.low, found.high) == pytest.approx((0.025, 0.975))


def test_basic_interval_mirrors_the_middle_95_percent_at_the_value():
    resampled = np.random.default_rng(0).permutation(np.linspace(0.2, 0.6, 10_001))
    found = basic(0.35, resampled, np.zeros(100), 9)
    assert (found.low, found.high) == pytest.approx((0.7 - 0.59, 0.7 - 0.21))


@pytest.mark.parametrize(("value", "reaches_zero"), [(0.96, True), (0.99, False)])
def test_interval_excludes_zero_only_above_97_5_percent_of_noise(value, reaches_zero):
    found = basic(value, np.linspace(value, value + 0.01, 1001), np.linspace(0, 1, 10_001), 9)
    assert (found.low == 0) == reaches_zero


def test_outcomes_are_drawn_with_their_probabilities():
    probability = np.array([0.1, 0.5, 0.9, 0.0, 1.0])
    for index, one in enumerate(probability):
        drawn = draw_outcomes(lambda outcomes, index=index: outcomes[:, index].astype(float), probability)
        assert drawn.shape == (RESAMPLES,)
        assert drawn.mean() == pytest.approx(one, abs=0.045)  # 4 standard deviations of 2,000 fair throws


def test_brier_interval_is_that_of_a_mean_within_classes():
    """For a mean of many values, the bootstrap interval is the normal one with the variance within each class."""
    rng = np.random.default_rng(3)
    truth = np.arange(400) % 4 == 0
    score = np.clip(rng.normal(0.2 + 0.5 * truth, 0.15), 0, 1).astype(np.float32)
    found = measure(truth.astype(np.intp), np.stack([1 - score, score], axis=1), 1)["brier"]
    squares = (score.astype(float) - truth) ** 2
    variance = sum(squares[kind].var() * kind.sum() for kind in (truth, ~truth)) / 400**2
    half = Z * np.sqrt(variance)
    # 2,000 resamples determine the ends of an interval to about 4% of its half-width.
    assert (found.low - found.value, found.high - found.value) == pytest.approx((-half, half), rel=0.12)


@pytest.mark.parametrize("threshold", [None, 0.35])
def test_positive_label_may_have_any_index(threshold):
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 2, 120)
    score = np.clip(rng.normal(0.4 + 0.2 * truth, 0.2), 0.01, 0.99).astype(np.float32)
    both = np.stack([1 - score, score], axis=1)
    found, mirrored = measure(truth, both, 1, threshold), measure(1 - truth, both[:, ::-1], 0, threshold)
    assert mirrored == found
    three = np.stack([1 - score, np.zeros_like(score), score], axis=1)
    among_three = measure(2 * truth, three, 2, threshold)
    assert {name: one.value for name, one in among_three.items()} == pytest.approx(
        {name: one.value for name, one in found.items()}
    )


@pytest.mark.parametrize("images", [10, 30, 97])
def test_bins_differ_by_at_most_one_image(images):
    score = np.random.default_rng(5).permutation(np.linspace(0, 1, images))
    found = bins_of(score)
    counts = np.bincount(found, minlength=10)
    assert len(counts) == 10
    assert counts.max() - counts.min() <= 1
    assert found[score.argmin()] == 0
    assert found[score.argmax()] == 9
    assert (np.diff(found[np.argsort(score)]) >= 0).all()


def test_bins_are_symmetric():
    """Asymmetric ranks would put more of 25 scores into the first bin than into the last: 3 and 2."""
    ranks = np.arange(25)
    np.testing.assert_array_equal(bins_of(ranks), (10 * (ranks + 0.5) / 25).astype(int))
    tied = bins_of(np.array([1, 1, 1, 1, 2, 2, 2, 2, 2, 2]))
    # The middle rank of a tie is used: 2.5 of 10 and 7.5 of 10.
    assert tied.tolist() == [2] * 4 + [7] * 6


def test_reliability_pairs_mean_probability_and_fraction_of_positives():
    score = np.linspace(0.05, 0.95, 10).repeat(20)
    positive = np.arange(200) % 20 < np.arange(10).repeat(20)  # 0, 1, … 9 of 20 in each bin
    points = reliability(positive, score)
    assert [point["probability"] for point in points] == pytest.approx(np.linspace(0.05, 0.95, 10))
    assert [point["share"] for point in points] == pytest.approx(np.arange(10) / 20)
    assert [point["images"] for point in points] == [20] * 10


def test_rows_of_the_confusion_matrix_are_the_truth():
    truth = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    score = np.array([0.1, 0.2, 0.9, 0.8, 0.8, 0.8, 0.3, 0.2], np.float32)
    found = details(truth, np.stack([1 - score, score], axis=1), 1)
    assert found["confusion_matrix"] == [[2, 1], [2, 3]]
    assert found["report"]["1"]["recall"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("positive", [0, 1])
def test_record_describes_the_positive_label_at_the_threshold(positive):
    """Compare all parts of ``evaluate.score`` with scikit-learn, at a threshold that differs from 0.5."""
    rng = np.random.default_rng(8)
    truth = rng.integers(0, 2, 90)
    is_positive = truth == positive
    score = np.clip(rng.normal(0.3 + 0.15 * is_positive, 0.15), 0.01, 0.99).astype(np.float32)
    both = np.stack([score, 1 - score] if positive == 0 else [1 - score, score], axis=1)
    scans = [Scan(Path(f"{i}.png"), f"{one}/{i}.png", str(one), int(one), f"{i:064x}") for i, one in enumerate(truth)]
    group = np.arange(90) // 3
    found = score_scans(scans, both, positive, 0.35, group, names=("no", "yes"))
    called = np.where(score >= np.float32(0.35), positive, 1 - positive)
    assert 10 < np.count_nonzero(called == positive) < 80
    assert found["metrics"] == {name: asdict(one) for name, one in measure(truth, both, positive, 0.35, group).items()}
    assert found["metrics"]["auc"] == asdict(auc(is_positive, score.astype(float), group))
    assert found["confusion_matrix"] == metrics_of_sklearn.confusion_matrix(truth, called).tolist()
    curve = found["roc"]
    area = metrics_of_sklearn.auc(curve["false_positive_rate"], curve["true_positive_rate"])
    assert area == pytest.approx(metrics_of_sklearn.roc_auc_score(is_positive, score))
    assert found["reliability"] == reliability(is_positive, score, group) != reliability(is_positive, score)
    assert {folder["folder"]: folder["value"] for folder in found["folders"]} == pytest.approx(
        {str(label): np.mean(called[truth == label] == label) for label in (0, 1)}
    )
    assert [folder["label"] for folder in found["folders"]] == [0, 1]
    assert found["folders"] == by_folder([scan.folder for scan in scans], truth, called == truth, group)
    assert [prediction["called"] for prediction in found["predictions"]] == called.tolist()


def test_equally_good_thresholds_are_decided_by_the_widest_gap():
    is_positive, well = [0.3, 0.9], [0.1, 0.5]
    scores, labels = np.array(is_positive + well), np.array([1, 1, 0, 0])
    # Both gaps, 0.1 to 0.3 and 0.5 to 0.9, classify one more image of one class correctly.
    assert choose_threshold(scores, labels, 0.5) == pytest.approx(0.7)
    mirrored = choose_threshold(np.array([0.5, 0.95, 0.1, 0.9]), labels, 0.5)
    assert mirrored == pytest.approx(0.3)


def test_sensitivity_that_is_exactly_reached_counts():
    scores = np.array([0.01] + [0.9] * 19 + [0.5] * 4)
    labels = np.array([1] * 20 + [0] * 4)
    assert choose_threshold(scores, labels, 19 / 20) == pytest.approx(0.7)
    assert choose_threshold(scores, labels, 0.951) < 0.01


def test_specificity_is_measured_at_the_first_sufficient_sensitivity():
    is_positive = np.array([True] * 20 + [False] * 4)
    score = np.array([0.05] + [0.9] * 19 + [0.95, 0.5, 0.1, 0.02])
    even = np.ones((1, 24))
    assert specificity_at(is_positive, score, even)[0] == pytest.approx(3 / 4)  # 19 of 20 are 95%
    without_one = even.copy()
    without_one[0, 5] = 0  # 18 of 19 are less: the last has to be found too
    assert specificity_at(is_positive, score, without_one)[0] == pytest.approx(1 / 4)


def test_paired_interval_is_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(7)
    is_positive = rng.random(240) < 0.5
    hard = rng.normal(0, 1, 240)  # what makes an image hard for both
    teacher = rng.normal(1.5 * is_positive + hard, 0.2)
    student = rng.normal(1.5 * is_positive + hard, 0.2)
    answers = [BinaryAnswers(score, score > 0.75) for score in (teacher, student)]
    found = student_minus_teacher(is_positive, *answers, np.arange(240))["auc"]
    assert found["low"] <= found["value"] <= found["high"]
    alone = auc(is_positive, student)
    assert found["high"] - found["low"] < 0.6 * np.sqrt(2) * (alone.high - alone.low)
