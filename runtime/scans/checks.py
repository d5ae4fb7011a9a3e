"""Warn about pictures that do not look like a brain scan, by cheap rules on the pixels with known false-alarm rates.

The limits were chosen on the 3,975 scans of both public data sets (navoneel and nickparvar, see the README). The
comment at each limit gives the proportion of those scans that it warns about. ``tests/scans/test_checks.py`` measures
these proportions again where the scans are available.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mri_edge.records import dataclass

from .frame import Pixels

SIDE = 128

_MIN_SIDE = 100  # pixels; the smallest scan has 150: 0.00 %
_MAX_ASPECT = 2.0  # long side to short side; the longest has 1.79: 0.00 %
_COLORFUL = 24  # of 255 between the strongest and the weakest channel; JPEG noise stays below
_MAX_COLORED = 0.02  # proportion of colorful pixels: 0.20 %
_MIN_RANGE = 50  # of 255 between darkest and brightest: 0.00 %
_LIT = 25  # of 255 above the darkest pixel
_MIN_LIT = 0.05  # proportion of lit pixels; the emptiest scan has 0.14, a slice below the brain 0.001 to 0.04: 0.00 %
_MAX_BORDER = 120  # of 255, mean along the border; air is black: 0.30 %
_MAX_STEP = 35  # of 255, mean between neighbors; noise has 40 to 84: 0.15 %


@dataclass(frozen=True)
class ResultWarning:
    """A reason to distrust one answer; ``str`` returns the message.

    Attributes
    ----------
    code
        The reason as one stable word for programs: ``"coloured"``, ``"unlike_training"``, …
    message
        The reason for people.
    value, limit
        The measured value and the limit that it violates, or None.
    """

    code: str
    message: str
    value: float | None = None
    limit: float | None = None

    def __str__(self) -> str:
        return self.message


def warnings_for(sizes: Sequence[tuple[int, int]], resized: Pixels) -> list[tuple[ResultWarning, ...]]:
    """Return the warnings for each picture that it may not be a brain scan; nearly all scans have none.

    Parameters
    ----------
    sizes
        Height and width of each decoded picture, in pixels.
    resized
        uint8 (N, h, w, 3) RGB: the whole pictures, resized. The limits were chosen at ``SIDE`` x ``SIDE`` pixels.
    """
    sample = resized[:, ::4, ::4]  # one pixel of sixteen is enough
    red, green, blue = sample[..., 0], sample[..., 1], sample[..., 2]
    strongest, weakest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    colorful = (strongest - weakest > _COLORFUL).mean(axis=(1, 2)).tolist()
    darkest = green.min(axis=(1, 2))
    ranges = (green.max(axis=(1, 2)) - darkest).tolist()
    lit = (green - darkest[:, None, None] > _LIT).mean(axis=(1, 2)).tolist()
    gray = resized[..., 1]
    border = np.concatenate((gray[:, 0], gray[:, -1], gray[:, :, 0], gray[:, :, -1]), axis=1).mean(axis=1).tolist()
    lines = gray[:, ::2].astype(np.int16)
    steps = np.abs(lines[:, :, 1:] - lines[:, :, :-1]).mean(axis=(1, 2)).tolist()
    measured = zip(sizes, colorful, ranges, lit, border, steps, strict=True)
    return [tuple(_warnings(*picture)) for picture in measured]


def _warnings(
    size: tuple[int, int], colorful: float, value_range: int, lit: float, border: float, step: float
) -> Iterator[ResultWarning]:
    height, width = size
    if min(size) < _MIN_SIDE:
        yield _warning("tiny", f"tiny: {width} x {height} pixels", min(size), _MIN_SIDE)
    if max(size) > _MAX_ASPECT * min(size):
        reason = f"long and narrow: {width} x {height} pixels"
        yield _warning("narrow", reason, max(size) / min(size), _MAX_ASPECT)
    if colorful > _MAX_COLORED:
        yield _warning("coloured", "coloured: scans are grey", colorful, _MAX_COLORED)
    if value_range < _MIN_RANGE:
        yield _warning("blank", "blank, or nearly so", value_range, _MIN_RANGE)
        return
    if lit < _MIN_LIT:
        yield _warning("blank", "nearly empty: little of it is brighter than the background", lit, _MIN_LIT)
        return
    if border > _MAX_BORDER:
        reason = "bright at the border, where a scan shows air: inverted, or no scan"
        yield _warning("bright_border", reason, border, _MAX_BORDER)
    if step > _MAX_STEP:
        yield _warning("noise", "as restless as noise", step, _MAX_STEP)


def _warning(code: str, reason: str, value: float, limit: float) -> ResultWarning:
    return ResultWarning(code, f"may be no brain scan: {reason}", round(value, 3), limit)
