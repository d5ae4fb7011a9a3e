"""Cover parts of the head in a network's input with what healthy tissue there could look like.

What a covered part is filled with decides what an explanation by covering shows. Gray or blurred patches look like
lesions to a network that was trained on scans. Two fills keep the texture of the head: its mirrored half, because
healthy heads are nearly symmetric, and the gray level around the part with the fine detail of the mirrored half.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mri_edge.scans.frame import Pixels

Fill = Literal["mirrored half", "surroundings with mirrored detail"]
Gray = NDArray[np.float32]
Mask = NDArray[np.bool_]

# All lengths are measured in pixels of an input with 128 x 128 pixels, and scaled for other inputs.
_SIDE = 128
_LARGEST_SHIFT = 40  # of the axis of symmetry from the middle
_AXIS_BLUR = 2.0  # standard deviation; so that the skull does not have to match exactly
_AROUND_BLUR = 6.7  # half of a covered part
_DETAIL_BLUR = 4.5  # what remains below it is fine detail
_TRACE = np.float32(1e-6)  # weight of a pixel that should not count, so that no weight is divided by 0
_LEAST_HEAD = 0.1  # of the picture; with less, the threshold has failed and all of it counts as head


class Head:
    """A head, its mirror image and its outline.

    Attributes
    ----------
    mask
        bool (H, W), the head without holes.
    mirrored
        float32 (H, W), gray levels of the head mirrored about its axis of symmetry; 0 where there is no mirror image.
    """

    def __init__(self, pixels: Pixels) -> None:
        """Take a network's input, uint8 (H, W, 3) RGB."""
        self._pixels = pixels.astype(np.float32)
        self._gray = self._pixels.mean(axis=2)
        self._unit = min(self._gray.shape) / _SIDE
        self.mask = _head_mask(self._gray)
        shift = self._axis_shift()
        self.mirrored = _mirrored(self._gray, shift)
        self._mirrored_mask = _mirrored(self.mask, shift)
        weight = self._mirrored_mask.astype(np.float32)
        smooth = self._blurred(self.mirrored * weight, _DETAIL_BLUR)
        smooth /= np.maximum(self._blurred(weight, _DETAIL_BLUR), _TRACE)
        self._detail = self.mirrored - smooth

    def cover(self, masks: Gray, fill: Fill) -> Pixels:
        """Return copies of the input in which a part of the head is covered.

        Parameters
        ----------
        masks
            float32 (N, H, W) from 0, which leaves a pixel as it is, to 1, which replaces it.
        fill
            What replaces it. Where there is no mirror image, that is the gray level around the part.

        Returns
        -------
        uint8 (N, H, W, 3) RGB. Pixels outside the head are never changed.
        """
        weight: Gray = (1 + _TRACE - masks) * self.mask + _TRACE
        around = self._blurred(self._gray * weight, _AROUND_BLUR)
        around /= self._blurred(weight, _AROUND_BLUR)
        new = self.mirrored if fill == "mirrored half" else np.clip(around + self._detail, 0, 255)
        change: Gray = (np.where(self._mirrored_mask, new, around) - self._gray) * masks * self.mask
        covered: Pixels = np.clip(np.rint(self._pixels + change[..., None]), 0, 255).astype(np.uint8)
        return covered

    def _axis_shift(self) -> int:
        """Return how far the mirrored picture must be moved to the right to match the picture best."""
        smooth = self._blurred(self._gray * self.mask, _AXIS_BLUR)
        largest = round(_LARGEST_SHIFT * self._unit)
        shifts = range(-largest, largest + 1, max(1, round(2 * self._unit)))
        return min(shifts, key=lambda shift: float(np.abs(smooth - _mirrored(smooth, shift)).sum()))

    def _blurred(self, pictures: Gray, deviation: float) -> Gray:
        """Return pictures (..., H, W) after a Gaussian blur."""
        rows, columns = (_gaussian(size, deviation * self._unit) for size in self._gray.shape)
        return (rows @ pictures @ columns.T).astype(np.float32, copy=False)


def _head_mask(gray: Gray) -> Mask:
    threshold = max(12.0, 0.12 * float(np.percentile(gray, 99)))
    opened = _opened(gray > threshold, 3)
    outline = _between_outermost(opened, 0) & _between_outermost(opened, 1)
    for mask in (_opened(outline, 7), outline):
        if mask.mean() > _LEAST_HEAD:
            return mask
    return np.ones_like(outline)


def _between_outermost(mask: Mask, axis: int) -> Mask:
    """Return what lies between the first and the last true pixel of each row or column."""
    before = np.maximum.accumulate(mask, axis)
    after = np.flip(np.maximum.accumulate(np.flip(mask, axis), axis), axis)
    result: Mask = before & after
    return result


def _opened(mask: Mask, size: int) -> Mask:
    """Remove what is narrower than ``size`` pixels."""
    picture = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    size = min(size, 2 * ((min(mask.shape) - 1) // 2) + 1)  # a filter of Pillow must not be larger than its picture
    for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter):
        picture = picture.filter(kind(size))
    return np.asarray(picture) > 0


def _mirrored(picture: NDArray, shift: int) -> NDArray:  # type: ignore[type-arg]
    """Flip a picture (H, W) left to right and move it right by ``shift`` pixels; what was outside is 0."""
    flipped = picture[:, ::-1]
    result = np.zeros_like(picture)
    width = picture.shape[1]
    result[:, max(0, shift) : width + min(0, shift)] = flipped[:, max(0, -shift) : width - max(0, shift)]
    return result


def _gaussian(size: int, deviation: float) -> Gray:
    """Return a matrix (size, size) that blurs columns; its rows have the sum 1."""
    positions = np.arange(size, dtype=np.float32)
    weights = np.exp(-0.5 * ((positions[:, None] - positions) / deviation) ** 2)
    result: Gray = weights / weights.sum(axis=1, keepdims=True)
    return result
