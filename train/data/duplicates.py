"""Find duplicates, near-duplicates and contradictory labels, and the groups that no split may divide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mri_edge.scans.frame import Pixels

from .folder import Scan

HASH_BITS = 128
# Two pictures whose hashes differ in at most this many bits of 128 show the same slice.
SAME_SLICE_BITS = 8
# A wider limit keeps training images away from the test set, because losing a training image costs little.
KEEP_APART_BITS = 12
_SHOWN = 5  # findings of each kind in the table; the bundle's data.json has all of them

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


@dataclass(frozen=True)
class Finding:
    """The files of one finding, and what they have in common: ``kind`` as ``inspect`` describes it."""

    kind: str
    files: tuple[str, ...]


def inspect(scans: Sequence[Scan], hashes: Hashes) -> list[Finding]:
    """Find duplicates, near-duplicates and contradictions.

    ``duplicate`` files have the same bytes. ``near-duplicate`` files have different bytes, and perceptual hashes at
    most ``SAME_SLICE_BITS`` apart. ``contradictory`` files are either, but have different labels.
    """
    contents: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        contents[scan.sha256].append(scan)
    same = [tuple(group) for group in contents.values() if len(group) > 1]
    near = [
        (scans[first], scans[second])
        for first, second in close_pairs(hashes, SAME_SLICE_BITS)
        if scans[first].sha256 != scans[second].sha256
    ]
    pairs = [pair for group in same for pair in combinations(group, 2)] + near
    found: dict[str, Sequence[Sequence[Scan]]] = {
        "duplicate": same,
        "near-duplicate": near,
        "contradictory": [pair for pair in pairs if pair[0].label != pair[1].label],
    }
    return [Finding(kind, tuple(scan.file for scan in group)) for kind, groups in found.items() for group in groups]


def table(scans: Sequence[Scan], findings: Iterable[Finding]) -> str:
    """Format the findings as lines of text, at most ``_SHOWN`` of each kind. Return "" if there are none."""
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        kinds[finding.kind].append(finding)
    lines = []
    for kind, of_kind in kinds.items():
        images = {file for finding in of_kind for file in finding.files}
        lines.append(f"{kind:<15} {len(of_kind):>5} groups, {len(images)} of {len(scans)} images")
        lines += [f"{'':<15}   {'  =  '.join(finding.files)}" for finding in of_kind[:_SHOWN]]
        if len(of_kind) > _SHOWN:
            lines.append(f"{'':<15}   … and {len(of_kind) - _SHOWN} more")
    return "\n".join(lines)
