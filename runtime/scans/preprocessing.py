"""Describe the preprocessing of a model as data: framing, size, channel order and normalization.

Training, calibration, export and prediction all use this class, so that pixels on the device are prepared as they
were in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mri_edge.records import dataclass

from . import framing
from .frame import Pixels
from .resize import resize_antialiased, resize_bilinear


@dataclass(frozen=True)
class Preprocessing:
    """How an 8-bit RGB picture becomes the network's float input; stored in the manifest.

    The device only frames and resizes. ``normalize`` is part of the exported graph; training and the float Keras model
    call it.

    Attributes
    ----------
    height, width
        Size of the network's input in pixels.
    framing
        Section of the picture that is resized. ``"picture"``: all of it, so the aspect ratio is not kept. ``"head"``:
        the square around the head, see ``framing.head_section``.
    resize
        Kernel. ``"bilinear"``: half-pixel centers, no antialiasing, as OpenCV. ``"antialiased"``: a triangle as wide
        as the reduction, as Pillow.
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
    framing: Literal["picture", "head"] = "picture"
    resize: Literal["bilinear", "antialiased"] = "bilinear"
    channel_order: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def section(self, pixels: Pixels) -> Pixels:
        """Return the section of a picture that the network gets: uint8 (H, W, 3) RGB -> uint8 (h, w, 3) RGB."""
        return pixels if self.framing == "picture" else framing.head_section(pixels)

    def resize_sections(self, sections: Sequence[Pixels]) -> Pixels:
        """Resize sections of pictures: uint8 (H, W, 3) RGB each -> uint8 (N, height, width, 3) RGB."""
        resize = resize_antialiased if self.resize == "antialiased" else resize_bilinear
        return resize(sections, self.height, self.width)

    def resize_picture(self, pixels: Pixels) -> Pixels:
        """Frame and resize one picture: uint8 (H, W, 3) RGB -> uint8 (height, width, 3) RGB."""
        resized: Pixels = self.resize_pictures([pixels])[0]
        return resized

    def resize_pictures(self, pictures: Sequence[Pixels]) -> Pixels:
        """Frame and resize several pictures: uint8 (H, W, 3) RGB each -> uint8 (N, height, width, 3) RGB."""
        return self.resize_sections([self.section(pixels) for pixels in pictures])

    def normalize(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """RGB values 0 to 255 (N, height, width, 3), uint8 or float -> float32 network input, same shape."""
        ordered = batch[..., ::-1] if self.channel_order == "BGR" else batch
        scaled: NDArray[np.float32] = np.multiply(ordered, np.float32(self.scale), dtype=np.float32)
        if any(self.mean):
            scaled -= np.asarray(self.mean, np.float32)
        if any(value != 1 for value in self.deviation):
            scaled /= np.asarray(self.deviation, np.float32)
        return scaled
