"""Significance tests and intervals by known values, and the three verdicts of the gate."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from mri_edge.authoring.intervals import wilson_interval
from mri_edge.authoring.teacher import TeacherAnswers
from mri_edge.export.parity.comparison import ReferenceImages, compare, mcnemar, paired_change
from mri_edge.export.parity.gate import DEFAULT_GATES, Gate, exact_bounds, images_needed


def test_wilson_interval_is_its_formula():
    share, images, z = 45 / 51, 51, 1.959964
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    reach = z / (1 + z * z / images) * np.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2)
    found = wilson_interval(45, 51)
    assert (found.value, found.low, found.high) == pytest.approx((share, middle - reach, middle + reach), abs=1e-6)


def test_one_sided_bound_without_an_event_is_the_rule_of_three():
    below, above = exact_bounds(0, 51)
    assert below == 0
    assert above == pytest.approx(1 - 0.05 ** (1 / 51))
    assert exact_bounds(0, images_needed(0.05))[1] <= 0.05 < exact_bounds(0, images_needed(0.05) - 1)[1]


@pytest.mark.parametrize(("lost", "gained", "p"), [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (8, 1, 0.0390625)])
def test_mcnemar_is_the_exact_binomial(lost, gained, p):
    first = np.array([True] * lost + [False] * gained + [True] * 30)
    second = np.array([False] * lost + [True] * gained + [True] * 30)
    assert mcnemar(first, second) == pytest.approx(p)


def test_paired_interval_covers_the_truth():
    """By simulation: 2,000 studies of 51 pairs. A 95% interval must cover in about 95%; 93% leaves room for chance."""
    rng = np.random.default_rng(0)
    chances = np.array([0.75, 0.08, 0.05, 0.12])  # both, lost, gained, neither
    covered = 0
    for kinds in rng.choice(4, size=(2000, 51), p=chances):
        found = paired_change(np.isin(kinds, (0, 1)), np.isin(kinds, (0, 2)))
        covered += found.low <= chances[2] - chances[1] <= found.high
    assert covered / 2000 > 0.93


def comparison(manifest, gate, images=51, flips=0, shift=0.001, accuracy_lost=0, teacher=None):
    """An artifact that is off by ``shift`` everywhere and flips the first images; those lost were right before."""
    reference = np.tile(np.array([[0.2, 0.8]], np.float32), (images, 1))
    answer = reference + np.array([[shift, -shift]], np.float32)
    answer[:flips] = [[0.6, 0.4]]
    labels = np.ones(images, np.intp)
    labels[accuracy_lost:flips] = 0
    files = tuple(f"{index}.png" for index in range(images))
    shown = ReferenceImages(files, ({},) * images, labels, reference, teacher)
    return compare(answer, shown, manifest, gate, engine="fake", provider="none", threads=1)


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
def test_the_three_verdicts(tiny_manifest, precision, options, verdict):
    found = comparison(tiny_manifest, DEFAULT_GATES[precision], **options)
    assert found.verdict == verdict
    assert bool(found.reasons) == (verdict != "met")


@pytest.mark.parametrize(("wrong", "verdict"), [(4, "met"), (9, "not met")])
def test_student_is_also_compared_with_its_teacher(tiny_manifest, wrong, verdict):
    """The artifact is its own Keras model's equal; the teacher called all rightly, the student all but ``wrong``."""
    every = 400
    called = [0] * every  # the labels below
    teacher = TeacherAnswers(("big (robust, seed 0)",), tuple(called), ((0.9, 0.1),) * every)
    answer = np.tile(np.array([[0.8, 0.2]], np.float32), (every, 1))
    answer[:wrong] = [[0.3, 0.7]]
    files = tuple(f"{index}.png" for index in range(every))
    judges = ReferenceImages(files, ({},) * every, np.zeros(every, np.intp), answer, teacher)
    found = compare(answer, judges, tiny_manifest, DEFAULT_GATES["int8"], engine="fake", provider="none", threads=1)
    assert found.verdict == verdict
    assert found.flips == ()
    assert found.teacher is not None
    assert (found.teacher.changed, found.teacher.accuracy.value) == (wrong, 1.0)
    assert any("fewer right answers than the teacher" in reason for reason in found.reasons) == (verdict == "not met")


def test_nan_is_never_met(tiny_manifest):
    assert comparison(tiny_manifest, Gate(1.0, None, None), shift=float("nan")).verdict == "not met"


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_nan_is_refused_with_both_labels_present(tiny_manifest, precision):
    reference = np.tile(np.array([[0.2, 0.8]], np.float32), (6, 1))
    answer = reference.copy()
    answer[4] = np.nan
    judges = ReferenceImages(("x.png",) * 6, ({},) * 6, np.array([0, 1, 0, 1, 0, 1]), reference)
    found = compare(answer, judges, tiny_manifest, DEFAULT_GATES[precision], engine="fake", provider="none", threads=1)
    assert found.verdict == "not met"
    assert found.auc.change is None


def test_flips_are_listed_by_file_with_both_probabilities(tiny_manifest):
    found = comparison(tiny_manifest, DEFAULT_GATES["int8"], flips=2, accuracy_lost=2)
    assert [flip.file for flip in found.flips] == ["0.png", "1.png"]
    assert found.flips[0].reference_label == "yes"
    assert found.flips[0].artifact_label == "no"
    assert found.flips[0].reference_probability == pytest.approx(0.8)
    assert found.first_difference == "logits"


def test_flips_follow_the_threshold_of_the_manifest(tiny_manifest):
    strict = dataclasses.replace(tiny_manifest, threshold=0.7995)
    found = [comparison(manifest, DEFAULT_GATES["float16"], shift=0.001) for manifest in (tiny_manifest, strict)]
    assert [len(result.flips) for result in found] == [0, 51]


def test_sensitivity_and_specificity_are_of_their_own_labels(tiny_manifest):
    found = comparison(tiny_manifest, DEFAULT_GATES["int8"], flips=4, accuracy_lost=2)
    assert found.sensitivity.reference == 1
    assert found.sensitivity.artifact == pytest.approx(47 / 49)
    assert found.specificity.reference == 0
    assert found.specificity.artifact == 1
    assert found.auc.change is not None
    assert found.auc.change > 0


def test_one_label_alone_has_no_auc_and_stays_json(tiny_manifest):
    found = comparison(tiny_manifest, DEFAULT_GATES["int8"])
    assert found.auc.change is None
    assert found.specificity.change is None
    values = itertools.chain.from_iterable(
        figure.values() for figure in found.to_dict().values() if isinstance(figure, dict)
    )
    assert not any(isinstance(value, float) and np.isnan(value) for value in values)
