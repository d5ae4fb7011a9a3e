"""The settings of one export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .calibration.histogram import Method
from .parity.gate import UNCHANGED, Gate


@dataclass(frozen=True)
class Settings:
    """Which formats to make, with which images, and how strictly to judge them.

    ``calibration`` names a folder to use instead of the training images. ``search`` chooses the method and
    the float layers on training images. A None in ``gate`` keeps the default bound of the format.
    """

    formats: tuple[str, ...]
    data: Path
    method: Method = "minmax"
    calibration: Path | None = None
    calibration_images: int = 128
    search: bool = False
    seed: int = 0
    gate: Gate = UNCHANGED
