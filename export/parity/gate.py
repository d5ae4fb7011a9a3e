"""How far an artefact is from the Keras model on the same images, and what the gate says of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from mri_edge.authoring.intervals import Interval, wilson_interval
from mri_edge.authoring.teacher import TeacherAnswers
from mri_edge.bundles.manifest import Manifest, Parity, Precision
from mri_edge.inference.prediction import decide

from .statistics import bounds, images_needed, mcnemar, paired_change

Verdict = Literal["met", "not met", "undecided"]
Probabilities = NDArray[np.float32]

PARITY = "parity.json"
SIGNIFICANCE = 0.05
# Log-odds of probabilities nearer to 0 or 1 than this are all rounding.
_NEAREST = 1e-7


@dataclass(frozen=True)
class Gate:
    """The bounds of one artefact; ``None`` leaves a bound out.

    ``max_difference`` and ``mean_difference`` bound |Δp|, over all images and classes. ``flip_rate``
    bounds the share of images whose label changes, at 95% confidence: too few images are undecided.
    """

    max_difference: float | None
    mean_difference: float | None
    flip_rate: float | None


# float32: summation order differs between runtimes, no more. float16: 11 bits of mantissa through some
# 16 layers. Quantised: a label in twenty may change, and probabilities move by a fiftieth on average.
DEFAULT_GATES: dict[Precision, Gate] = {
    "float32": Gate(1e-4, None, None),
    "float16": Gate(5e-3, None, None),
    "dynamic": Gate(None, 0.02, 0.05),
    "int8": Gate(None, 0.02, 0.05),
}


@dataclass(frozen=True)
class Judges:
    """The test images of a comparison.

    ``stages`` holds SHA-256 of each stage before the model, image by image: ``file`` (its bytes) and
    ``tensor`` (the pixels that the model takes). Another device that finds the same two has the same
    input, so that the first stage that differs can be named. ``labels`` is (N,), ``reference`` the Keras
    model's probabilities (N, classes); ``teacher`` is there where the model was distilled from one.
    """

    files: tuple[str, ...]
    stages: tuple[dict[str, str], ...]
    labels: NDArray[np.intp]
    reference: Probabilities
    teacher: TeacherAnswers | None = None


@dataclass(frozen=True)
class Flip:
    """An image that the artefact labels otherwise than the Keras model; probabilities of the positive label."""

    file: str
    truth: str
    reference_label: str
    artefact_label: str
    reference_probability: float
    artefact_probability: float


@dataclass(frozen=True)
class Change:
    """A figure of the Keras model, of the artefact, and their difference with a paired interval.

    All None where no image has the label that the figure is about, or an answer is no number.
    """

    reference: float | None = None
    artefact: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class AgainstTeacher:
    """A student's artefact beside its teacher; ``changed`` counts labels that differ, ``accuracy`` is the teacher's."""

    teachers: tuple[str, ...]
    mean_difference: float
    changed: int
    accuracy: Interval
    mcnemar_p: float
    fewer_right: bool


@dataclass(frozen=True)
class Comparison:
    """One artefact against the Keras model."""

    engine: str
    provider: str
    threads: int
    verdict: Verdict
    reasons: tuple[str, ...]
    gate: Gate
    images: int
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
        """What the manifest keeps of it."""
        return Parity(self.verdict, self.images, self.max_difference, self.mean_difference, len(self.flips))

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for ``parity.json``."""
        return asdict(self)


def compare(
    answer: Probabilities,
    images: Judges,
    manifest: Manifest,
    gate: Gate,
    *,
    engine: str,
    provider: str,
    threads: int,
) -> Comparison:
    """Compare an artefact's probabilities (N, classes) with the Keras model's, and judge them by ``gate``."""
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
            float(images.reference[index, positive]),
            float(answer[index, positive]),
        )
        for index in np.flatnonzero(before != after)
    )
    right_before, right_after = before == images.labels, after == images.labels
    ill = images.labels == positive
    comparison = Comparison(
        engine=engine,
        provider=provider,
        threads=threads,
        verdict="met",
        reasons=(),
        gate=gate,
        images=len(answer),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        p99_difference=float(np.quantile(difference, 0.99)),
        max_logit_difference=float(np.abs(_log_odds(answer) - _log_odds(images.reference)).max()),
        first_difference=None,
        flips=flips,
        accuracy=wilson_interval(int(right_after.sum()), len(answer)),
        mcnemar_p=mcnemar(right_before, right_after),
        sensitivity=_change(before[ill] == positive, after[ill] == positive),
        specificity=_change(before[~ill] != positive, after[~ill] != positive),
        auc=_auc_change(ill, images.reference[:, positive], answer[:, positive]),
        probabilities=tuple(float(value) for value in answer[:, positive]),
        teacher=_against(images.teacher, answer, after, images.labels) if images.teacher else None,
    )
    worse = int(right_after.sum()) < int(right_before.sum())
    verdict, reasons = judge(comparison, worse=worse)
    return replace(comparison, verdict=verdict, reasons=reasons, first_difference=_first_difference(comparison))


def judge(comparison: Comparison, *, worse: bool) -> tuple[Verdict, tuple[str, ...]]:
    """The gate's answer and its reasons in words; ``worse`` if the artefact has fewer right answers."""
    gate, flips, images = comparison.gate, len(comparison.flips), comparison.images
    failed = []
    if gate.max_difference is not None and not comparison.max_difference <= gate.max_difference:
        failed.append(f"largest |Δp| is {comparison.max_difference:.2g}, the limit is {gate.max_difference:g}")
    if gate.mean_difference is not None and not comparison.mean_difference <= gate.mean_difference:
        failed.append(f"mean |Δp| is {comparison.mean_difference:.2g}, the limit is {gate.mean_difference:g}")
    if worse and comparison.mcnemar_p < SIGNIFICANCE:
        failed.append(f"fewer right answers than the Keras model (exact McNemar p = {comparison.mcnemar_p:.2g})")
    taught = comparison.teacher
    if taught and taught.fewer_right and taught.mcnemar_p < SIGNIFICANCE:
        failed.append(f"fewer right answers than the teacher (exact McNemar p = {taught.mcnemar_p:.2g})")
    undecided = []
    if gate.flip_rate is not None:
        least, most = bounds(flips, images)
        if least > gate.flip_rate:
            failed.append(f"{flips} of {images} labels change, the limit is {gate.flip_rate:.1%}")
        elif most > gate.flip_rate:
            undecided.append(
                f"{flips} of {images} labels change, so the true share may be up to {most:.1%} and the limit is "
                f"{gate.flip_rate:.1%}: too few images to tell, {images_needed(gate.flip_rate)} without a change would"
            )
    if failed:
        return "not met", tuple(failed)
    return ("undecided", tuple(undecided)) if undecided else ("met", ())


def _against(
    teacher: TeacherAnswers, answer: Probabilities, called: NDArray[np.intp], truth: NDArray[np.intp]
) -> AgainstTeacher:
    its = np.array(teacher.called, np.intp)
    right, taught_right = called == truth, its == truth
    return AgainstTeacher(
        teachers=teacher.teachers,
        mean_difference=float(np.abs(answer - np.array(teacher.probabilities)).mean()),
        changed=int((called != its).sum()),
        accuracy=wilson_interval(int(taught_right.sum()), len(truth)),
        mcnemar_p=mcnemar(taught_right, right),
        fewer_right=int(right.sum()) < int(taught_right.sum()),
    )


def _first_difference(comparison: Comparison) -> str | None:
    """The first stage that differs by more than rounding: ``logits``, ``label`` or None; the input is the same."""
    limit = DEFAULT_GATES["float32"].max_difference or 0.0
    if comparison.max_difference > limit:
        return "logits"
    return "label" if comparison.flips else None


def _log_odds(probabilities: Probabilities) -> NDArray[np.float64]:
    clipped = np.clip(probabilities.astype(np.float64), _NEAREST, 1 - _NEAREST)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def _change(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Change:
    if len(before) == 0:
        return Change()
    paired = paired_change(before, after)
    return Change(float(before.mean()), float(after.mean()), paired.value, paired.low, paired.high)


def _auc_change(ill: NDArray[np.bool_], before: NDArray[np.float32], after: NDArray[np.float32]) -> Change:
    # An answer that is no number has no rank; the gate refuses it.
    if ill.all() or not ill.any() or not np.isfinite([before, after]).all():
        return Change()
    first, second = (float(roc_auc_score(ill, one)) for one in (before, after))
    return Change(first, second, second - first)


def document(
    images: Judges, manifest: Manifest, comparisons: dict[str, dict[str, Any]], facts: dict[str, Any]
) -> dict[str, Any]:
    """The content of ``parity.json``: facts, every image's reference, every artefact's comparison."""
    right = decide(images.reference, manifest.positive, manifest.threshold) == images.labels
    return {
        **facts,
        "labels": list(manifest.labels),
        "positive": manifest.positive,
        "threshold": manifest.threshold,
        "reference_accuracy": asdict(wilson_interval(int(right.sum()), len(right))),
        "images": [
            {
                "file": file,
                "sha256": stages,
                "label": manifest.labels[label],
                "probabilities": [float(value) for value in row],
            }
            for file, stages, label, row in zip(
                images.files, images.stages, images.labels, images.reference, strict=True
            )
        ],
        "artefacts": comparisons,
    }


def to_json(content: dict[str, Any]) -> str:
    """The content of ``parity.json`` as its text."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
