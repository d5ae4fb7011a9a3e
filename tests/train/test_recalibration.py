"""The figures to expect after a recalibration: intervals hold the truth, and limits are those of binomial intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mri_edge.errors import DataError, GateError
from mri_edge.inference.prediction import decide, rescale

pytest.importorskip("sklearn", reason="needs the extra 'evaluate'")

from scipy.stats import norm

from mri_edge.authoring.intervals import wilson_interval
from mri_edge.train.evaluation import intervals
from mri_edge.train.evaluation.intervals import wilson_bounds
from mri_edge.train.evaluation.recalibration import (
    Answers,
    Goal,
    advised,
    fewest,
    fit,
    predictive_value,
    recalibrate,
)

LABELS = ("no", "yes")
ROUNDS = 60
FEWEST = 53  # of 60: intervals of 95% hold as often or more with a probability of 0.99
GOAL = Goal(positive=1, sensitivity=0.95)
SHIFT = 3.0  # between the log odds of the two labels: an AUC of 0.983


def simulate(
    rng: np.random.Generator, negatives: int, positives: int, *, temperature: float = 1.0, copies: int = 1
) -> Answers:
    """Answers of a model that is calibrated for equal labels at ``temperature``; ``copies`` of each scan."""
    label = np.repeat(np.arange(2), (negatives, positives))
    # Normal log odds with this mean and variance are their own log likelihood ratio, so they are calibrated.
    odds = rng.normal((label - 0.5) * SHIFT**2, SHIFT) * temperature
    score = 1 / (1 + np.exp(-odds))
    answers = Answers(np.stack([1 - score, score], axis=1).astype(np.float32), label, np.arange(len(label)))
    return answers.at(np.repeat(np.arange(len(label)), copies))


def truth(threshold: float, temperature: float, offset: float = 0.0) -> tuple[float, float]:
    """Sensitivity and specificity of ``simulate`` with temperature 1 at a threshold on rescaled probabilities."""
    odds = (math.log(threshold / (1 - threshold)) - offset) * temperature
    return float(norm.sf((odds - SHIFT**2 / 2) / SHIFT)), float(norm.cdf((odds + SHIFT**2 / 2) / SHIFT))


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Take fewer resamples than in real use, because the tests repeat the procedure many times."""
    monkeypatch.setattr(intervals, "RESAMPLES", 300)


@pytest.mark.parametrize(("negatives", "positives", "copies"), [(30, 30, 1), (100, 100, 1), (40, 40, 4)])
def test_intervals_hold_the_truth_of_the_threshold_that_is_written(negatives, positives, copies):
    rng = np.random.default_rng(6)
    held = {"sensitivity": 0, "specificity": 0}
    for _ in range(ROUNDS):
        found = recalibrate(simulate(rng, negatives, positives, copies=copies), LABELS, GOAL, 0.5)
        actual = truth(found.fit.threshold, found.fit.temperature)
        for name, value in zip(held, actual, strict=True):
            held[name] += found.expected[name].low <= value <= found.expected[name].high
    assert min(held.values()) >= FEWEST, held


def test_the_threshold_looks_better_on_the_scans_that_chose_it():
    rng = np.random.default_rng(7)
    seen, expected, actual = [], [], []
    for _ in range(60):
        answers = simulate(rng, 25, 25)
        found = recalibrate(answers, LABELS, GOAL, 0.5)
        rescaled = rescale(answers.probabilities, found.fit.temperature, 0, 1)
        right = decide(rescaled, 1, found.fit.threshold) == answers.label
        seen.append(right[answers.label == 1].mean() + right[answers.label == 0].mean())
        expected.append(found.expected["sensitivity"].value + found.expected["specificity"].value)
        actual.append(sum(truth(found.fit.threshold, found.fit.temperature)))
    assert np.mean(seen) > np.mean(actual) + 0.02
    assert np.mean(expected) < np.mean(actual) + 0.01


def test_copies_of_a_scan_are_no_further_evidence():
    answers = simulate(np.random.default_rng(1), 50, 50)
    copied = answers.at(np.repeat(np.arange(100), 7))
    once, often = (recalibrate(item, LABELS, GOAL, 0.5) for item in (answers, copied))
    assert often.independent == once.independent == (50, 50)
    for name, metric in once.before.items():
        tolerance = 2e-3 if name == "auc" else 1e-9  # of groups, it has Student's t
        assert (often.before[name].low, often.before[name].high) == pytest.approx(
            (metric.low, metric.high), abs=tolerance
        )


def test_unequal_groups_count_by_kish():
    answers = Answers(np.full((5, 2), 0.5, np.float32), np.array([0, 0, 0, 1, 1]), np.array([4, 4, 9, 2, 3]))
    assert answers.independent(answers.label == 0) == pytest.approx(9 / 5)
    assert answers.independent(answers.label == 1) == 2
    assert answers.independent(answers.label == 2) == 0


def test_limits_follow_from_wilsons_interval():
    """Found here by trying one number after the other, with scipy's interval."""

    def first(wanted) -> int:
        return next(count for count in range(1, 2000) if wanted(count))

    def widest(count: int) -> float:
        interval = wilson_interval(count // 2, count)
        return interval.high - interval.low

    for sensitivity in (0.8, 0.9, 0.95, 0.98, 0.99):
        positives, negatives = fewest(sensitivity)
        assert negatives == first(lambda count: count % 2 == 0 and widest(count) <= 0.5) == 12
        assert positives == max(12, first(lambda count, s=sensitivity: count * (1 - s) >= 1 - 1e-9))
        shown, exact = advised(sensitivity)
        assert shown == first(lambda count, s=sensitivity: wilson_interval(count, count).low >= s)
        assert exact in (93, first(lambda count: count % 2 == 0 and widest(count) <= 0.2) - 1)
    assert (fewest(0.95), advised(0.95)) == ((20, 12), (73, 93))


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (1, 1), (0, 20), (81, 263), (20, 20), (1, 29)])
def test_the_interval_of_whole_numbers_is_wilsons(hits, total):
    interval = wilson_interval(hits, total)
    assert wilson_bounds(hits / total, total) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_predictive_values_are_those_of_counts():
    # Of 1000 people 80 are ill; 72 of them and 46 of the 920 others are called positive.
    assert predictive_value(0.9, 0.95, 0.08) == pytest.approx((72 / (72 + 46), 874 / (874 + 8)))
    assert predictive_value(0, 1, 0.1) == (0, 0.9)
    assert predictive_value(1, 0, 0.1) == (pytest.approx(0.1), 0)


def test_intervals_of_predictive_values_hold_the_truth():
    rng = np.random.default_rng(8)
    goal = Goal(1, 0.95, prevalence=0.1)
    held = np.zeros(2)
    for _ in range(ROUNDS):
        found = recalibrate(simulate(rng, 60, 60), LABELS, goal, 0.5)
        actual = predictive_value(*truth(found.fit.threshold, found.fit.temperature, goal.log_odds_offset), 0.1)
        for index, name in enumerate(("precision", "negative_predictive_value")):
            metric = found.expected[name]
            held[index] += metric.low <= actual[index] <= metric.high
    assert held.min() >= FEWEST


@pytest.mark.parametrize("prevalence", [None, 0.02, 0.5, 0.9])
def test_probabilities_are_calibrated_for_the_prevalence(prevalence):
    answers = simulate(np.random.default_rng(2), 20_000, 20_000, temperature=2.0)
    goal = Goal(1, 0.95, prevalence)
    found = fit(answers, goal)
    assert found.temperature == pytest.approx(2, rel=0.05)
    score = rescale(answers.probabilities, found.temperature, goal.log_odds_offset, 1)[:, 1]
    weight = np.array(goal.proportions(2))[answers.label] / 20_000
    wanted = 0.5 if prevalence is None else prevalence
    assert weight @ score == pytest.approx(wanted, rel=0.05)  # calibrated in the large
    for low, high in ((0.2, 0.5), (0.5, 0.8)):
        inside = (score >= low) & (score < high)
        fraction = weight[inside & (answers.label == 1)].sum() / weight[inside].sum()
        assert fraction == pytest.approx(np.average(score[inside], weights=weight[inside]), abs=0.05)


@pytest.mark.parametrize("scans", [40, 150])
def test_a_low_prevalence_does_not_flatten_the_answers(scans):
    """With few scans of each label, the temperature of a rare or frequent positive stays near that of equal labels."""
    answers = simulate(np.random.default_rng(3), scans, scans, temperature=2.0)
    equal = fit(answers, GOAL).temperature
    assert equal < 4
    for prevalence in (0.5, 0.1, 0.02, 0.01, 0.001, 0.99):
        assert fit(answers, Goal(1, 0.95, prevalence)).temperature < 2.5 * equal


@pytest.mark.parametrize("prevalence", [0.0001, 0.9999])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_the_threshold_of_an_extreme_prevalence_keeps_the_target(prevalence, temperature):
    answers = simulate(np.random.default_rng(4), 60, 60, temperature=temperature)
    goal = Goal(1, 0.95, prevalence)
    found = fit(answers, goal)
    score = rescale(answers.probabilities, found.temperature, goal.log_odds_offset, 1)
    called = decide(score, 1, found.threshold)
    assert (called == 1)[answers.label == 1].mean() >= 0.95
    assert (called == 0)[answers.label == 0].mean() > 0.7


def test_a_perfect_separation_asks_for_no_certainty():
    """The likelihood alone would take the lowest temperature that it may; one more scan of each label would not."""
    label = np.repeat([0, 1], 30)
    score = np.where(label == 1, 0.75, 0.25)
    answers = Answers(np.stack([1 - score, score], axis=1).astype(np.float32), label, np.arange(60))
    found = fit(answers, GOAL)
    rescaled = rescale(answers.probabilities, found.temperature, 0, 1)
    assert rescaled[label == 1, 1] == pytest.approx(31 / 32, abs=1e-3)
    assert 0.25 < found.threshold < 0.75


def test_rescaling_keeps_the_order_and_survives_extremes():
    score = np.array([0, 1e-30, 1e-12, 1e-3, 0.5, 1 - 1e-3, 1], np.float32)
    raw = np.stack([1 - score, score], axis=1)
    for temperature in (0.01, 1, 100):
        for offset in (-50, 0, 50):
            found = rescale(raw, temperature, offset, 1)
            assert found.dtype == np.float32
            assert np.isfinite(found).all()
            assert found.sum(axis=1) == pytest.approx(1)
            assert (np.diff(found[:, 1]) >= 0).all()
    assert rescale(raw, 1, 0, 1)[3:6] == pytest.approx(raw[3:6], rel=1e-6)
    assert rescale(raw[4:5], 1, math.log(0.2 / 0.8), 1)[0, 1] == pytest.approx(0.2)


def test_too_few_scans_are_refused_and_few_are_reported():
    rng = np.random.default_rng(3)
    with pytest.raises(DataError, match="'yes' has 19 independent scans, too few"):
        recalibrate(simulate(rng, 40, 19), LABELS, GOAL, 0.5)
    with pytest.raises(DataError, match="'no' has 11 independent scans, too few"):
        recalibrate(simulate(rng, 11, 40, copies=9), LABELS, GOAL, 0.5)
    with pytest.raises(DataError, match="At least 100 are needed"):
        recalibrate(simulate(rng, 90, 90), LABELS, Goal(1, 0.99), 0.5)
    answers = simulate(rng, 40, 64)
    answers.group[40:80] = answers.group[40]  # 25 patients, of whom one has 40 scans
    with pytest.raises(DataError, match=r"'yes' has 2 independent scans.*groups of unequal size as fewer: give each"):
        recalibrate(answers, LABELS, GOAL, 0.5)
    few = recalibrate(simulate(rng, 20, 20), LABELS, GOAL, 0.5).warnings
    assert [line[:9] for line in few if "independent" in line] == ["Few scans"] * 2
    assert "the sensitivity could be 0.84; 73 are needed to show 0.95." in few[0]
    assert not any("Few" in line for line in recalibrate(simulate(rng, 93, 73), LABELS, GOAL, 0.5).warnings)


def test_answers_that_say_nothing_are_refused():
    rng = np.random.default_rng(4)
    score = rng.random(200).astype(np.float32)
    answers = Answers(np.stack([1 - score, score], axis=1), np.arange(200) % 2, np.arange(200))
    with pytest.raises(GateError, match="cannot be distinguished from chance: AUC"):
        recalibrate(answers, LABELS, GOAL, 0.5)
    same = Answers(np.full((200, 2), 0.5, np.float32), answers.label, answers.group)
    with pytest.raises(GateError, match=r"AUC 0\.500"):
        recalibrate(same, LABELS, GOAL, None)


def test_swapped_labels_are_refused():
    answers = simulate(np.random.default_rng(5), 60, 60)
    swapped = Answers(answers.probabilities, 1 - answers.label, answers.group)
    with pytest.raises(GateError, match="right labels"):
        recalibrate(swapped, LABELS, GOAL, 0.5)


def test_more_than_two_labels_get_a_temperature_only():
    rng = np.random.default_rng(9)
    label = np.arange(300) % 3
    logits = rng.normal(0, 1, (300, 3)) + 2 * np.eye(3)[label]
    powers = np.exp(3 * logits)
    answers = Answers((powers / powers.sum(axis=1, keepdims=True)).astype(np.float32), label, np.arange(300))
    found = recalibrate(answers, ("a", "b", "c"), Goal(0, 0.95), None)
    assert found.fit.threshold is None
    assert set(found.expected) == {"accuracy"}
    assert found.expected["accuracy"].value == pytest.approx((logits.argmax(axis=1) == label).mean())
    assert found.log_loss < found.log_loss_before


@pytest.mark.parametrize("level", [0.0, 1e-9, 1.0])
def test_scores_at_an_extreme_have_a_threshold(level):
    """Most answers are certain, so only some of the scores can be told apart."""
    answers = simulate(np.random.default_rng(10), 60, 60)
    certain = answers.probabilities.copy()
    certain[::2] = [1 - level, level]
    found = recalibrate(Answers(certain, answers.label, answers.group), LABELS, Goal(1, 0.5), 0.5)
    assert 0 <= found.fit.threshold <= 1
    assert all(0 <= metric.low <= metric.value <= metric.high <= 1 for metric in found.expected.values())
