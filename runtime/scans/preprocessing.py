"""Describe the preprocessing of a model as data: size, channel order and normalization.

Training, calibration, export and prediction all use this class, so that pixels on the device are prepared as they
were in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .frame import Pixels
from .resize import resize_bilinear


@dataclass(frozen=True)
class Preprocessing:
    """How an 8-bit RGB picture becomes the network's float input; stored in the manifest.

    The device only resizes. ``normalize`` is part of the exported graph; training and the float Keras model call it.

    Attributes
    ----------
    height, width
        Size of the network's input in pixels.
    resize
        Kernel. ``"bilinear"``: half-pixel centers, no antialiasing, aspect ratio not kept.
    channel_order
        Order of the channels in the network's input.
    scale
        Factor by which the 8-bit value is multiplied first.
    mean, deviation
        Mean, which is then subtracted, and standard deviation, by which the result is divided. One value per channel,
        in ``channel_order`` and scaled units. ``deviation`` is a key of the manifest.
    """

    height: int = 128
    width: int = 128
    resize: Literal["bilinear"] = "bilinear"
    channel_order: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def resize_picture(self, pixels: Pixels) -> Pixels:
        """Resize one picture: uint8 (H, W, 3) RGB -> uint8 (height, width, 3) RGB."""
        resized: Pixels = self.resize_pictures([pixels])[0]
        return resized

    def resize_pictures(self, pictures: Sequence[Pixels]) -> Pixels:
        """Resize several pictures: uint8 (H, W, 3) RGB each -> uint8 (N, height, width, 3) RGB."""
        return resize_bilinear(pictures, self.height, self.width)

    def normalize(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """RGB values 0 to 255 (N, height, width, 3), uint8 or float -> float32 network input, same shape."""
        ordered = batch[..., ::-1] if self.channel_order == "BGR" else batch
        scaled: NDArray[np.float32] = np.multiply(ordered, np.float32(self.scale), dtype=np.float32)
        if any(self.mean):
            scaled -= np.asarray(self.mean, np.float32)
        if any(value != 1 for value in self.deviation):
            scaled /= np.asarray(self.deviation, np.float32)
        return scaled
