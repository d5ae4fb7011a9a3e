"""Turn the values that a scanner stored into 8-bit gray levels: rescale, window, polarity, percentiles.

The readers of DICOM and NIfTI use it. The formulas are those of DICOM PS3.3; its sections are named where they apply.
Integers of up to 16 bits go through a lookup table, because a table for the values that occur takes a fraction of the
time of floating-point arithmetic on every pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Gray: TypeAlias = NDArray[np.uint8]
Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID", "LUT"]
Origin = Literal["file", "option", "percentiles"]

LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.5  # our choice: PS3.3 has no rule for a scan without a window
_BINS = 1 << 16
_BLOCK = 1 << 18  # values that are converted at a time where no table is possible: 2 MB as float64
_FOREGROUND = 0.1  # of the range of values in a frame or a volume; air in MR stays below
_MAX_AT_ONE_END = 0.99  # of the foreground; a window beyond it hides the scan


class Modality(Protocol):
    """From stored values to the values that windows are about (PS3.3 C.11.1)."""

    def apply(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Convert an array of any shape to float64."""


@dataclass(frozen=True)
class Rescale:
    """A linear modality transformation, ``slope * stored + intercept`` (PS3.3 C.11.1.1.2)."""

    slope: float = 1.0
    intercept: float = 0.0

    def apply(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Convert an array of any shape to float64."""
        values = stored.astype(np.float64)
        if self.slope != 1:
            values *= self.slope
        if self.intercept != 0:
            values += self.intercept
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for a result."""
        return {"slope": self.slope, "intercept": self.intercept}


@dataclass(frozen=True)
class LookupTable:
    """A table of a file, for values (PS3.3 C.11.1) or for gray levels (C.11.2).

    Attributes
    ----------
    first
        The value that the first entry is for. Values below it get the first entry, values above the table the last.
    entries
        (N,), N at least 1.
    bits
        Bits of an entry. As a window, 0 is black and ``2 ** bits - 1`` is white.
    origin
        Where a window comes from.
    """

    first: int
    entries: NDArray[np.integer[Any]] = field(repr=False, compare=False)
    bits: int = 16
    origin: Origin = "file"

    def apply(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Return the entries for an array of any shape, as float64."""
        index = np.clip(np.rint(stored) - self.first, 0, len(self.entries) - 1).astype(np.int64)
        values: NDArray[np.float64] = self.entries[index].astype(np.float64)
        return values

    def levels(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return gray levels, 0 to 255, as float64."""
        levels = self.apply(values)
        levels *= 255 / (2**self.bits - 1)
        return np.clip(levels, 0, 255, out=levels)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for a result."""
        return {"center": None, "width": None, "function": "LUT", "from": self.origin}


@dataclass(frozen=True)
class Window:
    """A window in rescaled units (PS3.3 C.11.2).

    Attributes
    ----------
    center, width
        ``width`` is at least 1 for LINEAR and above 0 for the others.
    function
        LINEAR (C.11.2.1.2.1), LINEAR_EXACT (C.11.2.1.3.2) or SIGMOID (C.11.2.1.3.1).
    origin
        Where it comes from: the file, the caller's option, or percentiles of the values.
    """

    center: float
    width: float
    function: Function = "LINEAR"
    origin: Origin = "file"

    def levels(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return gray levels, 0 to 255, as float64."""
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):  # far below the window exp is infinite and the level 0
                return 255 / (1 + np.exp(-4 * (values - self.center) / self.width))
        if self.function == "LINEAR":
            # A width of 1 leaves two levels: black up to center - 0.5, white above.
            if self.width == 1:
                return np.where(values > self.center - 0.5, 255.0, 0.0)
            levels = (values - (self.center - 0.5)) / (self.width - 1)
        else:
            levels = (values - self.center) / self.width
        levels += 0.5
        levels *= 255
        return np.clip(levels, 0, 255, out=levels)

    def is_valid(self) -> bool:
        """Whether PS3.3 allows the width."""
        finite = bool(np.isfinite(self.center) and np.isfinite(self.width))
        return finite and (self.width >= 1 if self.function == "LINEAR" else self.width > 0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for a result."""
        return {"center": self.center, "width": self.width, "function": self.function, "from": self.origin}


@dataclass(frozen=True)
class Padding:
    """Stored values, both ends included, that fill a picture where nothing was measured (PS3.3 C.7.5.1.1.2)."""

    low: int
    high: int

    def mask(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where an array is padding."""
        inside: NDArray[np.bool_] = (stored >= self.low) & (stored <= self.high)
        return inside


NO_RESCALE = Rescale()


def to_gray(
    stored: NDArray[Any],
    window: Window | LookupTable,
    *,
    modality: Modality = NO_RESCALE,
    invert: bool = False,
    padding: Padding | None = None,
) -> Gray:
    """Convert stored values to gray levels, uint8 of the same shape.

    Levels are rounded to the nearest. NaN becomes 0, as does padding, whatever the polarity.

    Parameters
    ----------
    stored
        Integers or floats of any shape.
    invert
        Whether low values are white: MONOCHROME1, or a Presentation LUT Shape of INVERSE. Applied last, once.
    """
    if stored.size == 0:
        return np.zeros(stored.shape, np.uint8)
    if stored.dtype.kind in "iu":
        lowest, highest = int(stored.min()), int(stored.max())
        if highest - lowest < _BINS:
            table = _levels(np.arange(lowest, highest + 1), window, modality, invert)
            if padding is not None:
                table[max(0, padding.low - lowest) : max(0, padding.high + 1 - lowest)] = 0
            # Subtraction wraps around in 16 bits, so the difference is right for int16 as well.
            index = stored - stored.dtype.type(lowest) if lowest else stored
            unsigned = np.dtype(f"u{stored.dtype.itemsize}").newbyteorder("=")
            return np.take(table, index.astype(unsigned, copy=False), mode="clip")
    gray = np.empty(stored.shape, np.uint8)
    flat, source = gray.reshape(-1), stored.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = source[start : start + _BLOCK]
        flat[start : start + _BLOCK] = _levels(block, window, modality, invert)
        if padding is not None:
            flat[start : start + _BLOCK][padding.mask(block)] = 0
    return gray


def _levels(stored: NDArray[Any], window: Window | LookupTable, modality: Modality, invert: bool) -> Gray:
    levels = window.levels(modality.apply(stored))
    if invert:
        np.subtract(255, levels, out=levels)
    levels += 0.5
    if stored.dtype.kind == "f":
        np.nan_to_num(levels, copy=False, nan=0.0)
    return levels.astype(np.uint8)


def hides_scan(values: NDArray[Any], gray: Gray, counts: NDArray[np.int64] | None = None) -> bool:
    """Whether a window made nearly the whole foreground black or white, so that nothing can be seen.

    The foreground is what lies more than a tenth of the range above the lowest value. One bright pixel would be all of
    it, so the window must also hide what is above a tenth of the range up to percentile 99.5. Values that are all equal
    have no foreground.

    Parameters
    ----------
    values
        Values of a frame, or the different values of a volume.
    gray
        Their gray levels.
    counts
        How often each value occurs. None: once.
    """
    if not values.size:
        return False
    lowest, highest = float(values.min()), float(values.max())
    if not highest > lowest or not _hides_above(lowest + _FOREGROUND * (highest - lowest), values, gray, counts):
        return False
    bright = _bright_end(values, counts)
    return not bright > lowest or _hides_above(lowest + _FOREGROUND * (bright - lowest), values, gray, counts)


def _hides_above(level: float, values: NDArray[Any], gray: Gray, counts: NDArray[np.int64] | None) -> bool:
    foreground = values > level
    everything, black, white = (
        np.count_nonzero(mask) if counts is None else int(counts[mask].sum())
        for mask in (foreground, foreground & (gray == 0), foreground & (gray == 255))
    )
    return bool(max(black, white) > _MAX_AT_ONE_END * everything)


def _bright_end(values: NDArray[Any], counts: NDArray[np.int64] | None) -> float:
    if counts is None:
        return float(np.percentile(values, HIGH_PERCENTILE))
    order = np.argsort(values, kind="stable")
    below = np.cumsum(counts[order])
    return float(values[order[np.searchsorted(below, HIGH_PERCENTILE / 100 * below[-1])]])


class Histogram:
    """Counts of the stored values of one or many frames, for percentiles without a copy of the frames.

    Integers of up to 16 bits are counted exactly. Wider integers and floats need the range of all frames, and are
    counted in 65,536 equal bins.

    Parameters
    ----------
    low, high
        The lowest and the highest value that will be added. None: integers of up to 16 bits.
    """

    def __init__(self, low: float | None = None, high: float | None = None) -> None:
        self._exact = low is None or high is None
        self._low, self._step = 0.0, 1.0
        self._counts = np.zeros(0, np.int64)
        if low is not None and high is not None:
            self._low, self._step = float(low), (float(high) - float(low)) / (_BINS - 1) or 1.0
            self._counts = np.zeros(_BINS, np.int64)

    def add(self, stored: NDArray[Any], padding: Padding | None = None) -> None:
        """Count the values of an array of any shape. Padding, NaN and infinity are left out."""
        flat = stored.reshape(-1)
        if not flat.size:
            return
        if self._exact:
            self._add_exactly(flat, padding)
            return
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            if padding is not None:
                block = block[~padding.mask(block)]
            values = block.astype(np.float64)
            if block.dtype.kind == "f":
                values = values[np.isfinite(values)]
            values -= self._low
            values /= self._step
            bins = np.clip(np.rint(values, out=values), 0, _BINS - 1, out=values).astype(np.int64)
            self._counts += np.bincount(bins, minlength=_BINS)

    def _add_exactly(self, flat: NDArray[Any], padding: Padding | None) -> None:
        lowest = min(0, int(flat.min()))  # values from 0 on need no subtraction
        counts = np.bincount(np.subtract(flat, lowest, dtype=np.int64) if lowest else flat)
        if padding is not None:
            counts[max(0, padding.low - lowest) : max(0, padding.high + 1 - lowest)] = 0
        if not self._counts.size:
            self._low, self._counts = float(lowest), counts
            return
        start = min(int(self._low), lowest)
        end = max(int(self._low) + len(self._counts), lowest + len(counts))
        total = np.zeros(end - start, np.int64)
        total[int(self._low) - start :][: len(self._counts)] = self._counts
        total[lowest - start :][: len(counts)] += counts
        self._low, self._counts = float(start), total

    def counted(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the stored values that occur, in ascending order, and how often each does."""
        occurring = np.flatnonzero(self._counts)
        stored = occurring.astype(np.float64)
        stored *= self._step
        stored += self._low
        return stored, self._counts[occurring]


def percentile_window(histogram: Histogram, modality: Modality = NO_RESCALE) -> Window:
    """Return the window from the 1st to the 99.5th percentile of the rescaled values.

    Where these percentiles are equal, as in a frame of mostly air, it ends at the highest value. Where all values are
    equal, they become black.
    """
    stored, counts = histogram.counted()
    if not stored.size:
        return Window(0.5, 1.0, "LINEAR_EXACT", "percentiles")
    values = modality.apply(stored)
    if isinstance(modality, Rescale):
        values, counts = (values[::-1], counts[::-1]) if modality.slope < 0 else (values, counts)
    else:  # a table need not be monotonic
        order = np.argsort(values, kind="stable")
        values, counts = values[order], counts[order]
    below = np.cumsum(counts)
    low, high = (
        float(values[min(int(np.searchsorted(below, percent / 100 * below[-1])), len(values) - 1)])
        for percent in (LOW_PERCENTILE, HIGH_PERCENTILE)
    )
    if high <= low:
        high = float(values[-1])
    if high <= low:
        return Window(low + 0.5, 1.0, "LINEAR_EXACT", "percentiles")
    return Window((low + high) / 2, high - low, "LINEAR_EXACT", "percentiles")
