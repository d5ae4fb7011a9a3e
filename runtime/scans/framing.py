"""Find the head in a picture, and cut out the square around it.

Pictures from different sources differ in their margins and aspect ratio. A network that always gets the head in a
square of its size cannot rely on either.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .frame import Pixels, as_rgb, gray_channel

Gray = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Top, left, bottom and right in pixels; the last two are exclusive. A box may extend beyond the picture."""

SQUARE_MARGIN = 0.03  # at each side, as a fraction of the head's box; the network has seen -0.04 to 0.12 in training
_MAX_SQUARE = 40_000_000  # pixels: a strip of 20,000 x 600 pixels lies in a square of 450 million


def to_gray(pixels: Pixels) -> Gray:
    """Return the mean of the channels of uint8 (H, W, 3): uint8 (H, W), contiguous."""
    gray = gray_channel(pixels)
    if gray is not None:
        return gray
    total = np.add(pixels[..., 0], pixels[..., 1], dtype=np.uint16)
    total += pixels[..., 2]
    total += 1  # a third of an integer is never half-way between two, so this rounds to the nearest
    total //= 3
    return total.astype(np.uint8)


def background_level(gray: Gray) -> float:
    """Return the gray level up to which pixels are background: 12% of the picture's bright end.

    The bright end is the 99th percentile as ``np.percentile`` defines it. Counting levels is several times as fast.
    """
    from PIL import Image  # imported while a model is opened

    counts = np.cumsum(Image.fromarray(np.ascontiguousarray(gray)).histogram())  # a third of the time of np.bincount
    position = 0.99 * (gray.size - 1)
    lower, upper = np.searchsorted(counts, (int(position) + 1, min(int(position) + 2, gray.size)))
    bright = float(lower + (position - int(position)) * (upper - lower))
    return max(12.0, 0.12 * bright)


def head_box(gray: Gray) -> Box:
    """Return the box of the foreground of uint8 (H, W), or the whole picture if that box is tiny.

    A row or column belongs to it if over 3% of its pixels are above the background level, which excludes writing in a
    corner.
    """
    bright = gray > background_level(gray)
    ones = bright.view(np.uint8)  # NumPy adds these faster than it averages booleans; no side is over 65,535
    rows = np.flatnonzero(np.add.reduce(ones, axis=1, dtype=np.uint16) / gray.shape[1] > 0.03)
    columns = np.flatnonzero(np.add.reduce(ones, axis=0, dtype=np.uint16) / gray.shape[0] > 0.03)
    if min(len(rows), len(columns)) < 8:
        return (0, 0, *gray.shape)
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def widen(box: Box, top: float, left: float, bottom: float, right: float) -> Box:
    """Move each side outward by a fraction of the box's height or width; a negative fraction moves it inward."""
    height, width = box[2] - box[0], box[3] - box[1]
    return (
        int(box[0] - top * height),
        int(box[1] - left * width),
        int(box[2] + bottom * height),
        int(box[3] + right * width),
    )


def square_around(box: Box) -> Box:
    """Return the smallest square with the same center that contains the box."""
    top, left, bottom, right = box
    side = max(bottom - top, right - left)
    first_row, first_column = (top + bottom - side) // 2, (left + right - side) // 2
    return first_row, first_column, first_row + side, first_column + side


def head_section(pixels: Pixels) -> Pixels:
    """Return the square around the head of a picture: uint8 (H, W, 3) -> uint8 (side, side, 3).

    A picture whose square would have more than 40 million pixels is returned as it is.
    """
    channel = gray_channel(pixels)
    gray = to_gray(pixels) if channel is None else channel
    square = square_around(widen(head_box(gray), *(SQUARE_MARGIN,) * 4))
    if (square[2] - square[0]) ** 2 > _MAX_SQUARE:
        return pixels
    if channel is None:
        return cut(pixels, square)
    return as_rgb(cut(channel, square))


def cut(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Return the pixels of uint8 (H, W, ...) in ``box``, at least 8 x 8. Beyond the picture they are black."""
    top, left, bottom, right = box
    bottom, right = max(bottom, top + 8), max(right, left + 8)
    height, width = pixels.shape[:2]
    if min(top, left) >= 0 and bottom <= height and right <= width:
        return pixels[top:bottom, left:right]
    out = np.zeros((bottom - top, right - left, *pixels.shape[2:]), np.uint8)
    first_row, last_row = max(top, 0), min(bottom, height)
    first_column, last_column = max(left, 0), min(right, width)
    out[first_row - top : last_row - top, first_column - left : last_column - left] = pixels[
        first_row:last_row, first_column:last_column
    ]
    return out
