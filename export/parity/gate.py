"""Decide whether an artifact is close enough to the Keras model: met, undecided or not met."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from scipy import stats

from mri_edge.authoring.intervals import CONFIDENCE
from mri_edge.bundles.manifest import Precision

if TYPE_CHECKING:
    from .comparison import Comparison

Verdict = Literal["met", "not met", "undecided"]

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Gate:
    """The limits for one artifact; None means no limit.

    ``max_difference`` and ``mean_difference`` bound |Δp| over all images and classes. ``flip_rate`` bounds the
    proportion of images whose label changes, at 95% confidence; with too few images the verdict is undecided.
    """

    max_difference: float | None = None
    mean_difference: float | None = None
    flip_rate: float | None = None

    def override(self, bounds: Gate) -> Gate:
        """This gate with the limits of ``bounds`` that are not None."""
        return replace(self, **{name: value for name, value in vars(bounds).items() if value is not None})


# float32: runtimes sum in different orders. float16: 11 bits of mantissa through some 16 layers. Quantized: one
# label in twenty may change, and probabilities may move by a fiftieth on average.
DEFAULT_GATES: dict[Precision, Gate] = {
    "float32": Gate(max_difference=1e-4),
    "float16": Gate(max_difference=5e-3),
    "dynamic": Gate(mean_difference=0.02, flip_rate=0.05),
    "int8": Gate(mean_difference=0.02, flip_rate=0.05),
}


def judge(comparison: Comparison, *, worse: bool) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons. ``worse``: the artifact has fewer right answers than the Keras model."""
    gate, flips, images = comparison.gate, len(comparison.flips), comparison.images
    failed = []
    # "not <=" is also true for NaN.
    if gate.max_difference is not None and not comparison.max_difference <= gate.max_difference:
        failed.append(f"largest |Δp| is {comparison.max_difference:.2g}, the limit is {gate.max_difference:g}")
    if gate.mean_difference is not None and not comparison.mean_difference <= gate.mean_difference:
        failed.append(f"mean |Δp| is {comparison.mean_difference:.2g}, the limit is {gate.mean_difference:g}")
    if worse and comparison.mcnemar_p < SIGNIFICANCE:
        failed.append(f"fewer right answers than the Keras model (exact McNemar p = {comparison.mcnemar_p:.2g})")
    teacher = comparison.teacher
    if teacher and teacher.fewer_right and teacher.mcnemar_p < SIGNIFICANCE:
        failed.append(f"fewer right answers than the teacher (exact McNemar p = {teacher.mcnemar_p:.2g})")
    undecided = []
    if gate.flip_rate is not None:
        lowest, highest = exact_bounds(flips, images)
        if lowest > gate.flip_rate:
            failed.append(f"{flips} of {images} labels change, the limit is {gate.flip_rate:.1%}")
        elif highest > gate.flip_rate:
            undecided.append(
                f"{flips} of {images} labels change, so the true rate may be up to {highest:.1%} and the limit is "
                f"{gate.flip_rate:.1%}: too few images to tell, {images_needed(gate.flip_rate)} without a change would"
            )
    if failed:
        return "not met", tuple(failed)
    return ("undecided", tuple(undecided)) if undecided else ("met", ())


def exact_bounds(successes: int, total: int) -> tuple[float, float]:
    """Lower and upper one-sided exact 95% bounds of a proportion.

    C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits", Biometrika 26, 1934.
    """
    lower = stats.binomtest(successes, total, alternative="greater").proportion_ci(CONFIDENCE, method="exact").low
    upper = stats.binomtest(successes, total, alternative="less").proportion_ci(CONFIDENCE, method="exact").high
    return float(lower), float(upper)


def images_needed(rate: float) -> int:
    """Number of images without an event that shows, with 95% confidence, that its rate is at most ``rate``."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - rate))
