"""Find near-duplicates by perceptual hashes, and the groups of pictures that they form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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


def close_pairs(hashes: Hashes, bits: int, rows: NDArray[np.intp] | None = None) -> NDArray[np.intp]:
    """Return index pairs (P, 2), first < second, of pictures at most ``bits`` apart. Memory grows only with P.

    ``rows``, in ascending order, are the pictures that may come first; None means all.
    """
    pairs = [np.zeros((0, 2), np.intp)]
    for part, close in _close(hashes, bits, np.arange(len(hashes)) if rows is None else rows):
        row, second = np.nonzero(close)
        first = part[row]
        keep = first < second
        pairs.append(np.stack([first[keep], second[keep]], axis=1))
    return np.concatenate(pairs)


def close_to(hashes: Hashes, bits: int, chosen: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return bool (N,): True for the pictures that are at most ``bits`` from one of the chosen ones."""
    found = np.zeros(len(hashes), bool)
    for _, close in _close(hashes, bits, chosen):
        found |= close.any(axis=0)
    return found


def _close(hashes: Hashes, bits: int, rows: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.bool_]]]:
    """Yield the rows in parts, each with which pictures are at most ``bits`` from them: bool (part, N)."""
    signs = np.where(hashes, np.float32(1), np.float32(-1))
    for start in range(0, len(rows), 512):
        part = rows[start : start + 512]
        yield part, signs[part] @ signs.T >= HASH_BITS - 2 * bits


def groups(hashes: Hashes, bits: int = SAME_SLICE_BITS, patients: Sequence[str] | None = None) -> NDArray[np.intp]:
    """Return the group of each picture (N,). A chain of close pairs is one group, and so are the scans of a patient."""
    parent = np.arange(len(hashes))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    # The first picture with a hash joins all that are close to it, so pairs that begin with a copy add nothing. The
    # order of the other pairs stays: folds depend on the numbers of the groups, and these on the order.
    first_with_hash = np.sort(np.unique(hashes, axis=0, return_index=True)[1])
    for first, second in close_pairs(hashes, bits, first_with_hash):
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
