"""Does this look like a brain scan at all? Cheap rules on the pixels, each with a reason and a known false-alarm rate.

The limits lie outside what the 3,975 scans of both public data sets show (navoneel and nickparvar,
see the README): beside each stands the share of those scans that it warns about.
``tests/runtime/test_plausibility.py`` measures these shares again where the scans are at hand.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .preprocess import Pixels

_MIN_SIDE = 100  # pixels; the smallest scan has 150: 0.00 %
_MAX_ASPECT = 2.0  # long side to short side; the longest has 1.79: 0.00 %
_COLOURFUL = 24  # of 255 between the strongest and the weakest channel; JPEG noise stays below
_MAX_COLOURED = 0.02  # share of colourful pixels: 0.20 %
_MIN_RANGE = 50  # of 255 between darkest and brightest: 0.00 %
_MAX_BORDER = 120  # of 255, mean along the border; air is black: 0.30 %
_MAX_STEP = 35  # of 255, mean between neighbours; noise has 40 to 84: 0.15 %


def doubts(height: int, width: int, fitted: Pixels) -> tuple[str, ...]:
    """Reasons to doubt that a picture is a brain scan, in words; empty for nearly every scan.

    Parameters
    ----------
    height, width
        Size of the picture as it was decoded, in pixels.
    fitted
        uint8 (h, w, 3) RGB, the picture as the network sees it.
    """
    return tuple(f"may be no brain scan: {reason}" for reason in _reasons(height, width, fitted))


def _reasons(height: int, width: int, fitted: Pixels) -> Iterator[str]:
    if min(height, width) < _MIN_SIDE:
        yield f"tiny: {width} x {height} pixels"
    if max(height, width) > _MAX_ASPECT * min(height, width):
        yield f"long and narrow: {width} x {height} pixels"
    sample = fitted[::4, ::4]  # every sixteenth pixel tells as much
    red, green, blue = sample[:, :, 0], sample[:, :, 1], sample[:, :, 2]
    strongest, weakest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    if np.count_nonzero(strongest - weakest > _COLOURFUL) > _MAX_COLOURED * red.size:
        yield "coloured: scans are grey"
    grey = fitted[:, :, 1]
    if int(green.max()) - int(green.min()) < _MIN_RANGE:
        yield "blank, or nearly so"
        return
    border = np.concatenate((grey[0], grey[-1], grey[:, 0], grey[:, -1]))
    if border.sum() > _MAX_BORDER * border.size:
        yield "bright at the border, where a scan shows air: inverted, or no scan"
    lines = grey[::2].astype(np.int16)
    steps = np.abs(lines[:, 1:] - lines[:, :-1])
    if steps.sum() > _MAX_STEP * steps.size:
        yield "as restless as noise"
