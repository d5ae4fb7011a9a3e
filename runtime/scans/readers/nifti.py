"""Read NIfTI volumes: every slice becomes a frame in radiological view, uint8 (H, W, 3) RGB.

NIfTI-1 and NIfTI-2, plain or gzip-compressed, with integer or float voxels. A volume with nearly equal spacings is cut
into axial slices, one with thick slices into those in which it was acquired. Slices that hold nothing are frames as
well, so that the index of a frame is the index of the slice in the file; ``scans.checks`` warns that they are blank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import InputError
from mri_edge.scans.checks import ResultWarning
from mri_edge.scans.frame import Frame, Pixels, Source, as_rgb, source_name
from mri_edge.scans.geometry import position_along_normal, square_pixels
from mri_edge.scans.intensity import (
    HIGH_PERCENTILE,
    LOW_PERCENTILE,
    Histogram,
    Window,
    hides_scan,
    percentile_window,
    to_gray,
)
from mri_edge.scans.options import DEFAULT, ReadOptions
from mri_edge.scans.series import SliceFacts

from ._nifti_data import GZIP, VoxelFile, first_block, open_voxels
from ._nifti_header import Volume, version_of

NAME = "nifti"
SUFFIXES = (".nii", ".nii.gz")

_NO_ORIENTATION = ResultWarning(
    "no_orientation", "the file does not say how its slices lie: left and right may be exchanged"
)
_HUGE = 1e300  # the difference of two such values is still finite
_POWERS = 2_400  # twice more than the largest and the smallest exponent of a 64-bit float, 1,024 and -1,073
_MAX_ZOOMS = 3  # passes over the voxels that exclude outliers; each narrows the range up to 65,536 times
# Percentiles of stored values that the range must hold: those of the window, mirrored too for a negative slope.
_OUTER = min(LOW_PERCENTILE, 100 - HIGH_PERCENTILE), max(HIGH_PERCENTILE, 100 - LOW_PERCENTILE)
_BINS = 1 << 16  # of ``intensity.Histogram``
_FEW_BINS = 2_048  # a window of as many bins of the histogram is exact to an eighth of a gray level


def recognizes(head: bytes, path: str) -> bool:
    """Whether a file, plain or compressed, begins with the header of NIfTI."""
    return version_of(first_block(head) if head[:2] == GZIP else head) is not None


def read(source: Source, options: ReadOptions = DEFAULT) -> Iterator[Frame]:
    """Yield the slices in the order of the file.

    The window of the file is the range that its header asks viewers to show (cal_min and cal_max). Where it has none,
    or shows nothing in it, the window runs from percentile 1 to 99.5 of the volume. ``Frame.metadata["nifti"]`` is the
    record of what was used; under ``"_facts"`` is the slice's ``SliceFacts``.

    Memory: two planes of the file and the frame. To that a compressed volume of up to 64 MiB adds its size, and slices
    that run against the file's order add one byte for each voxel, at most 268 MB. More than 268,435,456 voxels or 1 GiB
    of them is refused by the header; of a compressed file at most 1 MiB more is decompressed than the header declares.

    Parameters
    ----------
    source
        A path, or the bytes of a file.

    Raises
    ------
    InputError
        ``code`` is "missing", "not_a_file", "damaged", "too_large", "out_of_memory", "unreadable", or "unsupported":
        several volumes, colors, complex numbers, maps of labels or statistics, .hdr and .img pairs.
    """
    name = source_name(source) or "NIfTI scan"
    with open_voxels(source, name) as file:
        volume = file.volume
        warnings = [] if volume.oriented else [_NO_ORIENTATION]
        with np.errstate(all="ignore"):  # values near the limits of a float overflow, and become black or white
            window = _window(file, options, warnings)
        for index, gray in enumerate(_slices(file, window)):
            yield Frame(
                _picture(gray, volume, name),
                source_name(source),
                index,
                volume.count,
                {
                    "nifti": _record(volume, index, window),
                    "_facts": _facts(volume, index, source_name(source) or "", compressed=file.compressed),
                },
                tuple(warnings),
            )


def slice_facts(source: Source, options: ReadOptions = DEFAULT) -> Iterator[SliceFacts]:
    """Yield what the header says about each slice, without reading voxels. An unsupported file yields its refusal.

    Raises
    ------
    InputError
        The header cannot be read, because it is damaged or nibabel is not installed.
    """
    name = source_name(source) or ""
    try:
        with open_voxels(source, name or "NIfTI scan") as file:
            volume, compressed = file.volume, file.compressed
    except InputError as error:
        if error.code not in ("unsupported", "too_large") or isinstance(error.__cause__, ImportError):
            raise
        yield SliceFacts(name, kind=NAME, refusal=error)
        return
    for index in range(volume.count):
        yield _facts(volume, index, name, compressed=compressed)


def _facts(volume: Volume, index: int, name: str, *, compressed: bool) -> SliceFacts:
    display = volume.display
    return SliceFacts(
        name,
        index,
        volume.count,
        NAME,
        orientation=volume.orientation,
        position=volume.position(index),
        spacing=volume.spacing,
        matrix=volume.matrix,
        syntax=f"{'gzip, ' if compressed else ''}{volume.dtype.name}",
        window=None if display is None else (display[0] / 2 + display[1] / 2, display[1] - display[0]),
    )


def _picture(gray: NDArray[np.uint8], volume: Volume, name: str) -> Pixels:
    turned = np.ascontiguousarray(volume.view.turn(gray))
    pixels = as_rgb(turned)
    return square_pixels(pixels, volume.view.turn_spacing(volume.spacing), name)


def _slices(file: VoxelFile, window: Window) -> Iterator[NDArray[np.uint8]]:
    """Yield the gray slices as stored, (H, W)."""
    volume = file.volume
    grays = (_gray(plane, volume, window) for plane in file.planes())
    if volume.axis == 2:
        yield from grays
        return
    voxels = np.empty(volume.shape[::-1], np.uint8)
    for index, gray in enumerate(grays):
        voxels[index] = gray
    for index in range(volume.count):
        yield voxels.take(index, axis=2 - volume.axis)


def _gray(plane: NDArray[Any], volume: Volume, window: Window) -> NDArray[np.uint8]:
    with np.errstate(all="ignore"):
        return to_gray(plane, window, modality=volume.rescale)


def _window(file: VoxelFile, options: ReadOptions, warnings: list[ResultWarning]) -> Window:
    """Choose the window, and add a warning if that of the file shows nothing."""
    if isinstance(options.window, Window):
        # LINEAR is for integers: with a width of 1, as for values from 0 to 1, it shows black and white only.
        exact = options.window.function == "LINEAR"
        return replace(options.window, function="LINEAR_EXACT") if exact else options.window
    volume = file.volume
    histogram = _histogram(file)
    if volume.display and options.window == "file":
        low, high = volume.display
        window = Window(low / 2 + high / 2, high - low, "LINEAR_EXACT", "file")
        if window.is_valid() and not _hides_scan(histogram, volume, window):
            return window
        message = "the display range in the file (cal_min, cal_max) shows nothing: percentiles are used"
        warnings.append(ResultWarning("fallback_window", message))
    return options.fallback or percentile_window(histogram, volume.rescale)


def _histogram(file: VoxelFile) -> Histogram:
    """Count the stored values. Of wide types the range of the percentiles is found first, because of outliers."""
    dtype = file.volume.dtype
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        histogram = Histogram()
        for plane in file.planes():
            histogram.add(plane)
        return histogram
    low, high, lowest, highest = _ranges(file)
    for _ in range(_MAX_ZOOMS):
        histogram = _counted(file, low, high)
        inner_low, inner_high = _percentiles(histogram)
        step = (high - low) / (_BINS - 1)
        if inner_high - inner_low >= _FEW_BINS * step:
            return histogram
        low, high = max(low, inner_low - step), min(high, inner_high + step)
        if not high > low:
            break
    return histogram if inner_high > inner_low else _counted(file, lowest, highest)


def _counted(file: VoxelFile, low: float, high: float) -> Histogram:
    """Count the stored values between two limits in equal bins; those outside are counted at the nearer limit."""
    histogram = Histogram(low, high)
    for plane in file.planes():
        histogram.add(plane)
    return histogram


def _percentiles(histogram: Histogram) -> tuple[float, float]:
    """Return the stored values at the outer percentiles."""
    stored, counts = histogram.counted()
    if not stored.size:
        return 0.0, 0.0
    below = np.cumsum(counts)
    wanted = np.array(_OUTER) / 100 * below[-1]
    low, high = stored[np.searchsorted(below, wanted)]
    return float(low), float(high)


def _ranges(file: VoxelFile) -> tuple[float, float, float, float]:
    """Return two limits around the percentiles of the finite values, right to a factor of 2, and the extreme values.

    Powers of 2 are counted, which needs no range: one outlier of 1e30 would leave all other values in one equal bin.
    """
    counts = np.zeros(2 * _POWERS + 1, np.int64)
    lowest, highest = math.inf, -math.inf
    for plane in file.planes():
        finite = plane[np.isfinite(plane)].astype(np.float64)
        if finite.size:
            lowest, highest = min(lowest, float(finite.min())), max(highest, float(finite.max()))
            mantissa, exponent = np.frexp(finite)
            signed = np.sign(mantissa).astype(np.int64) * (exponent + _POWERS // 2)
            counts += np.bincount((signed + _POWERS).ravel(), minlength=len(counts))
    if lowest > highest:
        return 0.0, 0.0, 0.0, 0.0
    lowest, highest = max(lowest, -_HUGE), min(highest, _HUGE)
    below = np.cumsum(counts)
    first, last = np.searchsorted(below, np.array(_OUTER) / 100 * below[-1]) - _POWERS
    # A positive number x has the power e where 2 ** (e - 1) <= x < 2 ** e.
    low = np.ldexp(np.sign(first), abs(first) - _POWERS // 2 - (first > 0))
    high = np.ldexp(np.sign(last), abs(last) - _POWERS // 2 - (last < 0))
    return max(float(low), lowest), min(float(high), highest), lowest, highest


def _hides_scan(histogram: Histogram, volume: Volume, window: Window) -> bool:
    stored, counts = histogram.counted()
    return hides_scan(volume.rescale.apply(stored), to_gray(stored, window, modality=volume.rescale), counts)


def _record(volume: Volume, index: int, window: Window) -> dict[str, Any]:
    """Return what was used, for the result; as the record of a DICOM frame."""
    orientation, position = volume.orientation, volume.position(index)
    along = position_along_normal(orientation[:3], orientation[3:], position)
    return {
        "frame": index + 1,
        "plane": volume.view.plane,
        "position": None if along is None else round(along, 3),
        "window": window.to_dict(),
        "rescale": volume.rescale.to_dict(),
    }
