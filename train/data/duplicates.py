"""Find near-duplicates by perceptual hashes, and the groups of pictures that they form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mri_edge.scans.frame import Pixels

HASH_BITS = 128
# Two pictures whose hashes differ in at most this many bits of 128 show the same slice.
SAME_SLICE_BITS = 8
# A wider limit keeps training images away from the test set, because losing a training image costs little.
KEEP_APART_BITS = 12

Hashes = NDArray[np.bool_]


def difference_hash(pixels: Pixels) -> Hashes:
    """Compute the row and column difference hash: uint8 (H, W, 3) -> bool (128,).

    N. Krawetz, "Kind of like that", 2013. Each bit says whether brightness rises between two neighbors in a grid of
    9 x 8 cells, or in one of 8 x 9.
    """
    gray = Image.fromarray(np.ascontiguousarray(pixels)).convert("L")
    across = np.asarray(gray.resize((9, 8), Image.Resampling.LANCZOS))
    down = np.asarray(gray.resize((8, 9), Image.Resampling.LANCZOS))
    return np.concatenate([(across[:, 1:] > across[:, :-1]).ravel(), (down[1:] > down[:-1]).ravel()])


def close_pairs(hashes: Hashes, bits: int) -> NDArray[np.intp]:
    """Return index pairs (P, 2), first < second, of pictures at most ``bits`` apart. Memory grows only with P."""
    signs = np.where(hashes, np.float32(1), np.float32(-1))
    pairs = []
    for start in range(0, len(hashes), 512):
        agreement = signs[start : start + 512] @ signs.T
        first, second = np.nonzero(agreement >= HASH_BITS - 2 * bits)
        keep = first + start < second
        pairs.append(np.stack([first[keep] + start, second[keep]], axis=1))
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), np.intp)


def groups(hashes: Hashes, bits: int = SAME_SLICE_BITS, patients: Sequence[str] | None = None) -> NDArray[np.intp]:
    """Return the group of each picture (N,). A chain of close pairs is one group, and so are the scans of a patient."""
    parent = np.arange(len(hashes))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for first, second in close_pairs(hashes, bits):
        parent[root(first)] = root(second)
    first_of: dict[str, int] = {}
    for index, patient in enumerate(patients or ()):
        parent[root(index)] = root(first_of.setdefault(patient, index))
    roots = [root(index) for index in range(len(hashes))]
    return np.unique(roots, return_inverse=True)[1]


def near_duplicates(hashes: Hashes) -> NDArray[np.intp]:
    """Return the group of each picture (N,), as ``groups`` does, but numbered in another way.

    Pictures with the same hash are compared with others once: there may be thousands of them.
    """
    different, place = np.unique(hashes, axis=0, return_inverse=True)
    return groups(different)[place.ravel()]
