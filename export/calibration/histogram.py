"""A tensor's values as a histogram of fixed size, and the ranges that calibration methods read off it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 2048  # on either side of zero, as TensorRT's entropy calibrator takes
LEVELS = 128  # a candidate range is compared with its reduction to this many levels, as TensorRT does
PERCENTILE = 99.99  # of all values; those beyond saturate


class Histogram:
    """Counts over a symmetric range that doubles when a value falls outside."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.limit = 0.0
        self.counts = np.zeros(2 * BINS, np.int64)

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values, of any shape."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        reach = max(abs(self.low), abs(self.high))
        if self.limit == 0:
            self.limit = reach  # all that was counted until now is zero, and stays in the middle
        while reach > self.limit:
            self.counts = np.pad(self.counts.reshape(-1, 2).sum(axis=1), BINS // 2)
            self.limit *= 2
        if self.limit == 0:
            self.counts[BINS] += values.size
            return
        bins = np.floor(values.ravel() * np.float32(BINS / self.limit)).astype(np.intp) + BINS
        self.counts += np.bincount(np.clip(bins, 0, 2 * BINS - 1), minlength=2 * BINS)

    def minmax(self) -> tuple[float, float]:
        """Lowest and highest value seen; zero always lies within, for padding and ReLU."""
        return min(self.low, 0.0), max(self.high, 0.0)

    def percentile(self) -> tuple[float, float]:
        """The range that holds all but the outermost ``100 - PERCENTILE`` per cent on either side."""
        if self.limit == 0:
            return self.minmax()
        edges = np.linspace(-self.limit, self.limit, 2 * BINS + 1)
        share = np.cumsum(self.counts) / self.counts.sum()
        tail = (100 - PERCENTILE) / 100
        first, last = np.searchsorted(share, tail, side="right"), np.searchsorted(share, 1 - tail)
        return self._within(float(edges[first]), float(edges[last + 1]))

    def entropy(self) -> tuple[float, float]:
        """The range whose reduction to 8 bits has the least Kullback-Leibler divergence from the values.

        S. Migacz, "8-bit Inference with TensorRT", GTC 2017, slides 38 to 40.
        """
        if self.limit == 0:
            return self.minmax()
        magnitudes = (self.counts[BINS:] + self.counts[:BINS][::-1]).astype(np.float64)
        magnitudes[0] = magnitudes[1]  # ReLU's zeros are exact in any range, and would outweigh the rest
        divergences = [_divergence(magnitudes, size) for size in range(LEVELS, BINS + 1)]
        bound = self.limit * (LEVELS + int(np.argmin(divergences))) / BINS
        return self._within(-bound, bound)

    def _within(self, low: float, high: float) -> tuple[float, float]:
        lowest, highest = self.minmax()
        return max(lowest, min(low, 0.0)), min(highest, max(high, 0.0))


def _divergence(magnitudes: NDArray[np.float64], size: int) -> float:
    """Kullback-Leibler divergence between values clipped to the first ``size`` bins and their ``LEVELS`` levels."""
    clipped = magnitudes[:size]
    reference = clipped.copy()
    reference[-1] += magnitudes[size:].sum()
    edges = np.linspace(0, size, LEVELS + 1).astype(int)
    filled = clipped > 0
    holders = np.maximum(np.add.reduceat(filled.astype(np.float64), edges[:-1]), 1)
    levels = np.repeat(np.add.reduceat(clipped, edges[:-1]) / holders, np.diff(edges)) * filled
    p, q = reference / max(reference.sum(), 1), levels / max(levels.sum(), 1)
    held = p > 0
    return float(np.sum(p[held] * np.log(p[held] / np.maximum(q[held], 1e-10))))
