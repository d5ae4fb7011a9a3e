"""Does this look like a brain scan at all? Cheap rules on the pixels, each with a reason and a known false-alarm rate.

The limits lie outside what the 3,975 scans of both public data sets show (navoneel and nickparvar,
see the README): beside each stands the share of those scans that it warns about.
``tests/runtime/test_plausibility.py`` measures these shares again where the scans are at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mri_edge.scans.result_warning import ResultWarning

from .preprocessing import Pixels

_MIN_SIDE = 100  # pixels; the smallest scan has 150: 0.00 %
_MAX_ASPECT = 2.0  # long side to short side; the longest has 1.79: 0.00 %
_COLOURFUL = 24  # of 255 between the strongest and the weakest channel; JPEG noise stays below
_MAX_COLOURED = 0.02  # share of colourful pixels: 0.20 %
_MIN_RANGE = 50  # of 255 between darkest and brightest: 0.00 %
_MAX_BORDER = 120  # of 255, mean along the border; air is black: 0.30 %
_MAX_STEP = 35  # of 255, mean between neighbours; noise has 40 to 84: 0.15 %


def doubts(sizes: Sequence[tuple[int, int]], fitted: Pixels) -> list[tuple[ResultWarning, ...]]:
    """For each picture the reasons to doubt that it is a brain scan; none for nearly every scan.

    Parameters
    ----------
    sizes
        Height and width of each picture as it was decoded, in pixels.
    fitted
        uint8 (N, h, w, 3) RGB, the pictures as the network sees them.
    """
    sample = fitted[:, ::4, ::4]  # every sixteenth pixel tells as much
    red, green, blue = sample[..., 0], sample[..., 1], sample[..., 2]
    strongest, weakest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    colourful = (strongest - weakest > _COLOURFUL).mean(axis=(1, 2)).tolist()
    ranges = (green.max(axis=(1, 2)) - green.min(axis=(1, 2))).tolist()
    grey = fitted[..., 1]
    border = np.concatenate((grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]), axis=1).mean(axis=1).tolist()
    lines = grey[:, ::2].astype(np.int16)
    steps = np.abs(lines[:, :, 1:] - lines[:, :, :-1]).mean(axis=(1, 2)).tolist()
    figures = zip(sizes, colourful, ranges, border, steps, strict=True)
    return [tuple(_reasons(*picture)) for picture in figures]


def _reasons(
    size: tuple[int, int], colourful: float, spread: int, border: float, step: float
) -> Iterator[ResultWarning]:
    height, width = size
    if min(size) < _MIN_SIDE:
        yield _warning("tiny", f"tiny: {width} x {height} pixels", min(size), _MIN_SIDE)
    if max(size) > _MAX_ASPECT * min(size):
        words = f"long and narrow: {width} x {height} pixels"
        yield _warning("narrow", words, max(size) / min(size), _MAX_ASPECT)
    if colourful > _MAX_COLOURED:
        yield _warning("coloured", "coloured: scans are grey", colourful, _MAX_COLOURED)
    if spread < _MIN_RANGE:
        yield _warning("blank", "blank, or nearly so", spread, _MIN_RANGE)
        return
    if border > _MAX_BORDER:
        words = "bright at the border, where a scan shows air: inverted, or no scan"
        yield _warning("bright_border", words, border, _MAX_BORDER)
    if step > _MAX_STEP:
        yield _warning("noise", "as restless as noise", step, _MAX_STEP)


def _warning(code: str, reason: str, value: float, limit: float) -> ResultWarning:
    return ResultWarning(code, f"may be no brain scan: {reason}", round(value, 3), limit)
