"""From pixels of any size to what the network sees: the one resizer, and the normalisation as data.

Training, calibration, export and prediction all call this module, so that a model never
meets pixels on the device that it did not meet in training.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

Pixels = NDArray[np.uint8]

# Weights of a pixel pair are integers that sum to 2**11; OpenCV, imgproc/src/resize.cpp
# (INTER_RESIZE_COEF_BITS). Using its fixed-point arithmetic makes the result its result.
_COEFFICIENT_BITS = 11
_LARGEST_ROOM = 1 << 20  # values; a picture of 128 x 128 in three channels needs a tenth


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
        return resize_bilinear(pixels, self.height, self.width)

    def normalise(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """RGB values 0 to 255 (N, height, width, 3), uint8 or float -> float32 network input, same shape."""
        ordered = batch[..., ::-1] if self.channel_order == "BGR" else batch
        scaled: NDArray[np.float32] = np.multiply(ordered, np.float32(self.scale), dtype=np.float32)
        if any(self.mean):
            scaled -= np.asarray(self.mean, np.float32)
        if any(value != 1 for value in self.deviation):
            scaled /= np.asarray(self.deviation, np.float32)
        return scaled


def resize_bilinear(pixels: Pixels, height: int, width: int) -> Pixels:
    """Bilinear resize without antialiasing, as OpenCV's ``INTER_LINEAR`` does for 8-bit pictures.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3). A grey picture, three equal channels in memory or by ``np.broadcast_to``, is resized once.
    height, width
        Wanted size in pixels.

    Returns
    -------
    uint8 (height, width, 3), contiguous.

    Raises
    ------
    InputError
        ``pixels`` has another dtype or shape, or no pixel.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise InputError(
            f"picture must be uint8 (H, W, 3) with at least one pixel. Received: {pixels.dtype} {pixels.shape}"
        )
    if pixels.shape[:2] == (height, width):
        return np.ascontiguousarray(pixels)
    red = np.ascontiguousarray(pixels[:, :, 0])
    if pixels.strides[2] and not all((pixels[:, :, channel] == red).all() for channel in (1, 2)):
        return _blend(pixels, height, width)
    # Grey: most scans are, although most are stored in colour.
    grey = _blend(red[:, :, None], height, width)[:, :, 0]
    fitted = np.empty((height, width, 3), np.uint8)
    for channel in range(3):  # plain strided copies: half the time of np.repeat
        fitted[:, :, channel] = grey
    return fitted


def _blend(pixels: Pixels, height: int, width: int) -> Pixels:
    rows, columns, channels = pixels.shape
    upper, lower, above, below = _pairs(rows, height, 1)
    left, right, before, after = _pairs(columns, width, channels)
    side, across, other = _room.of(2 * height, width * channels)
    # Only the rows that are wanted, upper ones first; then across, then down, as OpenCV does it.
    lines = pixels.reshape(rows, columns * channels).take(np.concatenate((upper, lower)), axis=0)
    # The indices are good: "clip" alone lets take write where it is told.
    np.multiply(lines.take(left, axis=1, out=side, mode="clip"), before, out=across, dtype=np.int32)
    np.multiply(lines.take(right, axis=1, out=side, mode="clip"), after, out=other, dtype=np.int32)
    across += other
    across >>= 4
    across *= np.concatenate((above, below))[:, None]
    across >>= 16
    down = across[:height]
    down += across[height:]
    down += 2
    down >>= 2
    return down.astype(np.uint8).reshape(height, width, channels)


class _Room(threading.local):
    """Each thread's memory for values on their way: filling pages that the system just gave takes twice as long."""

    size = 0

    def of(self, rows: int, columns: int) -> tuple[Pixels, NDArray[np.int32], NDArray[np.int32]]:
        """Three arrays (rows, columns) with anything in them, good until the same thread asks again."""
        size = rows * columns
        if size > _LARGEST_ROOM:
            return np.empty((rows, columns), np.uint8), *np.empty((2, rows, columns), np.int32)
        if size > self.size:
            self.size, self.bytes, self.integers = size, np.empty(size, np.uint8), np.empty((2, size), np.int32)
        first, second = self.integers[:, :size].reshape(2, rows, columns)
        return self.bytes[:size].reshape(rows, columns), first, second


_room = _Room()


@lru_cache(maxsize=64)
def _pairs(
    source: int, target: int, channels: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32], NDArray[np.int32]]:
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
