"""Resize 8-bit pictures: exactly as OpenCV's ``INTER_LINEAR`` does, without OpenCV, or antialiased with Pillow."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import InputError

from .frame import Pixels, gray_channel

# Along one axis: the indices of the first and second neighbors, then the weights of the first and second.
_Neighbors = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32], NDArray[np.int32]]

# Weights of a pixel pair are integers that sum to 2**11; OpenCV, imgproc/src/resize.cpp
# (INTER_RESIZE_COEF_BITS). The same fixed-point arithmetic gives the same result.
_COEFFICIENT_BITS = 11
# From a larger picture only the needed pixels are gathered, because its rows may be long.
_LARGE_PIXELS = 1 << 22
_BUFFER_VALUES = 1 << 18  # values in one step: four gray pictures of 256 x 256, which fit the cache of one core


def resize_bilinear(pictures: Sequence[Pixels], height: int, width: int) -> Pixels:
    """Resize bilinearly without antialiasing, as OpenCV's ``INTER_LINEAR`` does for 8-bit pictures.

    Pictures of one size are resized together. Threads that resize single pictures slow each other
    down, because each of NumPy's many short steps releases and takes the interpreter lock.

    Parameters
    ----------
    pictures
        uint8 (H, W, 3) each. If a picture is gray (three equal channels, in memory or by ``np.broadcast_to``), one
        channel is resized.
    height, width
        Size of the result in pixels.

    Returns
    -------
    uint8 (N, height, width, 3), contiguous.

    Raises
    ------
    InputError
        A picture has another dtype or shape, or no pixel.
    """
    _check(pictures)
    resized = np.empty((len(pictures), height, width, 3), np.uint8)
    by_shape: dict[tuple[int, int, int], list[tuple[int, Pixels]]] = {}
    for index, pixels in enumerate(pictures):
        rows, columns, _ = pixels.shape
        if (rows, columns) == (height, width):
            resized[index] = pixels
            continue
        if rows * columns > _LARGE_PIXELS:
            _write(_blend_large(pixels, height, width), resized[index])
            continue
        gray = gray_channel(pixels)
        channels, plane = (3, pixels) if gray is None else (1, gray)
        by_shape.setdefault((rows, columns, channels), []).append((index, plane.reshape(rows, -1)))
    for (rows, columns, channels), members in by_shape.items():
        down, across = _neighbors(rows, height, 1), _neighbors(columns, width, channels)
        together = max(1, _BUFFER_VALUES // (2 * height * max(columns, width) * channels))
        for start in range(0, len(members), together):
            indices, planes = zip(*members[start : start + together], strict=True)
            for index, picture in zip(indices, _blend(planes, down, across, channels), strict=True):
                _write(picture, resized[index])
    return resized


def resize_antialiased(pictures: Sequence[Pixels], height: int, width: int) -> Pixels:
    """Resize with a triangle as wide as the reduction, as Pillow's ``BILINEAR`` does.

    Pillow adds integers, so the result is the same on every processor. Parameters, result and errors as for
    ``resize_bilinear``.
    """
    from PIL import Image  # imported while a model is opened

    _check(pictures)
    resized = np.empty((len(pictures), height, width, 3), np.uint8)
    for pixels, out in zip(pictures, resized, strict=True):
        gray = gray_channel(pixels)
        for channel in range(3):  # one at a time, because Pillow stores a colored pixel in four bytes
            if channel == 0 or gray is None:
                plane = np.ascontiguousarray(pixels[:, :, channel]) if gray is None else gray
                picture = np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
            out[:, :, channel] = picture
    return resized


def _check(pictures: Sequence[Pixels]) -> None:
    for pixels in pictures:
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            raise InputError(
                f"picture must be uint8 (H, W, 3) with at least one pixel. Received: {pixels.dtype} {pixels.shape}"
            )


def _write(picture: Pixels, out: Pixels) -> None:
    """Write uint8 (height, width, 1 or 3) to (height, width, 3)."""
    for channel in range(3):  # strided copies take half as long as np.repeat
        out[:, :, channel] = picture[:, :, channel % picture.shape[2]]


def _blend_large(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize a large picture, uint8 (rows, columns, 3). The memory depends only on the size of the result."""
    rows, columns, _ = pixels.shape
    (upper, lower, *vertical), (left, right, *horizontal) = _neighbors(rows, height, 1), _neighbors(columns, width, 1)
    corners = pixels[np.ix_(np.concatenate((upper, lower)), np.concatenate((left, right)))]
    above, below, before, after = (
        np.arange(height),
        np.arange(height, 2 * height),
        *([3 * np.arange(start, start + width)[:, None] + np.arange(3) for start in (0, width)]),
    )
    down = (above, below, vertical[0], vertical[1])
    across = (before.ravel(), after.ravel(), horizontal[0].repeat(3), horizontal[1].repeat(3))
    blended: Pixels = _blend([corners.reshape(2 * height, 6 * width)], down, across, 3)[0]
    return blended


def _blend(planes: Sequence[Pixels], down: _Neighbors, across: _Neighbors, channels: int) -> Pixels:
    """Resize planes, uint8 (rows, columns * channels) of one shape, to uint8 (N, height, width, channels)."""
    upper, lower, above, below = down
    left, right, before, after = across
    count, height, values = len(planes), len(upper), planes[0].shape[1]
    lines = _buffers.get("lines", np.uint8, count, 2 * height, values)
    side = _buffers.get("side", np.uint8, count, 2 * height, len(left))
    blend = _buffers.get("across", np.int32, count, 2 * height, len(left))
    other = _buffers.get("other", np.int32, count, 2 * height, len(left))
    # Take only the needed rows, upper ones first; then blend across, then down, in OpenCV's order.
    wanted = np.concatenate((upper, lower))
    # All indices are valid; "clip" is the mode in which take writes directly to ``out``.
    for plane, out in zip(planes, lines, strict=True):
        plane.take(wanted, axis=0, out=out, mode="clip")
    np.multiply(lines.take(left, axis=2, out=side, mode="clip"), before, out=blend, dtype=np.int32)
    np.multiply(lines.take(right, axis=2, out=side, mode="clip"), after, out=other, dtype=np.int32)
    blend += other
    blend >>= 4
    blend *= np.concatenate((above, below))[:, None]
    blend >>= 16
    total = blend[:, :height]
    total += blend[:, height:]
    total += 2
    total >>= 2
    blended: Pixels = total.astype(np.uint8).reshape(count, height, -1, channels)
    return blended


class _Buffers(threading.local):
    """Buffers that one thread reuses, because writing to memory fresh from the system takes twice as long."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}

    def get(self, name: str, dtype: type, *shape: int) -> NDArray[Any]:
        """Return an uninitialized array. It is valid until the same thread asks for this name again."""
        size = math.prod(shape)
        if size > _BUFFER_VALUES:
            return np.empty(shape, dtype)
        if name not in self.arrays:
            self.arrays[name] = np.empty(_BUFFER_VALUES, dtype)
        return self.arrays[name][:size].reshape(shape)


_buffers = _Buffers()


@lru_cache(maxsize=64)
def _neighbors(source: int, target: int, channels: int) -> _Neighbors:
    """Return the neighbors along one axis and their weights, each of length ``target * channels``.

    ``channels`` is the number of adjacent values that make a pixel.
    """
    # float32 as in OpenCV, so that the weights are rounded in the same way.
    position = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.intp)
    fraction = position - first.astype(np.float32)
    fraction[(first < 0) | (first >= source - 1)] = 0
    first = np.clip(first, 0, source - 1)
    second = np.minimum(first + 1, source - 1)
    unit = np.float32(1 << _COEFFICIENT_BITS)
    channel = np.arange(channels)
    return (
        (first[:, None] * channels + channel).ravel(),
        (second[:, None] * channels + channel).ravel(),
        np.rint((1 - fraction) * unit).astype(np.int32).repeat(channels),
        np.rint(fraction * unit).astype(np.int32).repeat(channels),
    )
