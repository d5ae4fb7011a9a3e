"""From pixels of any size to what the network sees: the one resizer, and the normalisation as data.

Training, calibration, export and prediction all call this module, so that a model never
meets pixels on the device that it did not meet in training.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import InputError

Pixels = NDArray[np.uint8]
# Along one axis: index of the first and of the second neighbour, weight of the first and of the second.
_Pairs = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32], NDArray[np.int32]]

# Weights of a pixel pair are integers that sum to 2**11; OpenCV, imgproc/src/resize.cpp
# (INTER_RESIZE_COEF_BITS). Using its fixed-point arithmetic makes the result its result.
_COEFFICIENT_BITS = 11
# Of a picture above this, the pixels that are read are picked out one by one: whole rows may be long.
_LARGE = 1 << 22  # pixels
_ROOM = 1 << 18  # values in a step: four grey pictures of 256 x 256; a core's own cache holds them


@dataclass(frozen=True)
class Preprocessing:
    """How an 8-bit RGB picture becomes the network's float input; stored in the manifest.

    The device does ``resize`` only. ``normalise`` is what the exported graph contains, and
    what training and the float Keras model use.

    Attributes
    ----------
    height, width
        Size of the network's input in pixels.
    resize
        Kernel. ``"bilinear"``: half-pixel centres, no antialiasing, aspect ratio not kept.
    channel_order
        Order in which the network takes the channels.
    scale
        Factor on the 8-bit value, first.
    mean, deviation
        Subtracted, then divided by; one value a channel, in ``channel_order``, in scaled units.
    """

    height: int = 128
    width: int = 128
    resize: Literal["bilinear"] = "bilinear"
    channel_order: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def fit(self, pixels: Pixels) -> Pixels:
        """Resize one picture: uint8 (H, W, 3) RGB -> uint8 (height, width, 3) RGB."""
        fitted: Pixels = self.fit_each([pixels])[0]
        return fitted

    def fit_each(self, pictures: Sequence[Pixels]) -> Pixels:
        """Resize several pictures: uint8 (H, W, 3) RGB each -> uint8 (N, height, width, 3) RGB."""
        return resize_bilinear(pictures, self.height, self.width)

    def normalise(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """RGB values 0 to 255 (N, height, width, 3), uint8 or float -> float32 network input, same shape."""
        ordered = batch[..., ::-1] if self.channel_order == "BGR" else batch
        scaled: NDArray[np.float32] = np.multiply(ordered, np.float32(self.scale), dtype=np.float32)
        if any(self.mean):
            scaled -= np.asarray(self.mean, np.float32)
        if any(value != 1 for value in self.deviation):
            scaled /= np.asarray(self.deviation, np.float32)
        return scaled


def resize_bilinear(pictures: Sequence[Pixels], height: int, width: int) -> Pixels:
    """Bilinear resize without antialiasing, as OpenCV's ``INTER_LINEAR`` does for 8-bit pictures.

    Pictures of one size are resized together: threads that resize one by one stand in each other's way,
    since each of NumPy's many short steps takes and gives back the interpreter.

    Parameters
    ----------
    pictures
        uint8 (H, W, 3) each. A grey one, three equal channels in memory or by ``np.broadcast_to``, is resized once.
    height, width
        Wanted size in pixels.

    Returns
    -------
    uint8 (N, height, width, 3), contiguous.

    Raises
    ------
    InputError
        A picture has another dtype or shape, or no pixel.
    """
    fitted = np.empty((len(pictures), height, width, 3), np.uint8)
    alike: dict[tuple[int, int, int], list[tuple[int, Pixels]]] = {}
    for index, pixels in enumerate(pictures):
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            raise InputError(
                f"picture must be uint8 (H, W, 3) with at least one pixel. Received: {pixels.dtype} {pixels.shape}"
            )
        rows, columns, _ = pixels.shape
        if (rows, columns) == (height, width):
            fitted[index] = pixels
            continue
        if rows * columns > _LARGE:
            _write(_blend_large(pixels, height, width), fitted[index])
            continue
        # Grey: most scans are, although most are stored in colour.
        red = np.ascontiguousarray(pixels[:, :, 0])
        grey = not pixels.strides[2] or all((pixels[:, :, channel] == red).all() for channel in (1, 2))
        channels = 1 if grey else 3
        plane = (red if grey else pixels).reshape(rows, columns * channels)
        alike.setdefault((rows, columns, channels), []).append((index, plane))
    for (rows, columns, channels), members in alike.items():
        down, across = _pairs(rows, height, 1), _pairs(columns, width, channels)
        together = max(1, _ROOM // (2 * height * max(columns, width) * channels))
        for start in range(0, len(members), together):
            indices, planes = zip(*members[start : start + together], strict=True)
            for index, picture in zip(indices, _blend(planes, down, across, channels), strict=True):
                _write(picture, fitted[index])
    return fitted


def _write(picture: Pixels, out: Pixels) -> None:
    """Write uint8 (height, width, 1 or 3) to (height, width, 3)."""
    for channel in range(3):  # plain strided copies: half the time of np.repeat
        out[:, :, channel] = picture[:, :, channel % picture.shape[2]]


def _blend_large(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize a large picture, uint8 (rows, columns, 3), in memory that depends on the result's size alone."""
    rows, columns, _ = pixels.shape
    (upper, lower, *vertical), (left, right, *horizontal) = _pairs(rows, height, 1), _pairs(columns, width, 1)
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


def _blend(planes: Sequence[Pixels], down: _Pairs, across: _Pairs, channels: int) -> Pixels:
    """uint8 (rows, columns * channels) each, all of one shape -> uint8 (N, height, width, channels)."""
    upper, lower, above, below = down
    left, right, before, after = across
    count, height, values = len(planes), len(upper), planes[0].shape[1]
    lines = _room.of("lines", np.uint8, count, 2 * height, values)
    side = _room.of("side", np.uint8, count, 2 * height, len(left))
    blend = _room.of("across", np.int32, count, 2 * height, len(left))
    other = _room.of("other", np.int32, count, 2 * height, len(left))
    # Only the rows that are wanted, upper ones first; then across, then down, as OpenCV does it.
    wanted = np.concatenate((upper, lower))
    # The indices are good: "clip" alone lets take write where it is told.
    for plane, room in zip(planes, lines, strict=True):
        plane.take(wanted, axis=0, out=room, mode="clip")
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


class _Room(threading.local):
    """Each thread's memory for values on their way: filling pages that the system just gave takes twice as long."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}

    def of(self, name: str, dtype: type, *shape: int) -> NDArray[Any]:
        """An array with anything in it, good until the same thread asks for this name again."""
        size = math.prod(shape)
        if size > _ROOM:
            return np.empty(shape, dtype)
        if name not in self.arrays:
            self.arrays[name] = np.empty(_ROOM, dtype)
        return self.arrays[name][:size].reshape(shape)


_room = _Room()


@lru_cache(maxsize=64)
def _pairs(source: int, target: int, channels: int) -> _Pairs:
    """Neighbours and their weights along one axis, for values that lie ``channels`` to a pixel.

    Returns index of the first and of the second neighbour, weight of the first and of the second,
    each of length ``target * channels``.
    """
    # float32 as in OpenCV: the weights must round the same way.
    position = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.intp)
    share = position - first.astype(np.float32)
    share[(first < 0) | (first >= source - 1)] = 0
    first = np.clip(first, 0, source - 1)
    second = np.minimum(first + 1, source - 1)
    one = np.float32(1 << _COEFFICIENT_BITS)
    channel = np.arange(channels)
    return (
        (first[:, None] * channels + channel).ravel(),
        (second[:, None] * channels + channel).ravel(),
        np.rint((1 - share) * one).astype(np.int32).repeat(channels),
        np.rint(share * one).astype(np.int32).repeat(channels),
    )
