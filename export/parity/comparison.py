"""Measure how far an artifact's answers are from the Keras model's answers for the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from mri_edge.authoring.intervals import Interval, wilson_interval
from mri_edge.authoring.teacher import TeacherAnswers
from mri_edge.bundles.decode import to_plain
from mri_edge.bundles.manifest import Manifest, Parity
from mri_edge.inference.prediction import decide

from .gate import DEFAULT_GATES, Gate, Verdict, judge
from .images import Others

Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]  # of labels
Probabilities = NDArray[np.float32]

# Log-odds of probabilities closer to 0 or 1 than this are dominated by rounding.
_CLOSEST_TO_CERTAIN = 1e-7


@dataclass(frozen=True)
class ReferenceImages:
    """The images of a comparison, the test images first, with the Keras model's answers.

    ``stages`` gives the SHA-256 of the two stages before the model for each test image: ``file``, its bytes, and
    ``tensor``, the resized pixels. Another device compares its own to find the first stage that differs.
    ``labels`` is (N,), ``reference`` the Keras model's probabilities (N, classes). Only distilled models have a
    ``teacher``, which answered the test images. ``others`` describes the images that are not test images.
    """

    files: tuple[str, ...]
    stages: tuple[dict[str, str], ...]
    labels: Indices
    reference: Probabilities
    teacher: TeacherAnswers | None = None
    others: Others | None = None

    @property
    def tests(self) -> int:
        """Number of test images."""
        return len(self.files) - (self.others.images if self.others else 0)


@dataclass(frozen=True)
class Flip:
    """An image that the artifact labels differently.

    Both probabilities are of the positive label or, without one, each of the label that the model chose.
    """

    file: str
    truth: str
    reference_label: str
    artifact_label: str
    reference_probability: float
    artifact_probability: float


@dataclass(frozen=True)
class Change:
    """A figure of the Keras model and of the artifact, and their difference with a paired interval.

    All are None if no test image has the label of the figure, or if an answer is not a number.
    """

    reference: float | None = None
    artifact: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class AgainstTeacher:
    """The artifact of a distilled model compared with the model's teacher.

    ``changed`` is the number of labels that differ, and ``accuracy`` that of the teacher.
    """

    teachers: tuple[str, ...]
    mean_difference: float
    changed: int
    accuracy: Interval
    mcnemar_p: float
    fewer_right: bool


@dataclass(frozen=True)
class Comparison:
    """One artifact compared with the Keras model.

    The differences and ``flips`` are about all ``images``, which need no label. The figures of right and wrong answers,
    ``accuracy`` to ``auc`` and ``teacher``, are about the ``test_images`` alone. Without a positive label ``auc`` is
    the mean over the labels, each against all others, and sensitivity and specificity are None.

    ``test_flips`` counts the flips of test images: a model is more certain of images that it was trained on, so there
    fewer labels may change.

    ``probabilities`` has a value for each test image: of the positive label or, without one, of the label that the
    Keras model chose.
    """

    engine: str
    provider: str
    threads: int
    verdict: Verdict
    reasons: tuple[str, ...]
    gate: Gate
    images: int
    test_images: int
    test_flips: int
    others: Others | None
    max_difference: float
    mean_difference: float
    p99_difference: float
    max_logit_difference: float
    first_difference: str | None
    flips: tuple[Flip, ...]
    accuracy: Interval
    mcnemar_p: float
    sensitivity: Change
    specificity: Change
    auc: Change
    probabilities: tuple[float, ...]
    teacher: AgainstTeacher | None

    def summary(self) -> Parity:
        """The figures that the manifest records."""
        return Parity(self.verdict, self.images, self.max_difference, self.mean_difference, len(self.flips))

    def to_dict(self) -> dict[str, Any]:
        """Plain types for ``parity.json``."""
        return to_plain(self)


def compare(
    answer: Probabilities,
    images: ReferenceImages,
    manifest: Manifest,
    gate: Gate,
    *,
    engine: str,
    provider: str,
    threads: int,
) -> Comparison:
    """Compare an artifact's probabilities (N, classes) with the Keras model's, and judge them by ``gate``."""
    difference = np.abs(answer.astype(np.float64) - images.reference)
    before = decide(images.reference, manifest.positive, manifest.threshold)
    after = decide(answer, manifest.positive, manifest.threshold)
    positive = manifest.positive
    flips = tuple(
        Flip(
            images.files[index],
            manifest.labels[images.labels[index]],
            manifest.labels[before[index]],
            manifest.labels[after[index]],
            float(images.reference[index, before[index] if positive is None else positive]),
            float(answer[index, after[index] if positive is None else positive]),
        )
        for index in np.flatnonzero(before != after)
    )
    tests = images.tests
    truth = images.labels[:tests]
    right_before, right_after = before[:tests] == truth, after[:tests] == truth
    comparison = Comparison(
        engine=engine,
        provider=provider,
        threads=threads,
        verdict="met",
        reasons=(),
        gate=gate,
        images=len(answer),
        test_images=tests,
        test_flips=int((before[:tests] != after[:tests]).sum()),
        others=images.others,
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        p99_difference=float(np.quantile(difference, 0.99)),
        max_logit_difference=float(np.abs(_log_odds(answer) - _log_odds(images.reference)).max()),
        first_difference=None,
        flips=flips,
        accuracy=wilson_interval(int(right_after.sum()), tests),
        mcnemar_p=mcnemar(right_before, right_after),
        sensitivity=_rate_change(before[:tests], after[:tests], truth, positive, of_positives=True),
        specificity=_rate_change(before[:tests], after[:tests], truth, positive, of_positives=False),
        auc=_auc_change(truth, images.reference[:tests], answer[:tests], positive),
        probabilities=tuple(
            float(answer[index, before[index] if positive is None else positive]) for index in range(tests)
        ),
        teacher=_compare_with_teacher(images.teacher, answer[:tests], after[:tests], truth) if images.teacher else None,
    )
    worse = int(right_after.sum()) < int(right_before.sum())
    verdict, reasons = judge(comparison, worse=worse)
    return replace(comparison, verdict=verdict, reasons=reasons, first_difference=_first_difference(comparison))


def mcnemar(first: Flags, second: Flags) -> float:
    """Two-sided exact p-value for equal error rates on the same images (Q. McNemar, Psychometrika 12, 1947).

    ``first`` and ``second`` say for each image whether that classifier was right.
    """
    lost, gained = int(np.sum(first & ~second)), int(np.sum(~first & second))
    return float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def paired_change(before: Flags, after: Flags) -> Interval:
    """Change of a proportion between two classifiers on the same images, with Newcombe's interval.

    R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based
    on paired data", Statistics in Medicine 17, 1998, method 10.
    """
    total = len(before)
    first, second = wilson_interval(int(before.sum()), total), wilson_interval(int(after.sum()), total)
    both, neither = int(np.sum(before & after)), int(np.sum(~before & ~after))
    lost, gained = int(np.sum(before & ~after)), int(np.sum(~before & after))
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    cross: float = both * neither - lost * gained
    if cross >= 0:  # continuity correction
        cross = max(0.0, cross - total / 2)
    correlation = cross / math.sqrt(margins) if margins else 0.0
    change = second.value - first.value

    def half_width(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a + b * b - 2 * correlation * a * b))

    return Interval(
        change,
        change - half_width(second.value - second.low, first.high - first.value),
        change + half_width(second.high - second.value, first.value - first.low),
    )


def _compare_with_teacher(
    teacher: TeacherAnswers, answer: Probabilities, y_pred: Indices, y_true: Indices
) -> AgainstTeacher:
    teacher_pred = np.array(teacher.called, np.intp)
    right, teacher_right = y_pred == y_true, teacher_pred == y_true
    return AgainstTeacher(
        teachers=teacher.teachers,
        mean_difference=float(np.abs(answer - np.array(teacher.probabilities)).mean()),
        changed=int((y_pred != teacher_pred).sum()),
        accuracy=wilson_interval(int(teacher_right.sum()), len(y_true)),
        mcnemar_p=mcnemar(teacher_right, right),
        fewer_right=int(right.sum()) < int(teacher_right.sum()),
    )


def _first_difference(comparison: Comparison) -> str | None:
    """The first stage that differs by more than rounding: ``logits``, ``label`` or None."""
    limit = DEFAULT_GATES["float32"].max_difference or 0.0
    if comparison.max_difference > limit:
        return "logits"
    return "label" if comparison.flips else None


def _log_odds(probabilities: Probabilities) -> NDArray[np.float64]:
    clipped = np.clip(probabilities.astype(np.float64), _CLOSEST_TO_CERTAIN, 1 - _CLOSEST_TO_CERTAIN)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def _change(before: Flags, after: Flags) -> Change:
    if len(before) == 0:
        return Change()
    paired = paired_change(before, after)
    return Change(float(before.mean()), float(after.mean()), paired.value, paired.low, paired.high)


def _rate_change(
    before: Indices, after: Indices, truth: Indices, positive: int | None, *, of_positives: bool
) -> Change:
    """Change of the sensitivity or, of negatives, of the specificity."""
    if positive is None:
        return Change()
    rows = (truth == positive) == of_positives
    return _change((before[rows] == positive) == of_positives, (after[rows] == positive) == of_positives)


def _auc_change(truth: Indices, before: Probabilities, after: Probabilities, positive: int | None) -> Change:
    """Change of the AUC of the positive label or, without one, of the mean AUC of each label against all others."""
    labels = range(before.shape[1]) if positive is None else [positive]
    flags = [truth == label for label in labels]
    # NaN cannot be ranked; the gate refuses it.
    if any(of_label.all() or not of_label.any() for of_label in flags) or not np.isfinite([before, after]).all():
        return Change()
    reference, artifact = (
        float(np.mean([roc_auc_score(flags[i], scores[:, label]) for i, label in enumerate(labels)]))
        for scores in (before, after)
    )
    return Change(reference, artifact, artifact - reference)
