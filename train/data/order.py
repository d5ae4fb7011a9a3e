"""Measure whether the order of file names carries identity: whether neighboring numbers are slices of one patient.

In some public collections the files of a class folder are numbered patient by patient. Near-duplicates alone do not
show it, because neighboring slices of a brain differ. The measurement asks how often the image that looks most alike
is also a neighbor by number.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mri_edge.authoring.intervals import wilson_interval
from mri_edge.scans.frame import Pixels

from .folder import Scan

THUMBNAIL = 24  # pixels, in both directions
NEIGHBORS = 5  # largest difference of the numbers of two neighbors
# A class folder counts as ordered if the lower bound of its fraction exceeds both. Files in no order give chance, and
# weak order (files of one scanner or one website in a row) stays below twice that: 1.6 and 1.7 in the folders of
# navoneel. In the tumor folders of nickparvar, which are numbered patient by patient, the fraction is 0.63 to 0.76,
# about 90 times chance. Its healthy folder has 0.07: more than chance, but most neighbors are not of one patient, and
# near-duplicates would join its blocks to a single group. Wilson's interval takes images as independent, while two
# images are often the nearest of each other; the wide gaps cover that.
_TIMES_CHANCE, _LEAST = 3, 0.25
_QUERIES = 2000  # images per class folder that look for their nearest, for an interval of at most 0.022 to each side
_ROWS, _COLUMNS = 256, 4096  # of a block of correlations, which take 4 MB

# The last number of a name, and what is before it. Numbers of more than 15 digits keep their first digits as a prefix.
_NUMBER = re.compile(r"(\d{1,15})\D*$")


@dataclass(frozen=True)
class FileOrder:
    """The images of a class folder that have their nearest image next to them.

    ``fraction`` of the ``images`` have the nearest image at most ``NEIGHBORS`` numbers away; ``low`` and ``high`` are
    Wilson's 95% interval. ``chance`` is the fraction that a random choice among the other images would give.
    """

    folder: str
    images: int
    fraction: float
    low: float
    high: float
    chance: float

    @property
    def carries_identity(self) -> bool:
        """Whether neighbors by number look alike far more often than chance explains."""
        return self.chance > 0 and self.low > max(_LEAST, _TIMES_CHANCE * self.chance)


def thumbnail(pixels: Pixels) -> NDArray[np.uint8]:
    """Return a gray thumbnail: uint8 (H, W, 3) -> uint8 (24, 24)."""
    gray = Image.fromarray(np.ascontiguousarray(pixels)).convert("L")
    return np.asarray(gray.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))


def numbered(file: str) -> tuple[str, int] | None:
    """Return the last number of a file name without its suffix, and what is before it; None without a number."""
    stem = file.rpartition("/")[2].rpartition(".")[0] or file.rpartition("/")[2]
    found = _NUMBER.search(stem)
    return (stem[: found.start()], int(found[1])) if found else None


def measure_order(scans: Sequence[Scan], thumbnails: NDArray[np.uint8]) -> list[FileOrder]:
    """Measure each class folder, in alphabetical order, from thumbnails uint8 (N, 24, 24).

    At most ``_QUERIES`` images of a folder look for their nearest image, among all of the folder. Memory does
    not grow with the number of images.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, scan in enumerate(scans):
        members[scan.folder].append(index)
    found = []
    for folder, rows in sorted(members.items()):
        chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _QUERIES)).astype(int))
        names = [numbered(scans[row].file) for row in rows]
        nearest = _nearest(thumbnails, np.array(rows), chosen)
        hits = sum(_are_neighbors(names[one], names[other]) for one, other in zip(chosen, nearest, strict=True))
        part = wilson_interval(hits, len(chosen))
        found.append(FileOrder(folder, len(chosen), part.value, part.low, part.high, _chance(names)))
    return found


def _are_neighbors(one: tuple[str, int] | None, other: tuple[str, int] | None) -> bool:
    return one is not None and other is not None and one[0] == other[0] and abs(one[1] - other[1]) <= NEIGHBORS


def _chance(names: Sequence[tuple[str, int] | None]) -> float:
    """Return the mean fraction of neighbors by number among the other files of a folder."""
    if len(names) < 2:
        return 0.0
    numbers: dict[str, list[int]] = defaultdict(list)
    for name in names:
        if name is not None:
            numbers[name[0]].append(name[1])
    pairs = 0
    for of_prefix in numbers.values():
        ordered = np.sort(np.array(of_prefix))
        first = np.searchsorted(ordered, ordered - NEIGHBORS, "left")
        last = np.searchsorted(ordered, ordered + NEIGHBORS, "right")
        pairs += int((last - first - 1).sum())
    return pairs / (len(names) * (len(names) - 1))


def _nearest(thumbnails: NDArray[np.uint8], rows: NDArray[np.intp], chosen: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return, for each of the ``chosen`` positions in ``rows``, the position of the image of highest correlation."""
    nearest = np.zeros(len(chosen), np.intp)
    for start in range(0, len(chosen), _ROWS):
        asked = chosen[start : start + _ROWS]
        queries = _standardize(thumbnails[rows[asked]])
        best = np.full(len(asked), -np.inf)
        for first in range(0, len(rows), _COLUMNS):
            correlation = queries @ _standardize(thumbnails[rows[first : first + _COLUMNS]]).T
            own = np.flatnonzero((asked >= first) & (asked < first + _COLUMNS))
            correlation[own, asked[own] - first] = -np.inf
            found = correlation.argmax(axis=1)
            value = correlation[np.arange(len(asked)), found]
            better = value > best
            best[better] = value[better]
            nearest[start : start + _ROWS][better] = found[better] + first
    return nearest


def _standardize(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return float32 (N, pixels) of mean 0 and norm 1, so that a product of two rows is their correlation."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6))
