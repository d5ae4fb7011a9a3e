"""Choose and read the images of a comparison: all test images, and others that did not calibrate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.split import Split, SplitImage
from mri_edge.export.calibration.images import Pixels, digest, draw, hash_picture, read_resized
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import fingerprint

if TYPE_CHECKING:
    from mri_edge.export.calibration.calibrator import Calibrator

# How many images a comparison has at most, unless there are more test images. The exact 95% bound of the proportion of
# changed labels is then at most 0.2% if no label changes, and VGG16 answers so many in a minute or two on two cores.
LARGEST = 2000
_PROGRESS = 500  # images between two reports


@dataclass(frozen=True)
class Others:
    """The images of a comparison that are not test images.

    ``images`` were drawn with ``seed`` from ``available`` ones. ``fingerprint`` is the SHA-256 over their contents.
    """

    images: int
    available: int
    seed: int
    fingerprint: str


@dataclass(frozen=True)
class ComparedImages:
    """The images of a comparison, the test images first.

    ``files`` are relative to the data folder, ``labels`` is (N,), ``pixels`` uint8 (N, height, width, 3). ``stages``
    gives the SHA-256 of file and tensor of each test image.
    """

    files: tuple[str, ...]
    labels: NDArray[np.intp]
    pixels: Pixels
    stages: tuple[dict[str, str], ...]
    others: Others | None = None

    @property
    def tests(self) -> dict[str, str]:
        """The file of each test image by ``images.digest`` of its pixels."""
        return {stage["tensor"]: file for stage, file in zip(self.stages, self.files, strict=False)}

    def __str__(self) -> str:
        tests = f"{len(self.stages):,} test images"
        if self.others is None:
            return f"{tests}; the data folder has no others that did not calibrate"
        drawn = f"{self.others.images:,} of {self.others.available:,} others that did not calibrate"
        return f"{len(self.files):,} images: {tests} and {drawn}"


def read_tests(split: Split, data: Path, preprocessing: Preprocessing) -> ComparedImages:
    """Read the test images of a split from the folder ``data``.

    Raises
    ------
    DataError
        One is missing, changed or unreadable.
    """
    located, recorded = split.locate(data, "test"), split.of("test")
    pixels = _read((path for path, _ in located), len(located), preprocessing)
    return ComparedImages(
        tuple(image.file for image in recorded),
        np.array([image.label for image in recorded], np.intp),
        pixels,
        tuple({"file": image.sha256, "tensor": digest(row)} for image, row in zip(recorded, pixels, strict=True)),
    )


def add_others(
    tests: ComparedImages,
    split: Split,
    data: Path,
    preprocessing: Preprocessing,
    calibrator: Calibrator | None,
    *,
    seed: int,
    step: Callable[[str], None],
    largest: int = LARGEST,
) -> ComparedImages:
    """Add images of the split, up to ``largest`` in total, drawn in proportion to the size of each label.

    How far an artifact is from the Keras model does not depend on labels, so training images may be compared too.
    Excluded images and those that calibrated are left out, and so are copies of the latter or of test images, found by
    bytes and by pixels.
    Files that are missing in ``data`` or were changed are not compared.

    Raises
    ------
    DataError
        An image is unreadable.
    """
    used = (*calibrator.files, *calibrator.held_out) if calibrator else ()
    known = {image.sha256 for image in split.of("test")} | {hash_picture(file) for file in used}
    distinct = {image.sha256: image for image in split.images if image.role != "excluded" and image.sha256 not in known}
    candidates = {data / image.file: image for image in distinct.values()}
    present = [(path, image.label) for path, image in candidates.items() if path.is_file()]
    drawn = [path for path in draw(present, max(0, largest - len(tests.files)), seed) if _unchanged(path, candidates)]
    if not drawn:
        return tests
    step(f"reading {len(drawn):,} images that did not calibrate")
    seen = {*tests.tests, *(digest(read_resized(file, preprocessing)) for file in used)}
    images: list[SplitImage] = []
    pixels = np.empty((len(tests.files) + len(drawn), *tests.pixels.shape[1:]), np.uint8)
    pixels[: len(tests.files)] = tests.pixels
    for path in drawn:
        row = read_resized(path, preprocessing)
        if (tensor := digest(row)) not in seen:
            seen.add(tensor)
            pixels[len(tests.files) + len(images)] = row
            images.append(candidates[path])
    if not images:
        return tests
    return ComparedImages(
        (*tests.files, *(image.file for image in images)),
        np.concatenate([tests.labels, np.array([image.label for image in images], np.intp)]),
        pixels[: len(tests.files) + len(images)],
        tests.stages,
        Others(len(images), len(present), seed, fingerprint(sorted(image.sha256 for image in images))),
    )


def run_batches(
    run: Callable[[Pixels], NDArray[np.float32]], pixels: Pixels, size: int, report: Callable[[str], None]
) -> NDArray[np.float32]:
    """Run ``pixels`` (N, height, width, 3) in batches of ``size``; ``report`` gets the progress as text."""
    answers, reported = [], 0
    for start in range(0, len(pixels), size):
        if start - reported >= _PROGRESS:
            reported = start
            report(f"{start:,} of {len(pixels):,} images")
        answers.append(run(pixels[start : start + size]))
    return np.concatenate(answers)


def _read(files: Iterable[Path], count: int, preprocessing: Preprocessing) -> Pixels:
    pixels = np.empty((count, preprocessing.height, preprocessing.width, 3), np.uint8)
    for row, path in zip(pixels, files, strict=True):
        row[...] = read_resized(path, preprocessing)
    return pixels


def _unchanged(path: Path, candidates: dict[Path, SplitImage]) -> bool:
    return hash_picture(path) == candidates[path].sha256
