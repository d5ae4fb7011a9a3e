"""From pixels of any size to what the network sees: the one resizer, and the normalisation as data.

Training, calibration, export and prediction all call this module, so that a model never
meets pixels on the device that it did not meet in training.
"""

from __future__ import annotations

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
        uint8 (H, W, 3). A grey picture repeated by ``np.broadcast_to`` is resized once.
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
    if pixels.strides[2] == 0:  # grey seen as three channels: do the work once
        return np.repeat(_blend(pixels[:, :, :1], height, width), 3, axis=2)
    return _blend(pixels, height, width)


def _blend(pixels: Pixels, height: int, width: int) -> Pixels:
    rows, columns, channels = pixels.shape
    upper, lower, above, below = _pairs(rows, height, 1)
    left, right, before, after = _pairs(columns, width, channels)
    # Only the rows that are wanted, upper ones first; then across, then down, as OpenCV does it.
    lines = pixels.reshape(rows, columns * channels).take(np.concatenate((upper, lower)), axis=0)
    across = np.multiply(lines.take(left, axis=1), before, dtype=np.int32)
    across += np.multiply(lines.take(right, axis=1), after, dtype=np.int32)
    across >>= 4
    across *= np.concatenate((above, below))[:, None]
    across >>= 16
    down = across[:height] + across[height:]
    down += 2
    down >>= 2
    return down.astype(np.uint8).reshape(height, width, channels)


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
