"""Significance tests and intervals give known values, and the gate gives its three verdicts."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from mri_edge.authoring.intervals import wilson_interval
from mri_edge.authoring.teacher import TeacherAnswers
from mri_edge.export.parity.comparison import ReferenceImages, compare, mcnemar, paired_change
from mri_edge.export.parity.gate import DEFAULT_GATES, Gate, exact_bounds, images_needed


def test_wilson_interval_equals_its_formula():
    proportion, images, z = 45 / 51, 51, 1.959964
    middle = (proportion + z * z / (2 * images)) / (1 + z * z / images)
    half_width = z / (1 + z * z / images) * np.sqrt(proportion * (1 - proportion) / images + (z / (2 * images)) ** 2)
    interval = wilson_interval(45, 51)
    expected = (proportion, middle - half_width, middle + half_width)
    assert (interval.value, interval.low, interval.high) == pytest.approx(expected, abs=1e-6)


def test_one_sided_bound_without_an_event_is_the_rule_of_three():
    lower, upper = exact_bounds(0, 51)
    assert lower == 0
    assert upper == pytest.approx(1 - 0.05 ** (1 / 51))
    assert exact_bounds(0, images_needed(0.05))[1] <= 0.05 < exact_bounds(0, images_needed(0.05) - 1)[1]


@pytest.mark.parametrize(("lost", "gained", "p"), [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (8, 1, 0.0390625)])
def test_mcnemar_p_value_is_that_of_the_exact_binomial_test(lost, gained, p):
    first = np.array([True] * lost + [False] * gained + [True] * 30)
    second = np.array([False] * lost + [True] * gained + [True] * 30)
    assert mcnemar(first, second) == pytest.approx(p)


def test_paired_interval_has_its_nominal_coverage():
    """In simulated studies of 51 pairs, about 95% of the intervals contain the true change; 93% allows for chance."""
    rng = np.random.default_rng(0)
    chances = np.array([0.75, 0.08, 0.05, 0.12])  # both, lost, gained, neither
    covered = 0
    for kinds in rng.choice(4, size=(2000, 51), p=chances):
        change = paired_change(np.isin(kinds, (0, 1)), np.isin(kinds, (0, 2)))
        covered += change.low <= chances[2] - chances[1] <= change.high
    assert covered / 2000 > 0.93


def comparison(manifest, gate, images=51, flips=0, shift=0.001, accuracy_lost=0, teacher=None):
    """Compare an artifact that differs by ``shift`` everywhere and changes the labels of the first ``flips`` images.

    The Keras model is right for the first ``accuracy_lost`` of these, and the artifact for the others.
    """
    reference = np.tile(np.array([[0.2, 0.8]], np.float32), (images, 1))
    answer = reference + np.array([[shift, -shift]], np.float32)
    answer[:flips] = [[0.6, 0.4]]
    labels = np.ones(images, np.intp)
    labels[accuracy_lost:flips] = 0
    files = tuple(f"{index}.png" for index in range(images))
    reference_images = ReferenceImages(files, ({},) * images, labels, reference, teacher)
    return compare(answer, reference_images, manifest, gate, engine="fake", provider="none", threads=1)


@pytest.mark.parametrize(
    ("precision", "options", "verdict"),
    [
        ("float32", {"shift": 1e-5}, "met"),
        ("float32", {"shift": 2e-4}, "not met"),
        ("float16", {"shift": 2e-3}, "met"),
        ("float16", {"shift": 2e-2}, "not met"),
        ("int8", {}, "undecided"),
        ("int8", {"images": 59}, "met"),
        ("int8", {"images": 400, "flips": 8, "accuracy_lost": 4}, "met"),
        ("int8", {"images": 400, "flips": 40, "shift": 0.0, "accuracy_lost": 20}, "not met"),
        ("int8", {"shift": 0.05}, "not met"),
        ("int8", {"images": 2000, "flips": 10, "accuracy_lost": 10}, "not met"),
    ],
)
def test_verdict_of_the_gate(tiny_manifest, precision, options, verdict):
    result = comparison(tiny_manifest, DEFAULT_GATES[precision], **options)
    assert result.verdict == verdict
    assert bool(result.reasons) == (verdict != "met")


@pytest.mark.parametrize(("wrong", "verdict"), [(4, "met"), (9, "not met")])
def test_a_student_is_also_compared_with_its_teacher(tiny_manifest, wrong, verdict):
    """The artifact equals its Keras model. The teacher labels all images correctly, the student all but ``wrong``."""
    count = 400
    teacher = TeacherAnswers(("big (robust, seed 0)",), (0,) * count, ((0.9, 0.1),) * count)
    answer = np.tile(np.array([[0.8, 0.2]], np.float32), (count, 1))
    answer[:wrong] = [[0.3, 0.7]]
    files = tuple(f"{index}.png" for index in range(count))
    images = ReferenceImages(files, ({},) * count, np.zeros(count, np.intp), answer, teacher)
    result = compare(answer, images, tiny_manifest, DEFAULT_GATES["int8"], engine="fake", provider="none", threads=1)
    assert result.verdict == verdict
    assert result.flips == ()
    assert result.teacher is not None
    assert (result.teacher.changed, result.teacher.accuracy.value) == (wrong, 1.0)
    assert any("fewer right answers than the teacher" in reason for reason in result.reasons) == (verdict == "not met")


def test_nan_does_not_meet_the_gate(tiny_manifest):
    assert comparison(tiny_manifest, Gate(1.0, None, None), shift=float("nan")).verdict == "not met"


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_nan_does_not_meet_the_gate_if_both_labels_are_present(tiny_manifest, precision):
    reference = np.tile(np.array([[0.2, 0.8]], np.float32), (6, 1))
    answer = reference.copy()
    answer[4] = np.nan
    images = ReferenceImages(("x.png",) * 6, ({},) * 6, np.array([0, 1, 0, 1, 0, 1]), reference)
    result = compare(answer, images, tiny_manifest, DEFAULT_GATES[precision], engine="fake", provider="none", threads=1)
    assert result.verdict == "not met"
    assert result.auc.change is None


def test_flips_name_the_file_and_both_probabilities(tiny_manifest):
    result = comparison(tiny_manifest, DEFAULT_GATES["int8"], flips=2, accuracy_lost=2)
    assert [flip.file for flip in result.flips] == ["0.png", "1.png"]
    assert result.flips[0].reference_label == "yes"
    assert result.flips[0].artifact_label == "no"
    assert result.flips[0].reference_probability == pytest.approx(0.8)
    assert result.first_difference == "logits"


def test_labels_depend_on_the_threshold_of_the_manifest(tiny_manifest):
    strict = dataclasses.replace(tiny_manifest, threshold=0.7995)
    results = [comparison(manifest, DEFAULT_GATES["float16"], shift=0.001) for manifest in (tiny_manifest, strict)]
    assert [len(result.flips) for result in results] == [0, 51]


def test_sensitivity_and_specificity_count_only_images_of_their_label(tiny_manifest):
    result = comparison(tiny_manifest, DEFAULT_GATES["int8"], flips=4, accuracy_lost=2)
    assert result.sensitivity.reference == 1
    assert result.sensitivity.artifact == pytest.approx(47 / 49)
    assert result.specificity.reference == 0
    assert result.specificity.artifact == 1
    assert result.auc.change is not None
    assert result.auc.change > 0


def test_without_images_of_both_labels_there_is_no_auc_and_no_nan(tiny_manifest):
    result = comparison(tiny_manifest, DEFAULT_GATES["int8"])
    assert result.auc.change is None
    assert result.specificity.change is None
    values = itertools.chain.from_iterable(
        figure.values() for figure in result.to_dict().values() if isinstance(figure, dict)
    )
    assert not any(isinstance(value, float) and np.isnan(value) for value in values)
