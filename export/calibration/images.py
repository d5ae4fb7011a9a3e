"""Draw calibration images, read them in batches, and exclude test images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.manifest import Calibration
from mri_edge.errors import DataError, InputError
from mri_edge.scans import readers
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import fingerprint, sha256_of

Pixels = NDArray[np.uint8]

_BATCH = 8


def read_batches(files: Iterable[Path], preprocessing: Preprocessing) -> Iterator[Pixels]:
    """Decode and resize pictures, a few at a time: uint8 (n, height, width, 3).

    Raises
    ------
    DataError
        A picture cannot be read; the message names it.
    """
    batch: list[Pixels] = []
    for file in files:
        batch.append(read_resized(file, preprocessing))
        if len(batch) == _BATCH:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def read_resized(file: Path, preprocessing: Preprocessing) -> Pixels:
    """One picture resized for the network, uint8 (height, width, 3). DataError if it cannot be read."""
    try:
        return preprocessing.resize_picture(readers.load(file))
    except InputError as error:
        raise DataError(error.problem, "Remove it from the folder, or copy it again") from error


def draw(files: list[tuple[Path, int]], count: int, seed: int) -> tuple[Path, ...]:
    """Draw ``count`` files from (file, group) pairs, in proportion to the size of each group.

    If there are fewer, all are drawn. They keep the order of ``files``, and the same seed draws the same files.
    """
    groups = np.array([group for _, group in files], np.int64)
    chosen = set(_draw_stratified(groups, count, np.random.default_rng(seed)))
    return tuple(file for index, (file, _) in enumerate(files) if index in chosen)


def record(files: Iterable[Path], method: str, seed: int) -> Calibration:
    """Describe calibration images for the manifest: their number, method, seed, and a fingerprint of their contents."""
    hashes = sorted(hash_picture(file) for file in files)
    return Calibration(method, len(hashes), seed, fingerprint(hashes))


def pictures_in(folder: Path) -> list[tuple[Path, int]]:
    """Pictures below ``folder`` with the index of their subfolder in sorted order. DataError if there are none."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder", "Name a folder of pictures with --calibration")
    files = pictures_below(folder)
    if not files:
        raise DataError(f"{folder}: contains no picture", f"Suffixes: {', '.join(readers.suffixes())}")
    groups = {parent: index for index, parent in enumerate(sorted({path.parent for path in files}))}
    return [(path, groups[path.parent]) for path in files]


def pictures_below(folder: Path) -> list[Path]:
    """Pictures in a folder and its subfolders, sorted. Only regular files are pictures, whatever their names end in.

    Raises DataError if a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    try:
        files = [Path(parent, name) for parent, _, names in os.walk(folder, onerror=refuse) for name in names]
        return sorted(file for file in files if file.is_file() and readers.recognizes(file))
    except OSError as error:
        raise _unreadable(error.filename or folder, error) from error


def hash_picture(file: Path) -> str:
    """SHA-256 of a file. DataError if it cannot be read."""
    try:
        return sha256_of(file)
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(path: Path | str, error: OSError) -> DataError:
    return DataError(f"{path}: cannot read ({error.strerror})", "Make it readable, or remove it")


def find_copies(files: Iterable[Path], tests: Mapping[str, Path], preprocessing: Preprocessing) -> dict[Path, Path]:
    """Map each file that equals a test image to that image; ``tests`` maps digests to test images.

    Compares the resized pixels, and so finds copies under other names and in other lossless formats. Raises DataError
    if a picture cannot be read.
    """
    digests = {file: digest(read_resized(file, preprocessing)) for file in files}
    return {file: tests[key] for file, key in digests.items() if key in tests}


def refuse_test_images(files: Iterable[Path], tests: Mapping[str, Path], preprocessing: Preprocessing) -> None:
    """Raise DataError if one of ``files`` equals a test image; see ``find_copies``."""
    for file, test in find_copies(files, tests, preprocessing).items():
        raise DataError(
            f"{file}: is the test image {test}; calibration must not use the images of the comparison",
            "Remove it from the calibration folder",
        )


def digest(pixels: Pixels) -> str:
    """SHA-256 of one resized picture, uint8 (height, width, 3)."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def _draw_stratified(groups: NDArray[np.int64], count: int, random: np.random.Generator) -> list[int]:
    """Draw indices in proportion to the size of each group, by the largest-remainder method."""
    count = min(count, len(groups))
    labels, sizes = np.unique(groups, return_counts=True)
    proportional = sizes * (count / max(1, len(groups)))
    takes = np.floor(proportional).astype(int)
    for index in np.argsort(takes - proportional, kind="stable")[: count - takes.sum()]:
        takes[index] += 1
    indices: list[int] = []
    for label, take in zip(labels, takes, strict=True):
        indices += random.permutation(np.flatnonzero(groups == label))[:take].tolist()
    return indices
