"""Average output error from rounding a kernel to integers; subtracting it from the bias corrects it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mean_rounding_error(kernel: NDArray[np.float32], means: NDArray[np.float64], levels: int) -> NDArray[np.float32]:
    """Mean error of each output when ``kernel`` is rounded, float32 (outputs,): subtract it from the bias.

    M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
    section 4.2; here with measured means of the inputs. Padding is ignored.

    Parameters
    ----------
    kernel
        float32 (outputs, inputs, taps).
    means
        Mean of each input over the calibration images, (inputs,).
    levels
        Largest integer of a weight: 127 for 8 bits, 64 for 7. Scales are symmetric, one per output.
    """
    scale = np.abs(kernel).max(axis=(1, 2), keepdims=True) / levels
    scale[scale == 0] = 1
    error = (np.rint(kernel / scale) * scale - kernel).sum(axis=2, dtype=np.float64)
    return np.asarray(error @ means, np.float32)
