"""Test metrics of several labels and of grouped images, against scikit-learn and against simulated data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

metrics_of_sklearn = pytest.importorskip("sklearn.metrics", reason="needs the extra 'train'")

from mri_edge.authoring.intervals import wilson_interval
from mri_edge.bundles.manifest import Metric
from mri_edge.train.bundle import metrics_document
from mri_edge.train.data.folder import Scan
from mri_edge.train.evaluation import intervals
from mri_edge.train.evaluation.crossval_figures import false_positive_rate
from mri_edge.train.evaluation.evaluate import score as score_scans
from mri_edge.train.evaluation.intervals import (
    GROUPED_WILSON,
    RESAMPLES,
    auc,
    bootstrap,
    draw_outcomes,
    effective_size,
    grouped_wilson,
    mean_of,
)
from mri_edge.train.evaluation.metrics import (
    GROUPED_INDIRECT,
    LEAST_GROUPS,
    by_label,
    details,
    fraction_metric,
    measure,
    report_text,
    wilson_metric,
)

NAMES = ("glioma", "meningioma", "notumor", "pituitary")


def answers(seed: int, images: int = 240, labels: int = 4, apart: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels (N,) and probabilities float32 (N, labels) that are often right."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, labels, images)
    logits = rng.normal(0, 1, (images, labels))
    logits[np.arange(images), truth] += apart
    powers = np.exp(logits)
    return truth, (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


# --- without a positive label


@pytest.mark.parametrize(("labels", "seed"), [(3, 0), (4, 1), (4, 2), (6, 3)])
def test_metrics_without_a_positive_label_equal_scikit_learn(labels, seed):
    truth, probabilities = answers(seed, labels=labels)
    found = measure(truth, probabilities, None)
    called = probabilities.argmax(axis=1)
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)  # scikit-learn insists on sums of exactly 1
    assert {name: metric.value for name, metric in found.items()} == pytest.approx(
        {
            "accuracy": metrics_of_sklearn.accuracy_score(truth, called),
            "macro_auc": metrics_of_sklearn.roc_auc_score(truth, exact, multi_class="ovr"),
            "macro_sensitivity": metrics_of_sklearn.recall_score(truth, called, average="macro"),
            "macro_precision": metrics_of_sklearn.precision_score(truth, called, average="macro"),
            "macro_f1": metrics_of_sklearn.f1_score(truth, called, average="macro"),
            "brier": ((exact - np.eye(labels)[truth]) ** 2).sum(axis=1).mean(),
            "calibration_error": found["calibration_error"].value,
        },
        rel=1e-5,
    )
    assert found["accuracy"] == wilson_metric(np.count_nonzero(called == truth), len(truth))
    for metric in found.values():
        assert 0 <= metric.low <= metric.value <= metric.high <= 2
        assert metric.images == len(truth)


def test_calibration_error_is_that_of_the_called_label():
    truth, probabilities = answers(4)
    called = probabilities.argmax(axis=1)
    top = probabilities.max(axis=1).astype(np.float64)
    binary = measure((called == truth).astype(int), np.stack([1 - top, top], axis=1).astype(np.float32), 1)
    found = measure(truth, probabilities, None)["calibration_error"]
    assert found.value == pytest.approx(binary["calibration_error"].value, abs=1e-6)


def test_label_that_is_never_called_has_a_precision_of_0_and_one_without_images_counts_in_no_mean():
    truth = np.array([0, 0, 1, 1, 2, 2])
    probabilities = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 1, 1]]  # 2 is never called, 3 has no images
    found = measure(truth, probabilities, None)
    assert found["macro_sensitivity"].value == pytest.approx(2 / 3)
    assert found["macro_precision"].value == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found["macro_f1"].value == pytest.approx((1 + 2 / 3 + 0) / 3)
    labels = by_label(truth, probabilities, probabilities.argmax(axis=1), NAMES)
    assert list(labels) == list(NAMES)
    assert labels["pituitary"] == {}
    assert set(labels["notumor"]) == {"sensitivity", "f1", "auc"}


def test_images_of_one_label_have_no_area():
    found = measure(np.zeros(5, int), np.full((5, 3), 1 / 3, np.float32), None)
    assert "macro_auc" not in found
    assert found["accuracy"].value == 1


def test_interval_of_perfect_answers_is_not_a_point():
    """Every resample of perfect answers is perfect, so a bootstrap alone would claim certainty."""
    truth = np.arange(40) % 4
    found = measure(truth, np.eye(4, dtype=np.float32)[truth], None)
    for name in ("macro_auc", "macro_sensitivity", "macro_precision", "macro_f1"):
        assert (found[name].value, found[name].high) == (1, 1)
        assert found[name].low < 0.95


@pytest.mark.parametrize("apart", [1.0, 3.5])
def test_macro_intervals_cover_the_truth(apart, monkeypatch):
    """With 120 images, 95% intervals contain the value of 200,000 images in at least 91% of 100 samples."""
    monkeypatch.setattr(intervals, "RESAMPLES", 400)  # fewer than in real use, for the 100 repetitions
    names = ("macro_auc", "macro_sensitivity", "macro_precision", "macro_f1")
    truth, probabilities = answers(0, 200_000, 3, apart)
    called = probabilities.argmax(axis=1)
    real = {
        "macro_auc": metrics_of_sklearn.roc_auc_score(
            truth[:20_000], probabilities[:20_000] / probabilities[:20_000].sum(1, keepdims=True), multi_class="ovr"
        ),
        "macro_sensitivity": metrics_of_sklearn.recall_score(truth, called, average="macro"),
        "macro_precision": metrics_of_sklearn.precision_score(truth, called, average="macro"),
        "macro_f1": metrics_of_sklearn.f1_score(truth, called, average="macro"),
    }
    covered = dict.fromkeys(names, 0)
    for seed in range(1, 101):
        found = measure(*answers(seed, 120, 3, apart), None)
        for name in names:
            covered[name] += found[name].low <= real[name] <= found[name].high
    assert min(covered.values()) >= 0.91 * 100


# --- each label


@pytest.mark.parametrize("group", [None, np.arange(240) // 3])
def test_metrics_of_each_label_equal_those_of_two_labels(group):
    truth, probabilities = answers(5)
    called = probabilities.argmax(axis=1)
    found = by_label(truth, probabilities, called, NAMES, group)
    for index, name in enumerate(NAMES):
        of_label, score = truth == index, probabilities[:, index].astype(float)
        precision, sensitivity, f1, _ = metrics_of_sklearn.precision_recall_fscore_support(
            of_label, called == index, average="binary"
        )
        values = {key: metric["value"] for key, metric in found[name].items()}
        assert values == pytest.approx(
            {
                "sensitivity": sensitivity,
                "precision": precision,
                "f1": f1,
                "auc": metrics_of_sklearn.roc_auc_score(of_label, score),
            }
        )
        assert found[name]["auc"] == asdict(auc(of_label, score, group))
        of_group = None if group is None else group[of_label]
        assert found[name]["sensitivity"] == asdict(fraction_metric((called == index)[of_label], of_group))


def test_two_labels_give_the_metrics_of_the_positive_one():
    truth, probabilities = answers(6, labels=2)
    called, group = probabilities.argmax(axis=1), np.arange(240) // 2
    whole = measure(truth, probabilities, 1, None, group)
    found = by_label(truth, probabilities, called, ("no", "yes"), group)["yes"]
    assert found == {name: asdict(whole[name]) for name in ("sensitivity", "precision", "f1", "auc")}


def test_rows_are_named_by_label():
    truth, probabilities = answers(7)
    called = probabilities.argmax(axis=1)
    found = details(truth, probabilities, None, names=NAMES)
    assert [row for row in found["report"] if row in NAMES] == list(NAMES)
    assert found["labels"] == list(NAMES)
    assert found["confusion_matrix"] == metrics_of_sklearn.confusion_matrix(truth, called).tolist()
    assert found["roc"] is None
    text = report_text(truth, called, NAMES)
    assert [line.split()[0] for line in text.splitlines()[2:6]] == list(NAMES)
    assert "accuracy" in text
    missing = report_text(np.zeros(4, int), np.zeros(4, int), ("healthy", "tumor"))
    assert "tumor" in missing


def test_evaluation_without_a_positive_label_has_the_metrics_of_each_label():
    truth, probabilities = answers(8)
    called = probabilities.argmax(axis=1)
    scans = [Scan(Path("x"), f"{NAMES[one]}/{i}.png", NAMES[one], int(one), f"{i:064x}") for i, one in enumerate(truth)]
    found = score_scans(scans, probabilities, None, None, names=NAMES)
    assert found["metrics"] == {name: asdict(one) for name, one in measure(truth, probabilities, None).items()}
    assert found["by_label"] == by_label(truth, probabilities, called, NAMES)
    assert found["roc"] is None
    assert set(found["roc_by_label"]) == set(NAMES)
    assert [point["images"] for point in found["reliability"]] == [24] * 10
    right = sum(point["share"] * point["images"] for point in found["reliability"])
    assert right == pytest.approx(np.count_nonzero(called == truth))


def test_positive_label_among_several_keeps_its_metrics():
    truth, probabilities = answers(9)
    scans = [Scan(Path("x"), f"{NAMES[one]}/{i}.png", NAMES[one], int(one), f"{i:064x}") for i, one in enumerate(truth)]
    found = score_scans(scans, probabilities, 2, 0.3, names=NAMES)
    assert set(found["metrics"]) >= {"auc", "sensitivity", "specificity"}
    assert found["roc"] is not None
    called = [prediction["called"] for prediction in found["predictions"]]
    assert found["by_label"] == by_label(truth, probabilities, np.array(called), NAMES)


def test_metrics_document_names_labels_only_if_there_are_more_than_two():
    def document(labels, positive):
        truth, probabilities = answers(10, labels=labels)
        metrics: dict[str, Metric] = {}
        files = [f"{label}/{index}.png" for index, label in enumerate(truth)]
        names = NAMES[:labels]
        return json.loads(metrics_document(files, truth, probabilities, positive, None, metrics, [], names=names))

    two, four = document(2, 1), document(4, None)
    assert set(two) == {"metrics", "report", "confusion_matrix", "roc", "folders", "test", "history"}
    assert {"0", "1"} < set(two["report"])
    assert set(four) == {*two, "labels", "by_label"}
    assert set(NAMES) < set(four["report"])
    assert four["roc"] is None


def test_metrics_document_keeps_the_groups_of_its_images():
    truth, probabilities = answers(13)
    group = np.arange(240) // 4
    files = [f"{NAMES[label]}/{index}.png" for index, label in enumerate(truth)]

    def document(group):
        arguments = (files, truth, probabilities, None, None, {}, [])
        return json.loads(metrics_document(*arguments, names=NAMES, group=group))

    found, alone = document(group), document(None)
    assert [image["group"] for image in found["test"]] == group.tolist()
    assert all("group" not in image for image in alone["test"])
    assert found["by_label"] == by_label(truth, probabilities, probabilities.argmax(axis=1), NAMES, group)


# --- groups


def test_proportion_of_groups_of_one_image_is_that_of_independent_images():
    hits = np.arange(30) % 4 > 0
    assert fraction_metric(hits, np.arange(30)[::-1] * 3) == fraction_metric(hits)
    assert effective_size(hits, np.arange(30)) == 30


def test_copies_add_little_to_a_proportion():
    hits = np.arange(40) % 5 > 0
    copied = fraction_metric(hits.repeat(10), np.arange(40).repeat(10))
    once = wilson_interval(32, 40)
    assert copied.method == GROUPED_WILSON
    assert copied.images == 400
    assert copied.value == once.value
    # The variance of 40 values is estimated, hence Student's t and 39 in place of 40.
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=0.01)
    assert copied.high - copied.low > once.high - once.low


def test_groups_of_equal_images_without_errors_count_once():
    found = grouped_wilson(np.ones(60, bool), np.arange(60) // 6)
    assert (found.value, found.high) == (1, 1)
    assert 0.65 < found.low < wilson_interval(10, 10).low
    alone = grouped_wilson(np.ones(8, bool), np.zeros(8, int))
    assert alone.low == pytest.approx(wilson_interval(1, 1).low)
    mixed = grouped_wilson(np.arange(8) > 2, np.zeros(8, int))
    assert 0 < mixed.low < 5 / 8 < mixed.high < 1
    assert mixed.high - mixed.low > 0.7


@pytest.mark.parametrize("rarer", [False, True])
def test_more_mistakes_never_raise_the_lower_bound(rarer):
    """One mistake alone says as little as none about how alike the images of a group are."""
    group = np.arange(1000) // 10
    bounds = []
    for mistakes in range(12):
        hits = np.ones(1000, bool)
        hits[: 10 * mistakes : 10] = False
        found = grouped_wilson(hits != rarer, group)
        bounds.append(1 - found.high if rarer else found.low)
    assert bounds[1] < bounds[0]
    widths = 1 - np.arange(12) / 1000 - np.array(bounds)
    assert (widths[:5] > 0.009).all()  # copies: 100 images, of which none to four are wrong
    assert widths[11] < widths[4]


@pytest.mark.parametrize(
    ("groups", "images", "value", "correlation"),
    [
        *((60, 3, 0.9, 0.9), (200, 5, 0.95, 0.5), (40, 20, 0.8, 0.2), (30, 1, 0.9, 0.0), (300, 4, 0.97, 0.9)),
        *((30, 20, 0.97, 0.5), (50, 10, 0.98, 0.3), (100, 10, 0.99, 0.2)),  # few groups with mistakes
    ],
)
def test_grouped_intervals_cover_the_truth(groups, images, value, correlation):
    """Intervals for independent images cover it in as few as half of the samples."""
    rng = np.random.default_rng(0)
    group = np.arange(groups).repeat(images)
    samples, covered, naive = 500, 0, 0
    for _ in range(samples):
        if correlation:
            odds = (1 - correlation) / correlation
            of_group = rng.beta(value * odds, (1 - value) * odds, groups)
        else:
            of_group = np.full(groups, value)
        hits = rng.random(len(group)) < of_group[group]
        found, plain = fraction_metric(hits, group), fraction_metric(hits)
        covered += found.low <= value <= found.high
        naive += plain.low <= value <= plain.high
    assert 0.92 <= covered / samples <= 0.995
    assert covered >= naive - 5


def test_all_intervals_of_a_positive_label_account_for_groups():
    truth, probabilities = answers(11, labels=2)
    alone = measure(truth, probabilities, 1)
    copied = measure(truth.repeat(6), probabilities.repeat(6, axis=0), 1, None, np.arange(240).repeat(6))
    naive = measure(truth.repeat(6), probabilities.repeat(6, axis=0), 1)
    for name, metric in copied.items():
        assert metric.value == pytest.approx(alone[name].value, abs=0.01)  # bins of the calibration error may differ
        assert metric.high - metric.low == pytest.approx(alone[name].high - alone[name].low, rel=0.3)
        assert metric.high - metric.low > 1.5 * (naive[name].high - naive[name].low)
        assert metric.method != naive[name].method
    assert copied["f1"].method == GROUPED_INDIRECT


def test_intervals_without_a_positive_label_account_for_groups():
    truth, probabilities = answers(12)
    copied = measure(truth.repeat(6), probabilities.repeat(6, axis=0), None, None, np.arange(240).repeat(6))
    naive = measure(truth.repeat(6), probabilities.repeat(6, axis=0), None)
    for name, metric in copied.items():
        assert metric.high - metric.low > 1.5 * (naive[name].high - naive[name].low)


def test_one_group_of_a_class_gives_no_interval_of_the_calibration():
    """Every resample would contain the same images."""
    truth, probabilities = np.arange(40) % 2, answers(0, images=40, labels=2)[1]
    assert not {"brier", "calibration_error"} & measure(truth, probabilities, 1, None, truth).keys()
    mixed = np.where(truth == 1, 50, np.arange(40))  # many groups of one class, one of the other
    assert not {"brier", "calibration_error"} & measure(truth, probabilities, 1, None, mixed).keys()
    assert {"brier", "calibration_error"} <= measure(truth, probabilities, 1, None, np.arange(40) // 4).keys()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("positive", [None, 1])
def test_few_groups_of_a_class_give_no_interval_of_the_calibration(positive, grouped):
    """Resamples of few groups or images are too alike: the interval of one image would be a point."""
    for least in (1, 2, LEAST_GROUPS - 1, LEAST_GROUPS):
        truth = np.repeat([0, 1], [30, least])
        probabilities = answers(0, images=len(truth), labels=2)[1]
        group = np.arange(len(truth)).repeat(3) if grouped else None
        if grouped:
            truth, probabilities = truth.repeat(3), probabilities.repeat(3, axis=0)
        found = measure(truth, probabilities, positive, None, group)
        expected = {"brier", "calibration_error"} if least >= LEAST_GROUPS else set()
        assert {"brier", "calibration_error"} & found.keys() == expected


def in_groups(rng, groups, images, distance, correlation):
    """Labels, scores and groups of as many groups of each class."""
    group = np.arange(2 * groups).repeat(images)
    positive = group < groups
    shared = np.sqrt(correlation) * rng.normal(size=2 * groups)[group]
    return positive, distance * positive + shared + np.sqrt(1 - correlation) * rng.normal(size=len(group)), group


@pytest.mark.parametrize("groups", [3, 5, 20])
def test_area_of_few_groups_is_covered(groups):
    """With the normal distribution in the place of Student's t: 0.82 with 3 groups of each class."""
    rng = np.random.default_rng(6)
    truth = norm.cdf(1.5 / np.sqrt(2))
    found = [auc(*in_groups(rng, groups, 20, 1.5, 0.7)) for _ in range(200)]
    assert np.mean([metric.low <= truth <= metric.high for metric in found]) >= 0.92


def test_false_positive_rate_accounts_for_the_threshold_that_it_chooses():
    """Wilson's interval of a fixed threshold covers the truth in 0.69 of such samples."""
    rng = np.random.default_rng(7)
    truth = norm.sf(2 - norm.ppf(0.95))
    found = [false_positive_rate(*in_groups(rng, 100, 1, 2, 0)) for _ in range(60)]
    assert np.mean([metric["low"] <= truth <= metric["high"] for metric in found]) >= 0.9
    perfect = false_positive_rate(np.arange(40) % 2 == 1, np.arange(40) % 2 + 0.0, np.arange(40))
    assert (perfect["value"], perfect["low"]) == (0, 0)
    assert perfect["high"] > 0.1  # resamples are all alike


def test_bootstrap_draws_groups_within_each_of_several_classes():
    label = np.array([2, 2, 0, 0, 1, 1, 1, 0, 2])
    group = np.array([5, 5, 3, 3, 4, 8, 9, 1, 1])  # group 1 has images of two classes
    drawn = bootstrap(lambda weights: {str(i): weights[:, i] for i in range(9)}, label, group)
    weights = np.stack(list(drawn.values()), axis=1)
    assert weights.shape == (RESAMPLES, 9)
    np.testing.assert_array_equal(weights[:, :4], 1)  # the only groups of their classes
    np.testing.assert_array_equal(weights[:, 7:], 1)
    np.testing.assert_array_equal(weights[:, 4:7].sum(axis=1), 3)
    assert weights[:, 4].std() > 0.5


def test_images_of_a_group_share_their_outcome():
    probability = np.full(12, 0.5)
    outcomes = []
    draw_outcomes(lambda drawn: outcomes.append(drawn) or drawn.mean(axis=1), probability, np.arange(12) // 4)
    drawn = np.concatenate(outcomes)
    for start in (0, 4, 8):
        assert (drawn[:, start : start + 4] == drawn[:, start : start + 1]).all()
    assert (drawn[:, 0] != drawn[:, 4]).mean() == pytest.approx(0.5, abs=0.05)


def test_mean_of_independent_metrics_adds_their_distances_in_squares():
    parts = [Metric(0.9, 0.8, 0.95, 10, ""), Metric(0.7, 0.7, 0.8, 20, "")]
    found = mean_of(parts, 30)
    assert (found.value, found.images) == (pytest.approx(0.8), 30)
    assert found.low == pytest.approx(0.8 - 0.1 / 2)
    assert found.high == pytest.approx(0.8 + np.hypot(0.05, 0.1) / 2)
