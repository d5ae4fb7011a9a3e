"""The parity gate on both sides of each limit, with values that were calculated by hand, without TensorFlow."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from mri_edge.authoring.intervals import wilson_interval
from mri_edge.authoring.teacher import TeacherAnswers
from mri_edge.bundles.manifest import Manifest

pytest.importorskip("sklearn", reason="needs the extra 'export'")
stats = pytest.importorskip("scipy.stats", reason="needs the extra 'export'")

from mri_edge.export.parity.comparison import Comparison, ReferenceImages, compare, mcnemar, paired_change
from mri_edge.export.parity.document import document, to_json
from mri_edge.export.parity.gate import DEFAULT_GATES, Gate, exact_bounds, images_needed

NO_LIMIT = Gate(None, None, None)


def columns(yes: list[float] | np.ndarray) -> np.ndarray:
    score = np.asarray(yes, np.float64)
    return np.stack([1 - score, score], axis=1).astype(np.float32)


def judged(
    manifest: Manifest,
    reference: list[float] | np.ndarray,
    answer: list[float] | np.ndarray,
    truth: list[int] | np.ndarray,
    gate: Gate = NO_LIMIT,
    teacher: TeacherAnswers | None = None,
) -> Comparison:
    """Compare the probabilities of "yes" from an artifact with those from the Keras model."""
    files = tuple(f"{index}.png" for index in range(len(truth)))
    images = ReferenceImages(files, ({},) * len(truth), np.asarray(truth), columns(reference), teacher)
    return compare(columns(answer), images, manifest, gate, engine="fake", provider="none", threads=1)


# --- the gate


@pytest.mark.parametrize(
    ("precision", "shift", "verdict"),
    [
        ("float32", 0.9e-4, "met"),
        ("float32", 1.1e-4, "not met"),
        ("float16", 4.9e-3, "met"),
        ("float16", 5.1e-3, "not met"),
        ("dynamic", 0.0195, "met"),
        ("dynamic", 0.0205, "not met"),
        ("int8", 0.0195, "met"),
        ("int8", 0.0205, "not met"),
    ],
)
@pytest.mark.parametrize("way", [1, -1])
def test_limit_of_probability_differences(tiny_manifest, precision, shift, verdict, way):
    reference = np.full(60, 0.8)
    found = judged(tiny_manifest, reference, reference + way * shift, [1] * 60, DEFAULT_GATES[precision])
    assert found.verdict == verdict
    assert found.max_difference == pytest.approx(shift, rel=1e-2)


@pytest.mark.parametrize(("precision", "verdict"), [("float32", "not met"), ("int8", "met")])
def test_one_image_with_a_large_difference_fails_only_float_artifacts(tiny_manifest, precision, verdict):
    answer = np.full(60, 0.8)
    answer[7] = 0.9
    assert judged(tiny_manifest, [0.8] * 60, answer, [1] * 60, DEFAULT_GATES[precision]).verdict == verdict


@pytest.mark.parametrize("images", [100, 400])
def test_limit_of_changed_labels(tiny_manifest, images):
    """The gate fails if so many changes would be too unlikely at the limit of 5%."""
    unlikely = next(k for k in range(images) if stats.binom.sf(k - 1, images, 0.05) < 0.05)
    few = max((k for k in range(images) if stats.binom.cdf(k, images, 0.05) < 0.05), default=-1)
    for flips in (few, few + 1, unlikely - 1, unlikely):
        if flips < 0:
            continue
        reference, answer = np.full(images, 0.51), np.full(images, 0.51)
        answer[:flips] = 0.49
        truth = np.ones(images, int)
        truth[: flips // 2] = 0  # the accuracy stays the same, because this test is only about labels
        found = judged(tiny_manifest, reference, answer, truth, Gate(None, None, 0.05))
        assert len(found.flips) == flips
        assert found.verdict == ("met" if flips <= few else "not met" if flips >= unlikely else "undecided")


def test_with_too_few_images_the_reason_states_how_many_are_needed(tiny_manifest):
    assert images_needed(0.05) == 59
    assert images_needed(0.01) == 299
    for images, verdict in ((58, "undecided"), (59, "met")):
        found = judged(tiny_manifest, [0.8] * images, [0.8] * images, [1] * images, DEFAULT_GATES["int8"])
        assert found.verdict == verdict
        assert any("59 without a change would" in reason for reason in found.reasons) == (verdict == "undecided")


@pytest.mark.parametrize(
    ("lost", "gained", "verdict"), [(5, 0, "met"), (6, 0, "not met"), (0, 6, "met"), (0, 30, "met")]
)
def test_gate_fails_for_significantly_fewer_correct_labels_and_never_for_more(tiny_manifest, lost, gained, verdict):
    """If all changes are for the worse, 5 changes have p = 0.0625 and 6 have p = 0.03125."""
    reference, answer, truth = np.full(80, 0.51), np.full(80, 0.51), np.ones(80, int)
    answer[: lost + gained] = 0.49
    truth[lost : lost + gained] = 0
    found = judged(tiny_manifest, reference, answer, truth)
    assert found.verdict == verdict
    assert found.mcnemar_p == pytest.approx(min(1, 2 * 0.5 ** (lost + gained)))
    assert found.accuracy.value == (80 - lost) / 80


@pytest.mark.parametrize(
    ("lost", "gained", "verdict"), [(5, 0, "met"), (6, 0, "not met"), (0, 6, "met"), (0, 30, "met")]
)
def test_student_may_be_better_than_its_teacher_but_not_significantly_worse(tiny_manifest, lost, gained, verdict):
    """Where they differ, the student says "yes" and the teacher "no". Artifact and Keras model are equal."""
    truth = np.ones(80, int)
    truth[:lost] = 0
    called = [0] * (lost + gained) + [1] * (80 - lost - gained)
    teacher = TeacherAnswers(("big",), tuple(called), ((0.4, 0.6),) * 80)
    found = judged(tiny_manifest, [0.7] * 80, [0.7] * 80, truth, teacher=teacher)
    assert found.verdict == verdict
    assert found.teacher is not None
    assert found.teacher.changed == lost + gained
    assert found.teacher.accuracy.value == (80 - gained) / 80
    assert found.teacher.fewer_right == (lost > gained)
    assert found.teacher.mean_difference == pytest.approx(0.1)
    assert found.teacher.mcnemar_p == pytest.approx(min(1, 2 * 0.5 ** (lost + gained)))


# --- the metrics


def test_differences_cover_all_images_and_classes(tiny_manifest):
    shifts = np.linspace(0, 0.2, 101)
    found = judged(tiny_manifest, [0.5] * 101, 0.5 + shifts, [1] * 101)
    assert found.max_difference == pytest.approx(0.2)
    assert found.mean_difference == pytest.approx(0.1)
    assert found.p99_difference == pytest.approx(np.quantile(shifts.repeat(2), 0.99), abs=1e-6)
    assert found.images == 101


def test_log_odds_differ_even_if_probabilities_hardly_do(tiny_manifest):
    found = judged(tiny_manifest, [0.5, 0.9, 0.99], [0.5, 0.91, 0.999], [1, 1, 1])
    odds = [np.log(p / (1 - p)) for p in (0.99, 0.999)]
    assert found.max_logit_difference == pytest.approx(odds[1] - odds[0], rel=1e-3)  # probabilities are float32
    certain = judged(tiny_manifest, [0.5, 0.5], [1.0, 0.5], [1, 1])
    assert certain.max_logit_difference == pytest.approx(np.log(1e7), rel=1e-3)


@pytest.mark.parametrize(
    ("answer", "stage"),
    [([0.3, 0.5, 0.8], None), ([0.3, 0.50005, 0.8], "label"), ([0.3, 0.5, 0.8002], "logits")],
)
def test_the_first_stage_that_differs_is_named(tiny_manifest, answer, stage):
    manifest = replace(tiny_manifest, threshold=0.50003)
    assert judged(manifest, [0.3, 0.5, 0.8], answer, [0, 1, 1]).first_difference == stage


def test_metrics_of_both_models_and_their_change(tiny_manifest):
    truth = [1] * 10 + [0] * 8
    reference = [0.9] * 9 + [0.2] + [0.1] * 6 + [0.7, 0.8]
    answer = [0.9] * 7 + [0.4] * 2 + [0.3] + [0.1] * 7 + [0.8]
    found = judged(tiny_manifest, reference, answer, truth)
    assert (found.sensitivity.reference, found.sensitivity.artifact) == (0.9, 0.7)
    assert found.sensitivity.change == pytest.approx(-0.2)
    assert (found.specificity.reference, found.specificity.artifact) == (0.75, 0.875)
    assert found.specificity.change == pytest.approx(0.125)
    for change in (found.sensitivity, found.specificity):
        assert change.low < change.change < change.high
    # Of 80 pairs the Keras model orders 9 * 8 + 6 correctly, and the artifact 7 * 8 + 2 * 7 + 7.
    assert found.auc.reference == pytest.approx(78 / 80)
    assert found.auc.artifact == pytest.approx(77 / 80)
    assert found.auc.change == pytest.approx(-1 / 80)
    assert [(flip.file, flip.truth, flip.reference_label, flip.artifact_label) for flip in found.flips] == [
        ("7.png", "yes", "yes", "no"),
        ("8.png", "yes", "yes", "no"),
        ("16.png", "no", "yes", "no"),
    ]
    assert found.probabilities == pytest.approx(answer)
    summary = found.summary()
    assert (summary.verdict, summary.images, summary.flips) == (found.verdict, 18, 3)
    assert (summary.max_difference, summary.mean_difference) == (found.max_difference, found.mean_difference)


@pytest.mark.parametrize("truth", [[1, 1, 1], [0, 0, 0]])
def test_auc_needs_images_of_both_labels(tiny_manifest, truth):
    found = judged(tiny_manifest, [0.2, 0.6, 0.8], [0.3, 0.6, 0.8], truth)
    assert asdict(found.auc) == dict.fromkeys(asdict(found.auc))
    missing = found.specificity if truth[0] else found.sensitivity
    assert asdict(missing) == dict.fromkeys(asdict(missing))


def test_record_contains_every_image_and_is_valid_json(tiny_manifest):
    images = ReferenceImages(
        ("a.png", "ä.png"), ({"file": "x"}, {"file": "y"}), np.array([0, 1]), columns([0.25, 0.25])
    )
    content = json.loads(to_json(document(images, tiny_manifest, {"model.onnx": {}}, {"seed": 3})))
    assert content["seed"] == 3
    assert content["artefacts"] == {"model.onnx": {}}
    assert (content["labels"], content["positive"], content["threshold"]) == (["no", "yes"], 1, None)
    assert content["reference_accuracy"]["value"] == 0.5
    assert content["images"] == [
        {"file": "a.png", "sha256": {"file": "x"}, "label": "no", "probabilities": [0.75, 0.25]},
        {"file": "ä.png", "sha256": {"file": "y"}, "label": "yes", "probabilities": [0.75, 0.25]},
    ]
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"value": float("nan")})


# --- the statistics


def pairs(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, lost, gained, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_paired_interval_equals_the_published_one():
    # R. G. Newcombe, Statistics in Medicine 17, 1998, pages 2635 to 2650, table II, method 10: 36, 12, 2, 0.
    found = paired_change(*pairs(36, 2, 12, 0))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)


@pytest.mark.parametrize("counts", [(36, 2, 12, 0), (20, 3, 1, 9), (5, 5, 5, 5), (0, 4, 6, 0)])
def test_paired_interval_is_mirrored_if_before_and_after_are_swapped(counts):
    before, after = pairs(*counts)
    found, other = paired_change(before, after), paired_change(after, before)
    assert (other.value, other.low, other.high) == pytest.approx((-found.value, -found.high, -found.low))
    turned = paired_change(~before, ~after)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))


@pytest.mark.parametrize(
    ("counts", "correlation"),
    [
        ((5, 5, 5, 5), 0.0),
        ((12, 2, 3, 13), (12 * 13 - 2 * 3 - 15) / np.sqrt(14 * 16 * 15 * 15)),  # above n / 2: n / 2 is subtracted
        ((4, 3, 3, 4), 0.0),  # 7 = n / 2: zero
        ((3, 4, 5, 4), (3 * 4 - 4 * 5) / np.sqrt(7 * 9 * 8 * 8)),  # below 0: unchanged
        ((20, 0, 0, 0), 0.0),
    ],
)
def test_paired_interval_uses_the_correlation_of_the_two_results(counts, correlation):
    total = sum(counts)
    before, after = pairs(*counts)
    one, two = wilson_interval(int(before.sum()), total), wilson_interval(int(after.sum()), total)

    def half_width(a: float, b: float) -> float:
        return float(np.sqrt(max(0, a**2 + b**2 - 2 * correlation * a * b)))

    found = paired_change(before, after)
    change = two.value - one.value
    assert found.value == pytest.approx(change)
    assert found.low == pytest.approx(change - half_width(two.value - two.low, one.high - one.value))
    assert found.high == pytest.approx(change + half_width(two.high - two.value, one.value - one.low))


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (3, 10), (10, 10), (7, 200)])
def test_one_sided_bounds_have_five_percent_each(hits, total):
    below, above = exact_bounds(hits, total)
    if hits:
        assert stats.binom.sf(hits - 1, total, below) == pytest.approx(0.05)
    else:
        assert below == 0
    if hits < total:
        assert stats.binom.cdf(hits, total, above) == pytest.approx(0.05)
    else:
        assert above == 1


def test_mcnemar_counts_only_differences():
    first, second = pairs(30, 8, 1, 20)
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar(first, first) == 1.0
