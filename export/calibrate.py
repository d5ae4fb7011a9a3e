"""Calibration: which images, and the range of every tensor they give, whatever runtime shows the tensors.

Images stream through in small batches; of each tensor only a histogram of fixed size is kept, so that
memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from mri_edge import images
from mri_edge.errors import DataError, InputError
from mri_edge.manifest import Calibration
from mri_edge.preprocess import Preprocessing
from mri_edge.split import fingerprint
from numpy.typing import NDArray

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)
Range = tuple[float, float]
Batch = NDArray[np.uint8]
# Runs a batch and gives the tensors to be observed, by name.
Observe = Callable[[Batch], Mapping[str, NDArray[np.float32]]]

BATCH = 8
_BINS = 2048  # on either side of zero; TensorRT's entropy calibrator takes 2048
_LEVELS = 128  # candidates are compared after reduction to this many levels, as TensorRT does
PERCENTILE = 99.99  # of all values of a tensor; what lies beyond saturates


@dataclass(frozen=True)
class Calibrator:
    """The calibration images and the method that turns what they show into ranges."""

    files: tuple[Path, ...]
    preprocessing: Preprocessing
    method: Method
    record: Calibration

    def batches(self) -> Iterator[Batch]:
        """uint8 (n, height, width, 3), n at most ``BATCH``; decoded one batch at a time."""
        return read_batches(self.files, self.preprocessing)

    def ranges(self, observe: Observe) -> dict[str, Range]:
        """Lowest and highest value to represent, for each tensor that ``observe`` shows."""
        histograms: dict[str, Histogram] = {}
        for batch in self.batches():
            for name, values in observe(batch).items():
                histograms.setdefault(name, Histogram()).add(values)
        return {name: histogram.range(self.method) for name, histogram in histograms.items()}


def read_batches(files: Iterable[Path], preprocessing: Preprocessing, size: int = BATCH) -> Iterator[Batch]:
    """Decode and fit pictures, ``size`` at a time: uint8 (n, height, width, 3).

    Raises
    ------
    DataError
        A picture cannot be read; the message says which.
    """
    ready: list[NDArray[np.uint8]] = []
    for file in files:
        try:
            ready.append(preprocessing.fit(images.load(file)))
        except InputError as error:
            raise DataError(error.problem, "Remove it from the folder, or copy it again") from error
        if len(ready) == size:
            yield np.stack(ready)
            ready = []
    if ready:
        yield np.stack(ready)


def choose(
    files: list[tuple[Path, int]], hashes: Mapping[Path, str], count: int, seed: int, method: Method
) -> tuple[tuple[Path, ...], Calibration]:
    """Draw ``count`` of the files, each label in its share, by ``seed``; all of them if there are fewer.

    Returns the drawn files in the order of ``files`` and the record for the manifest.
    """
    if not files:
        raise DataError("calibration needs images, and there is none", "Name a folder with --data or --calibration")
    drawn = sorted(_stratified(np.array([label for _, label in files]), count, np.random.default_rng(seed)))
    chosen = tuple(files[index][0] for index in drawn)
    record = Calibration(method, len(chosen), seed, fingerprint(sorted(hashes[one] for one in chosen)))
    return chosen, record


def _stratified(labels: NDArray[np.int_], count: int, random: np.random.Generator) -> list[int]:
    """Indices: each label's first images of a shuffled order, as many as its share, largest remainders first."""
    count = min(count, len(labels))
    kinds, sizes = np.unique(labels, return_counts=True)
    shares = sizes * (count / len(labels))
    takes = np.floor(shares).astype(int)
    for index in np.argsort(takes - shares, kind="stable")[: count - takes.sum()]:
        takes[index] += 1
    found: list[int] = []
    for kind, take in zip(kinds, takes, strict=True):
        found += random.permutation(np.flatnonzero(labels == kind))[:take].tolist()
    return found


class Histogram:
    """Counts of a tensor's values over a symmetric range that doubles when a value falls outside."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.limit = 0.0
        self.counts = np.zeros(2 * _BINS, np.int64)

    def add(self, values: NDArray[np.float32]) -> None:
        """Count more values of the tensor, of any shape."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        reach = max(abs(self.low), abs(self.high))
        if self.limit == 0 and reach > 0:
            # Whatever was counted until now was zero, and stays in the middle.
            self.limit = reach
        while reach > self.limit:
            self._double()
        index = np.zeros(values.size, np.intp) if self.limit == 0 else self._index(values)
        if self.limit == 0:
            index += _BINS
        self.counts += np.bincount(index, minlength=2 * _BINS)

    def _index(self, values: NDArray[np.float32]) -> NDArray[np.intp]:
        scaled = np.floor(values.ravel() * np.float32(_BINS / self.limit)).astype(np.intp)
        return np.clip(scaled + _BINS, 0, 2 * _BINS - 1)

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.pad(pairs, _BINS // 2)
        self.limit *= 2

    def range(self, method: Method) -> Range:
        """Lowest and highest value to represent; zero always lies within, for padding and ReLU."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if method == "minmax" or self.limit == 0:
            return low, high
        if method == "percentile":
            bound = self._percentiles()
        else:
            threshold = self._entropy_threshold()
            bound = (-threshold, threshold)
        return max(low, min(bound[0], 0.0)), min(high, max(bound[1], 0.0))

    def _percentiles(self) -> Range:
        edges = np.linspace(-self.limit, self.limit, 2 * _BINS + 1)
        share = np.cumsum(self.counts) / self.counts.sum()
        tail = (100 - PERCENTILE) / 100
        first = int(np.searchsorted(share, tail))
        last = int(np.searchsorted(share, 1 - tail))
        return float(edges[first]), float(edges[last + 1])

    def _entropy_threshold(self) -> float:
        """Clipping magnitude with the least Kullback-Leibler divergence between clipped and quantised values.

        S. Migacz, "8-bit Inference with TensorRT", GTC 2017, slides 38-40.
        """
        folded = (self.counts[_BINS:] + self.counts[:_BINS][::-1]).astype(np.float64)
        folded[0] = folded[1]  # the zeros of ReLU would outweigh everything else
        best, threshold = np.inf, self.limit
        for size in range(_LEVELS, _BINS + 1):
            clipped = folded[:size].copy()
            reference = clipped.copy()
            reference[-1] += folded[size:].sum()
            edges = np.linspace(0, size, _LEVELS + 1).astype(int)
            filled = clipped > 0
            sums = np.add.reduceat(clipped, edges[:-1])
            holders = np.maximum(np.add.reduceat(filled.astype(np.float64), edges[:-1]), 1)
            quantised = np.repeat(sums / holders, np.diff(edges)) * filled
            divergence = _divergence(reference, quantised)
            if divergence < best:
                best, threshold = divergence, self.limit * size / _BINS
        return threshold


def _divergence(reference: NDArray[np.float64], model: NDArray[np.float64]) -> float:
    """Kullback-Leibler divergence of two unnormalised histograms; a small floor stands in for empty bins."""
    p, q = reference / max(reference.sum(), 1), model / max(model.sum(), 1)
    held = p > 0
    return float(np.sum(p[held] * np.log(p[held] / np.maximum(q[held], 1e-10))))
