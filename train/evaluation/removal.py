"""Remove or restore the regions that a map marks, and read the probability: deletion and insertion curves.

V. Petsiuk, A. Das, K. Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018. Their
gray and blurred fills are unlike any scan, and networks answer to that. Here the fills look like tissue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mri_edge.scans.frame import Pixels

# Proportions of the head's area that are removed or restored. Half of the head holds any of the drawn lesions.
FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)

Heights = NDArray[np.float64]
Answer = Callable[[Pixels], Heights]


@dataclass(frozen=True)
class Curves:
    """Probability of the explained label after each of ``FRACTIONS`` is removed or restored, float64 (F,) each."""

    deletion: Heights
    insertion: Heights


def removal_curves(
    pixels: Pixels, maps: Mapping[str, NDArray[np.float32]], head: NDArray[np.bool_], fill: Pixels, answer: Answer
) -> dict[str, Curves]:
    """Compute the curves of each map.

    Deletion replaces the regions with the highest values by ``fill``. Insertion starts with the whole head replaced,
    and restores the regions with the highest values.

    Parameters
    ----------
    pixels
        The network's input with the lesion, uint8 (H, W, 3).
    maps
        Maps float32 (H, W) by name; only their order inside the head matters.
    head
        Where the head is, bool (H, W).
    fill
        What replaces a region, uint8 (H, W, 3): tissue without a lesion.
    answer
        Returns the probability of the explained label, float64 (N,), for inputs uint8 (N, H, W, 3).
    """
    filled = np.where(head[..., None], fill, pixels)
    inputs = []
    for heatmap in maps.values():
        rank = _rank(heatmap, head)
        marked = [(rank < fraction)[..., None] for fraction in FRACTIONS]
        inputs += [np.where(region, fill, pixels) for region in marked]
        inputs += [np.where(region, pixels, filled) for region in marked]
    heights = answer(np.stack(inputs)).reshape(len(maps), 2, len(FRACTIONS))
    return {name: Curves(deletion, insertion) for name, (deletion, insertion) in zip(maps, heights, strict=True)}


def mean_height(curve: Heights) -> float:
    """Return the mean height of a curve (F,) over the proportions, by the trapezoidal rule."""
    fractions = np.array(FRACTIONS)
    return float(np.diff(fractions) @ (curve[1:] + curve[:-1]) / 2 / fractions[-1])


def _rank(heatmap: NDArray[np.float32], head: NDArray[np.bool_]) -> Heights:
    """Return the rank of each pixel of the head, from 0 for the highest value up to 1, and 2 outside the head.

    Pixels of one value, as where the map is 0, are ranked by a blurred copy of the map, so that the region grows around
    its spots. In their own order one side of the head would come first.
    """
    blurred = ndimage.gaussian_filter(heatmap.astype(np.float64), [side / 16 for side in head.shape])
    order = np.lexsort((-blurred[head], -heatmap[head]))
    ranks = np.empty(len(order))
    ranks[order] = np.arange(len(order)) / len(order)
    rank = np.full(head.shape, 2.0)
    rank[head] = ranks
    return rank
