"""Calibration: which images, and what they show of every tensor, whatever runtime shows the tensors.

Images stream through in small batches; of each tensor only a histogram of fixed size and the mean of
each channel are kept, so that memory does not grow with their number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.manifest import Calibration
from mri_edge.bundles.split import fingerprint
from mri_edge.errors import DataError, InputError
from mri_edge.scans import readers
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import sha256_of

from .histogram import Histogram

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)
Range = tuple[float, float]
Pixels = NDArray[np.uint8]
# Runs a batch of pixels and gives the tensors to be observed, by name.
Observe = Callable[[Pixels], Mapping[str, NDArray[np.float32]]]

BATCH = 8
HELD_OUT = 64  # training images that judge the candidates of a search; none of them calibrates


@dataclass(frozen=True)
class Recipe:
    """How one int8 candidate is made: the method that sets ranges, and whether the first layer stays in float."""

    method: Method = "minmax"
    first_in_float: bool = False


SEARCHED = tuple(Recipe(method, first) for first in (False, True) for method in METHODS)


class Observation:
    """What the calibration images show of one tensor: a histogram of its values, the mean of each channel."""

    def __init__(self, channel_axis: int) -> None:
        self._axis = channel_axis
        self._histogram = Histogram()
        self._sum: NDArray[np.float64] | float = 0.0
        self._count = 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in the tensor of one batch, (n, …)."""
        self._histogram.add(values)
        axis = self._axis % values.ndim
        others = tuple(index for index in range(values.ndim) if index != axis)
        self._sum = self._sum + values.sum(axis=others, dtype=np.float64)
        self._count += values.size // values.shape[axis]

    def range(self, method: Method) -> Range:
        """Lowest and highest value to represent."""
        return getattr(self._histogram, method)()

    @property
    def channel_means(self) -> NDArray[np.float64]:
        """Mean of each channel, float64 (channels,)."""
        return np.asarray(self._sum) / self._count


@dataclass(frozen=True)
class Calibrator:
    """The images that set ranges, and the recipe, or the images that choose one among ``SEARCHED``."""

    files: tuple[Path, ...]
    preprocessing: Preprocessing
    record: Calibration
    recipe: Recipe = Recipe()
    held_out: tuple[Path, ...] = ()
    step: Callable[[str], None] = lambda text: None  # told which candidate is tried

    def observe(self, observe: Observe, channel_axis: int) -> dict[str, Observation]:
        """Stream the images through ``observe``; ``channel_axis`` is 1 for NCHW, -1 for NHWC."""
        found: dict[str, Observation] = {}
        for batch in read_batches(self.files, self.preprocessing):
            for name, values in observe(batch).items():
                found.setdefault(name, Observation(channel_axis)).add(values)
        return found


def read_batches(files: Iterable[Path], preprocessing: Preprocessing, size: int = BATCH) -> Iterator[Pixels]:
    """Decode and fit pictures, ``size`` at a time: uint8 (n, height, width, 3).

    Raises
    ------
    DataError
        A picture cannot be read; the message says which.
    """
    ready: list[Pixels] = []
    for file in files:
        ready.append(fitted(file, preprocessing))
        if len(ready) == size:
            yield np.stack(ready)
            ready = []
    if ready:
        yield np.stack(ready)


def fitted(file: Path, preprocessing: Preprocessing) -> Pixels:
    """One picture as the network takes it, uint8 (height, width, 3). DataError if it cannot be read."""
    try:
        return preprocessing.resize_picture(readers.load(file))
    except InputError as error:
        raise DataError(error.problem, "Remove it from the folder, or copy it again") from error


def draw(files: list[tuple[Path, int]], count: int, seed: int) -> tuple[Path, ...]:
    """Draw ``count`` files from (file, group) pairs, each group in its share.

    All are drawn if there are fewer. They keep the order of ``files``; the same seed draws the same.
    """
    groups = np.array([group for _, group in files], np.int64)
    chosen = set(_stratified(groups, count, np.random.default_rng(seed)))
    return tuple(file for index, (file, _) in enumerate(files) if index in chosen)


def record(files: Iterable[Path], method: str, seed: int) -> Calibration:
    """The manifest's record of calibration images: how many, how drawn, and a fingerprint of their contents."""
    hashes = sorted(sha256_of(file) for file in files)
    return Calibration(method, len(hashes), seed, fingerprint(hashes))


def pictures_in(folder: Path) -> list[tuple[Path, int]]:
    """Pictures below ``folder`` and the number of the subfolder they lie in, by name. DataError if there is none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", "Name a folder of pictures with --calibration")
    found = sorted(path for path in folder.rglob("*") if path.is_file() and readers.recognizes(path))
    if not found:
        raise DataError(f"{folder}: no picture in it", f"Suffixes: {', '.join(readers.suffixes())}")
    groups = {parent: index for index, parent in enumerate(sorted({path.parent for path in found}))}
    return [(path, groups[path.parent]) for path in found]


def copies(files: Iterable[Path], tests: Mapping[str, Path], preprocessing: Preprocessing) -> dict[Path, Path]:
    """Those of ``files`` that are a test image, and which; ``tests`` holds test images by ``digest``.

    What the network sees is compared, so that a copy under another name or in another lossless format
    is found too. DataError if a picture cannot be read.
    """
    digests = {file: digest(fitted(file, preprocessing)) for file in files}
    return {file: tests[its] for file, its in digests.items() if its in tests}


def refuse_test_images(files: Iterable[Path], tests: Mapping[str, Path], preprocessing: Preprocessing) -> None:
    """Raise DataError if one of ``files`` is a test image, as ``copies`` finds them."""
    for file, twin in copies(files, tests, preprocessing).items():
        raise DataError(
            f"{file}: is the test image {twin}; calibration must not see the images that judge it",
            "Remove it from the calibration folder",
        )


def digest(pixels: Pixels) -> str:
    """SHA-256 of one picture as the network takes it, uint8 (height, width, 3)."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def _stratified(groups: NDArray[np.int64], count: int, random: np.random.Generator) -> list[int]:
    """Indices: of each group as many as its share, largest remainders first."""
    count = min(count, len(groups))
    kinds, sizes = np.unique(groups, return_counts=True)
    shares = sizes * (count / max(1, len(groups)))
    takes = np.floor(shares).astype(int)
    for index in np.argsort(takes - shares, kind="stable")[: count - takes.sum()]:
        takes[index] += 1
    found: list[int] = []
    for kind, take in zip(kinds, takes, strict=True):
        found += random.permutation(np.flatnonzero(groups == kind))[:take].tolist()
    return found
