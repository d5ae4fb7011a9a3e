"""One picture of a scan, as a reader returns it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import InputError
from mri_edge.records import dataclass

if TYPE_CHECKING:
    from PIL import Image
    from pydicom import Dataset

    from .checks import ResultWarning

# What a caller may pass as a scan.
Source: TypeAlias = Union[str, "os.PathLike[str]", bytes, "Image.Image", NDArray[Any], "Dataset"]
Pixels: TypeAlias = NDArray[np.uint8]

_ROWS_COMPARED = 64  # at a time: a colored picture nearly always differs in its first rows


@dataclass(frozen=True)
class Frame:
    """One picture of a scan; a file may hold several.

    Attributes
    ----------
    pixels
        uint8 (H, W, 3) RGB. Windowing has been applied.
    source
        The path as it was given, or None for bytes, an image or an array.
    index, count
        Position of this frame in its source, from 0, and how many frames the source holds.
    metadata
        Facts from the file that a later step needs, without anything that identifies a patient. Those under a key that
        begins with an underscore are not part of a result.
    warnings
        Reasons to distrust an answer about this frame, from the file's header.
    """

    pixels: Pixels = field(repr=False, compare=False)
    source: str | None = None
    index: int = 0
    count: int = 1
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)
    warnings: tuple[ResultWarning, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Unread:
    """A frame that cannot be read, of a source whose other frames may be intact. Attributes as of ``Frame``."""

    error: InputError
    index: int
    count: int


def gray_channel(pixels: Pixels) -> Pixels | None:
    """Return one channel, uint8 (H, W), contiguous, of a picture (H, W, 3) with equal channels; None if it is colored.

    Most scans are gray, although most are stored in color.
    """
    if pixels.strides[-1] and not all(
        _has_equal_channels(pixels[top : top + _ROWS_COMPARED]) for top in range(0, len(pixels), _ROWS_COMPARED)
    ):
        return None
    return np.ascontiguousarray(pixels[..., 0])


def _has_equal_channels(pixels: Pixels) -> bool:
    """Whether each value equals the next one of its pixel. Comparing whole rows takes half as long as channels do."""
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    differences = rows[:, 1:] ^ rows[:, :-1]
    differences &= _within_pixels(differences.shape[1])
    return not differences.any()


@lru_cache(maxsize=64)
def _within_pixels(size: int) -> Pixels:
    """Return the bits that count in differences of neighboring values in a row: none from one pixel to the next."""
    return np.resize(np.array([0xFF, 0xFF, 0], np.uint8), size)


def as_rgb(gray: Pixels) -> Pixels:
    """Return a gray picture, uint8 (H, W), as a view (H, W, 3) that shows its one channel three times."""
    return np.broadcast_to(gray[:, :, None], (*gray.shape, 3))


def in_fewest_channels(pixels: Pixels) -> Pixels:
    """Return a picture (H, W, 3) as it is, or as a view of one channel if it is gray; see ``as_rgb``."""
    gray = gray_channel(pixels)
    return pixels if gray is None else as_rgb(gray)


def source_name(source: Source) -> str | None:
    """Return the path as it was given, or None for a scan that was not given as a path.

    Raises InputError for an object whose path is bytes, such as the entries of ``os.scandir(b".")``.
    """
    if not isinstance(source, str | os.PathLike):
        return None
    path: str | bytes = os.fspath(source)
    if isinstance(path, bytes):
        raise InputError(f"a path must be text. Received: {path!r}", "Pass os.fsdecode(path)")
    return path


def not_one_frame(source: Source, count: int, hint: str = "") -> InputError:
    """Return the error for a scan of ``count`` frames where one is needed."""
    name = source_name(source) or "the scan"
    return InputError(f"{name}: holds {count} frames, one is needed", hint, code="unsupported")
