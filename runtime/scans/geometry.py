"""Turn slices to the radiological view, from the directions of their rows and columns in the patient.

All directions and positions are in DICOM's patient coordinates, LPS+: x grows to the patient's left, y to the back
(posterior), z to the head (superior); PS3.3 C.7.6.2.1.1. NIfTI is RAS+, so x and y change their sign first.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import InputError

from .frame import Pixels
from .resize import resize_bilinear

Vector: TypeAlias = Sequence[float] | NDArray[np.float64]
_Vector: TypeAlias = tuple[float, float, float]

# For each plane: the patient axis across the slices, then the axis and sign that point right and down on the screen.
_SCREEN = {
    "axial": (2, (0, 1), (1, 1)),  # the patient's left is on the right, the front is on top
    "coronal": (1, (0, 1), (2, -1)),  # the patient's left is on the right, the head is on top
    "sagittal": (0, (1, 1), (2, -1)),  # the face looks to the left, the head is on top
}
_TIE = 1e-4  # components that differ by less are equal; text in DICOM rounds them to about six digits
_MIN_SINE = 0.5  # of the angle between rows and columns; below it the directions are no image plane

_MAX_UNEQUAL = 0.01  # relative difference of the spacings that nobody sees
_MAX_ASPECT = 50.0  # a reformatted volume has up to 20; more is a wrong header
_MAX_PIXELS = 16_000_000  # of a resampled picture: resizing holds 20 bytes for each
_MAX_SIDE = 65_535  # pixels, as of a picture that is read


@dataclass(frozen=True)
class View:
    """How a stored slice is turned to the radiological view, by steps of 90 degrees and mirroring.

    An oblique slice is turned to the nearest such view and not resampled.

    Attributes
    ----------
    plane
        "axial", "coronal" or "sagittal", whichever is nearest.
    transpose
        Whether rows and columns are exchanged, which is done first.
    flip_rows, flip_columns
        Whether the order of the rows (upside down) and of the columns (left to right) is reversed afterwards.
    """

    plane: str
    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def turn(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Turn a slice: (H, W, …) as stored -> (H, W, …) or (W, H, …), a view of the same memory."""
        turned = pixels.swapaxes(0, 1) if self.transpose else pixels
        return turned[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def turn_spacing(self, spacing: tuple[float, float]) -> tuple[float, float]:
        """Return the distances between rows and between columns after the turn, from those of the stored slice."""
        return (spacing[1], spacing[0]) if self.transpose else spacing

    def describe(self) -> str:
        """Return the turn for people: "as stored", or for instance "transposed, flipped upside down"."""
        steps = [
            ("transposed", self.transpose),
            ("flipped upside down", self.flip_rows),
            ("flipped left to right", self.flip_columns),
        ]
        return ", ".join(name for name, taken in steps if taken) or "as stored"


def radiological_view(row: Vector, column: Vector) -> View | None:
    """Return the turn that shows a slice as radiologists see it, or None if the directions are unusable.

    The largest component of the normal names the plane. At equal components axial comes before coronal, and coronal
    before sagittal.

    Parameters
    ----------
    row, column
        Directions in LPS+ along a row (growing column index) and along a column (growing row index), of any length:
        the first and last three values of Image Orientation (Patient). They need not be exactly perpendicular.
    """
    normal = _normal(row, column)
    if normal is None:
        return None
    largest = max(map(abs, normal))
    plane = next(name for name, (axis, _, _) in _SCREEN.items() if abs(normal[axis]) >= largest - _TIE)
    _, (right, right_sign), (down, down_sign) = _SCREEN[plane]
    row, column = _unit(row), _unit(column)
    # The larger sum belongs to the nearer view. None of its terms is zero, because the normal is near the plane's axis.
    transpose = abs(row[down]) + abs(column[right]) > abs(row[right]) + abs(column[down]) + _TIE
    across, along = (column, row) if transpose else (row, column)
    return View(
        plane,
        transpose=transpose,
        flip_rows=along[down] * down_sign < 0,
        flip_columns=across[right] * right_sign < 0,
    )


def position_along_normal(row: Vector, column: Vector, position: Vector) -> float | None:
    """Return the distance in mm of a slice from the origin, along its normal; None if the geometry is unusable.

    It grows towards the head for axial slices, the back for coronal and the patient's left for sagittal ones, whichever
    side of the slice is stored.

    Parameters
    ----------
    row, column
        As for ``radiological_view``.
    position
        Coordinates of one fixed pixel in LPS+, in mm: Image Position (Patient).
    """
    normal, view = _normal(row, column), radiological_view(row, column)
    if normal is None or view is None or len(position) != 3 or not all(map(math.isfinite, position)):
        return None
    sign = math.copysign(1.0, normal[_SCREEN[view.plane][0]])
    return sign * math.fsum(along * float(value) for along, value in zip(normal, position, strict=True))


def square_pixels(pixels: Pixels, spacing: tuple[float, float], name: str) -> Pixels:
    """Resample a picture to square pixels if its spacings differ by over 1 %. The finer spacing is kept.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3) RGB.
    spacing
        Distances between rows and between columns: Pixel Spacing in mm, or Pixel Aspect Ratio. Zero, negative or
        infinite values say nothing, so the picture is returned as it is.
    name
        Name of the scan for the message.

    Returns
    -------
    uint8 (H', W', 3), or ``pixels`` itself. A gray picture with one channel in memory stays one.

    Raises
    ------
    InputError
        ``"damaged"``: the spacings differ by more than a factor of 50. ``"too_large"``: the result would have more
        than 16,000,000 pixels, or 65,535 along a side.
    """
    if not all(math.isfinite(value) and value > 0 for value in spacing):
        return pixels
    finer, coarser = min(spacing), max(spacing)
    if coarser - finer <= _MAX_UNEQUAL * finer:
        return pixels
    if coarser > _MAX_ASPECT * finer:
        raise InputError(
            f"{name}: damaged scan (pixels of {spacing[0]:g} x {spacing[1]:g} mm)",
            "Export it again",
            code="damaged",
            value=min(coarser / finer, sys.float_info.max),  # JSON has no infinity
            limit=_MAX_ASPECT,
        )
    height, width = (
        max(1, round(length * step / finer)) for length, step in zip(pixels.shape[:2], spacing, strict=True)
    )
    if height * width > _MAX_PIXELS:
        raise InputError(
            f"{name}: too large, {width} x {height} square pixels",
            f"The limit is {_MAX_PIXELS:,} pixels: make it smaller",
            code="too_large",
            value=height * width,
            limit=_MAX_PIXELS,
        )
    if max(height, width) > _MAX_SIDE:
        raise InputError(
            f"{name}: too large, {width} x {height} square pixels",
            f"The limit is {_MAX_SIDE:,} pixels a side: make it smaller",
            code="too_large",
            value=max(height, width),
            limit=_MAX_SIDE,
        )
    resampled: Pixels = resize_bilinear([pixels], height, width)[0]
    if pixels.strides[2]:
        return resampled
    return np.broadcast_to(np.ascontiguousarray(resampled[:, :, :1]), resampled.shape)  # gray, as ``pixels``


def _normal(row: Vector, column: Vector) -> _Vector | None:
    """Return the unit normal row x column, or None if the directions do not span a plane."""
    if len(row) != 3 or len(column) != 3 or not all(map(math.isfinite, (*row, *column))):
        return None
    (a, b, c), (d, e, f) = _unit(row), _unit(column)
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    return _unit(normal) if math.hypot(*normal) >= _MIN_SINE else None


def _unit(vector: Vector) -> _Vector:
    """Scale a vector to the length 1. A vector without a length stays zero."""
    x, y, z = map(float, vector)
    length = math.hypot(x, y, z)
    return (x / length, y / length, z / length) if 0 < length < math.inf else (0.0, 0.0, 0.0)
