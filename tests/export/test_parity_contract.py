"""The gate on both sides of each limit, and that it refuses only artifacts that are worse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from mri_edge.authoring.teacher import TeacherAnswers
from mri_edge.export.parity.comparison import ReferenceImages, compare, paired_change
from mri_edge.export.parity.gate import DEFAULT_GATES

Z = 1.959964
UNCERTAIN = (0.55, 0.45)


def compared(manifest, precision, reference, answer, labels, teacher=None):
    """Compare an artifact's probabilities (N, 2) with the Keras model's by the default gate of a precision."""
    files = tuple(f"{index}.png" for index in range(len(labels)))
    images = ReferenceImages(files, ({},) * len(labels), np.asarray(labels), np.asarray(reference, np.float32), teacher)
    answer = np.asarray(answer, np.float32)
    return compare(answer, images, manifest, DEFAULT_GATES[precision], engine="onnxruntime", provider="cpu", threads=1)


def swapped(rows, count):
    """Exchange the two probabilities in the first ``count`` rows."""
    rows = np.array(rows)
    rows[:count] = rows[:count, ::-1]
    return rows


@pytest.mark.parametrize("precision", ["int8", "dynamic"])
@pytest.mark.parametrize(("labels", "verdict"), [(1, "met"), (0, "not met")], ids=["all better", "all worse"])
def test_only_an_artifact_that_is_worse_than_its_keras_model_is_refused(tiny_manifest, precision, labels, verdict):
    """Nine of 400 labels change, to all right or all wrong; exact McNemar p = 0.004 in both cases."""
    reference = np.tile(UNCERTAIN, (400, 1))
    truth = np.zeros(400, np.intp)
    truth[:9] = labels
    result = compared(tiny_manifest, precision, reference, swapped(reference, 9), truth)
    assert len(result.flips) == 9
    assert result.mcnemar_p < 0.01
    assert result.verdict == verdict
    assert any("fewer right answers than the Keras model" in reason for reason in result.reasons) == (labels == 0)


@pytest.mark.parametrize(("labels", "verdict"), [(1, "met"), (0, "not met")], ids=["better", "worse"])
def test_only_a_student_that_is_worse_than_its_teacher_is_refused(tiny_manifest, labels, verdict):
    answer = swapped(np.tile(UNCERTAIN, (400, 1)), 9)
    truth = np.zeros(400, np.intp)
    truth[:9] = labels
    teacher = TeacherAnswers(("big (robust, seed 0)",), (0,) * 400, (UNCERTAIN,) * 400)
    result = compared(tiny_manifest, "int8", answer, answer, truth, teacher)
    assert result.flips == ()
    assert result.teacher is not None
    assert result.teacher.mcnemar_p < 0.01
    assert result.verdict == verdict


@pytest.mark.parametrize(("lost", "verdict"), [(5, "met"), (6, "not met")])
def test_the_level_of_significance_is_5_percent(tiny_manifest, lost, verdict):
    """If five labels become wrong, p is 0.0625; if six do, p is 0.031."""
    reference = np.tile(UNCERTAIN, (600, 1))
    result = compared(tiny_manifest, "int8", reference, swapped(reference, lost), np.zeros(600, np.intp))
    assert result.verdict == verdict


@pytest.mark.parametrize(
    ("precision", "shift", "verdict"),
    [
        ("float32", 0.9e-4, "met"),
        ("float32", 1.1e-4, "not met"),
        ("float16", 4.5e-3, "met"),
        ("float16", 5.5e-3, "not met"),
        ("int8", 0.019, "met"),
        ("int8", 0.021, "not met"),
        ("dynamic", 0.019, "met"),
        ("dynamic", 0.021, "not met"),
    ],
)
def test_verdict_changes_at_the_limit_of_the_difference(tiny_manifest, precision, shift, verdict):
    reference = np.tile((0.2, 0.8), (100, 1))
    result = compared(tiny_manifest, precision, reference, reference + np.array([shift, -shift]), np.ones(100, np.intp))
    assert result.verdict == verdict


@pytest.mark.parametrize("precision", ["int8", "dynamic"])
@pytest.mark.parametrize(("changed", "verdict"), [(8, "met"), (24, "undecided"), (40, "not met")])
def test_at_most_5_percent_of_the_labels_may_change_with_95_percent_confidence(
    tiny_manifest, precision, changed, verdict
):
    """Of 400 labels: 8 are at most 3.6%, 24 are 4.1% to 8.4%, 40 are at least 7.6%. Half of them become right."""
    reference = np.tile((0.501, 0.499), (400, 1))
    truth = np.zeros(400, np.intp)
    truth[: changed // 2] = 1
    result = compared(tiny_manifest, precision, reference, swapped(reference, changed), truth)
    assert result.verdict == verdict


def test_figures_of_a_comparison_equal_those_of_numpy(tiny_manifest):
    rng = np.random.default_rng(0)
    first, second = (
        np.stack([1 - positive, positive], axis=1).astype(np.float32) for positive in rng.uniform(0.01, 0.99, (2, 300))
    )
    truth = rng.integers(0, 2, 300)
    result = compared(tiny_manifest, "int8", first, second, truth)
    difference = np.abs(first.astype(float) - second)
    assert result.max_difference == pytest.approx(difference.max())
    assert result.mean_difference == pytest.approx(difference.mean())
    assert result.p99_difference == pytest.approx(np.quantile(difference, 0.99))
    before, after = (answer.argmax(axis=1) for answer in (first, second))
    assert result.accuracy.value == pytest.approx(np.mean(after == truth))
    for change, label in ((result.specificity, 0), (result.sensitivity, 1)):
        proportions = [np.mean(answer[truth == label] == label) for answer in (before, after)]
        assert (change.reference, change.artifact) == pytest.approx(tuple(proportions))
        assert change.change == pytest.approx(proportions[1] - proportions[0])
        assert change.low < change.change < change.high
    assert result.summary().flips == np.count_nonzero(before != after) == len(result.flips)


def test_the_threshold_of_the_manifest_decides_the_labels(tiny_manifest):
    reference = np.tile((0.3, 0.7), (300, 1))
    strict = replace(tiny_manifest, threshold=0.695)
    result = compared(strict, "int8", reference, reference + np.array([0.01, -0.01]), np.ones(300, np.intp))
    assert len(result.flips) == 300
    assert (result.sensitivity.reference, result.sensitivity.artifact) == (1, 0)


@pytest.mark.parametrize(
    ("both", "lost", "gained", "neither"),
    [(36, 12, 2, 0), (40, 3, 1, 8), (60, 6, 2, 22), (20, 1, 9, 21), (5, 0, 0, 46)],
)
def test_a_paired_change_has_the_interval_of_newcombe(both, lost, gained, neither):
    """R. G. Newcombe, Statistics in Medicine 17, 1998, pages 2635 to 2650, method 10, implemented independently."""
    n = both + lost + gained + neither

    def wilson(hits):
        middle = (hits + Z * Z / 2) / (n + Z * Z)
        half_width = Z / (n + Z * Z) * math.sqrt(hits * (n - hits) / n + Z * Z / 4)
        return middle - half_width, middle + half_width

    before, after = both + lost, both + gained
    (low_before, high_before), (low_after, high_after) = wilson(before), wilson(after)
    product = both * neither - lost * gained
    corrected = product - n / 2 if product > n / 2 else min(product, 0)
    phi = corrected / math.sqrt(before * (n - before) * after * (n - after)) if before * after < n * n else 0
    change = (after - before) / n
    down, up = after / n - low_after, high_before - before / n
    below = math.sqrt(down**2 + up**2 - 2 * phi * down * up)
    up, down = high_after - after / n, before / n - low_before
    above = math.sqrt(up**2 + down**2 - 2 * phi * up * down)
    flags = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], bool).repeat([both, lost, gained, neither], axis=0)
    result = paired_change(flags[:, 0], flags[:, 1])
    assert (result.value, result.low, result.high) == pytest.approx((change, change - below, change + above), abs=1e-5)


def test_a_paired_change_equals_the_published_example():
    """Table II of the same paper: of 50 pairs, 36 are right in both, 12 and 2 in one, 0 in neither."""
    flags = np.array([[1, 1], [1, 0], [0, 1]], bool).repeat([36, 12, 2], axis=0)
    result = paired_change(flags[:, 1], flags[:, 0])
    assert (result.value, result.low, result.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)
