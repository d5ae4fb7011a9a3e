"""Change texture and gray levels of a view by a random network of a few small convolutions.

"Global intensity non-linear augmentation" of Ouyang et al., "Causality-inspired single-source domain generalization for
medical image segmentation", IEEE TMI 2022: a network that has seen many such filters relies on shapes, which scanners
share, more than on textures and gray levels, which they do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate

_Field = NDArray[np.float32]

_HIDDEN, _CHANNELS = 2, 2  # layers with leaky ReLU, and their channels
_SLOPE = 0.2


def random_filter(rng: np.random.Generator, field: _Field) -> _Field:
    """Filter gray levels 0 to 255, float32 (H, W), mixed with the input in a random ratio. The mean square stays."""
    channels: list[_Field] = [field / np.float32(255)]
    for _ in range(_HIDDEN):
        outputs = [_convolve(rng, channels) for _ in range(_CHANNELS)]
        channels = [np.maximum(output, np.float32(_SLOPE) * output) for output in outputs]
    filtered = _convolve(rng, channels)
    share, strength = rng.uniform(), _strength(field)
    mixed = share * strength / _strength(filtered) * filtered + (1 - share) * field
    return np.asarray(np.clip(strength / _strength(mixed) * mixed, 0, 255), np.float32)


def _convolve(rng: np.random.Generator, channels: Sequence[_Field]) -> _Field:
    total = np.zeros_like(channels[0])
    for channel in channels:
        side = int(rng.choice((1, 3)))
        total += correlate(channel, rng.normal(size=(side, side)).astype(np.float32), mode="nearest")
    return total + np.float32(rng.normal())


def _strength(field: _Field) -> float:
    return float(np.sqrt(np.mean(np.square(field)))) + 1e-6
