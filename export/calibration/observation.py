"""Collect statistics of each tensor on the calibration images: its range, and the mean of each channel.

Only a histogram of fixed size and the means are kept, so that memory does not grow with the number of images.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)
Range = tuple[float, float]

PIXELS: Range = (0.0, 255.0)
PROBABILITIES: Range = (0.0, 255 / 256)  # TFLite's int8 softmax and sigmoid have a scale of 1/256

BINS = 2048  # on either side of zero, as TensorRT's entropy calibrator takes
LEVELS = 128  # a candidate range is compared with its reduction to this many levels, as TensorRT does
PERCENTILE = 99.99  # of all values; those beyond saturate


class Histogram:
    """Counts of values over a symmetric range that doubles when a value is outside of it."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.limit = 0.0
        self.counts = np.zeros(2 * BINS, np.int64)

    def range(self, method: Method) -> Range:
        """The range to represent, by one of ``METHODS``; it always contains zero."""
        if method == "minmax":
            return self.minmax()
        return self.entropy() if method == "entropy" else self.percentile()

    def add(self, values: NDArray[np.float32]) -> None:
        """Count the values of an array of any shape."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        reach = max(abs(self.low), abs(self.high))
        if self.limit == 0:
            self.limit = reach  # every earlier value was zero and stays in the middle bin
        while reach > self.limit:
            self.counts = np.pad(self.counts.reshape(-1, 2).sum(axis=1), BINS // 2)
            self.limit *= 2
        if self.limit == 0:
            self.counts[BINS] += values.size
            return
        bins = np.floor(values.ravel() * np.float32(BINS / self.limit)).astype(np.intp) + BINS
        self.counts += np.bincount(np.clip(bins, 0, 2 * BINS - 1), minlength=2 * BINS)

    def minmax(self) -> Range:
        """Lowest and highest value seen, widened to zero, which padding and ReLU need."""
        return min(self.low, 0.0), max(self.high, 0.0)

    def percentile(self) -> Range:
        """The range without the outermost ``100 - PERCENTILE`` percent of the values on either side."""
        if self.limit == 0:
            return self.minmax()
        edges = np.linspace(-self.limit, self.limit, 2 * BINS + 1)
        cumulative = np.cumsum(self.counts) / self.counts.sum()
        tail = (100 - PERCENTILE) / 100
        first, last = np.searchsorted(cumulative, tail, side="right"), np.searchsorted(cumulative, 1 - tail)
        return self._clip(float(edges[first]), float(edges[last + 1]))

    def entropy(self) -> Range:
        """The range whose reduction to 8 bits has the least Kullback-Leibler divergence from the values.

        S. Migacz, "8-bit Inference with TensorRT", GTC 2017, slides 38 to 40.
        """
        if self.limit == 0:
            return self.minmax()
        magnitudes = (self.counts[BINS:] + self.counts[:BINS][::-1]).astype(np.float64)
        magnitudes[0] = magnitudes[1]  # ReLU's zeros are exact in any range, and would outweigh the rest
        divergences = [_divergence(magnitudes, size) for size in range(LEVELS, BINS + 1)]
        bound = self.limit * (LEVELS + int(np.argmin(divergences))) / BINS
        return self._clip(-bound, bound)

    def _clip(self, low: float, high: float) -> Range:
        lowest, highest = self.minmax()
        return max(lowest, min(low, 0.0)), min(highest, max(high, 0.0))


class Observation:
    """Histogram and channel means of one tensor over the calibration images."""

    def __init__(self, channel_axis: int) -> None:
        self._axis = channel_axis
        self._histogram = Histogram()
        self._sum: NDArray[np.float64] | float = 0.0
        self._count = 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Add the tensor of one batch, (n, …)."""
        self._histogram.add(values)
        axis = self._axis % values.ndim
        others = tuple(index for index in range(values.ndim) if index != axis)
        self._sum = self._sum + values.sum(axis=others, dtype=np.float64)
        self._count += values.size // values.shape[axis]

    def range(self, method: Method) -> Range:
        """The range to represent, see ``Histogram.range``."""
        return self._histogram.range(method)

    @property
    def channel_means(self) -> NDArray[np.float64]:
        """Mean of each channel, float64 (channels,)."""
        return np.asarray(self._sum) / self._count


def mean_rounding_error(
    kernel: NDArray[np.float32], means: NDArray[np.float64], levels: int, *, per_tensor: bool = False
) -> NDArray[np.float32]:
    """Mean error of each output if ``kernel`` is rounded, float32 (outputs,). Subtract it from the bias.

    M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
    section 4.2, but with measured means of the inputs. Padding is ignored.

    Parameters
    ----------
    kernel
        float32 (outputs, inputs, taps), or (outputs, 1, taps) of a depthwise convolution.
    means
        Mean of each input over the calibration images, (inputs,), or (outputs,) for a depthwise convolution, whose
        outputs have an input each.
    levels
        Largest integer of a weight: 127 for 8 bits, 64 for 7. Scales are symmetric.
    per_tensor
        Whether all outputs share a scale; otherwise each has its own.
    """
    scale = np.abs(kernel).max(axis=None if per_tensor else (1, 2), keepdims=True) / levels
    scale[scale == 0] = 1
    error = (np.rint(kernel / scale) * scale - kernel).sum(axis=2, dtype=np.float64)
    if error.shape == (len(means), 1):
        return np.asarray(error[:, 0] * means, np.float32)
    return np.asarray(error @ means, np.float32)


def _divergence(magnitudes: NDArray[np.float64], size: int) -> float:
    """Kullback-Leibler divergence between values clipped to the first ``size`` bins and their ``LEVELS`` levels."""
    clipped = magnitudes[:size]
    reference = clipped.copy()
    reference[-1] += magnitudes[size:].sum()
    edges = np.linspace(0, size, LEVELS + 1).astype(int)
    filled = clipped > 0
    occupied = np.maximum(np.add.reduceat(filled.astype(np.float64), edges[:-1]), 1)
    levels = np.repeat(np.add.reduceat(clipped, edges[:-1]) / occupied, np.diff(edges)) * filled
    p, q = reference / max(reference.sum(), 1), levels / max(levels.sum(), 1)
    positive = p > 0
    return float(np.sum(p[positive] * np.log(p[positive] / np.maximum(q[positive], 1e-10))))
