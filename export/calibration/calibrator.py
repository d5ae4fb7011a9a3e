"""Observe every tensor of a model on the calibration images, with ONNX Runtime or LiteRT.

Images are read in small batches. Of each tensor only a histogram of fixed size and the mean of each
channel are kept, so that memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.manifest import Calibration
from mri_edge.bundles.split import Split
from mri_edge.errors import DataError
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import sha256_of

from .histogram import METHODS, Histogram, Method, Range
from .images import Pixels, draw, find_copies, pictures_in, read_batches, record, refuse_test_images

if TYPE_CHECKING:
    from mri_edge.export.exporter import Settings

# Runs a batch of pixels and returns the tensors to observe, by name.
Observer = Callable[[Pixels], Mapping[str, NDArray[np.float32]]]

HELD_OUT = 64  # training images that compare the candidates of a search; none of them calibrates


@dataclass(frozen=True)
class Recipe:
    """How to make one int8 candidate: the method that sets ranges, and whether the first layer stays in float."""

    method: Method = "minmax"
    first_in_float: bool = False


SEARCHED = tuple(Recipe(method, first) for first in (False, True) for method in METHODS)


class Observation:
    """The values of one tensor on the calibration images: their histogram, and the mean of each channel."""

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
        """Lowest and highest value to represent."""
        return self._histogram.range(method)

    @property
    def channel_means(self) -> NDArray[np.float64]:
        """Mean of each channel, float64 (channels,)."""
        return np.asarray(self._sum) / self._count


@dataclass(frozen=True)
class Calibrator:
    """The calibration images with a recipe or, if ``held_out`` has images, with a search among ``SEARCHED``."""

    files: tuple[Path, ...]
    preprocessing: Preprocessing
    record: Calibration
    recipe: Recipe = Recipe()
    held_out: tuple[Path, ...] = ()
    step: Callable[[str], None] = lambda text: None  # called with a line for each candidate

    def observe(self, observer: Observer, channel_axis: int) -> dict[str, Observation]:
        """Run the images through ``observer``; ``channel_axis`` is 1 for NCHW, -1 for NHWC."""
        observations: dict[str, Observation] = {}
        for batch in read_batches(self.files, self.preprocessing):
            for name, values in observer(batch).items():
                observations.setdefault(name, Observation(channel_axis)).add(values)
        return observations


def choose_calibration(
    split: Split,
    preprocessing: Preprocessing,
    settings: Settings,
    tests: Mapping[str, Path],
    step: Callable[[str], None] = lambda text: None,
) -> Calibrator:
    """Draw the images that calibrate and, for a search, those that compare its candidates.

    No test image is among them, not even one that a leaky split also lists for training.

    Parameters
    ----------
    tests
        The test images by ``images.digest``.
    step
        Called with a line for each candidate of a search.

    Raises
    ------
    DataError
        An image is missing or unreadable, one in ``settings.calibration`` is a test image, or none is left.
    """
    training = split.without({image.sha256 for image in split.of("test")})

    def draw_training(candidates: Split, count: int, seed: int) -> tuple[Path, ...]:
        drawn = draw(candidates.locate(settings.data, "train"), count, seed)
        # A copy of a test image in another format is recognized only when it is decoded; then one fewer is taken.
        copies = find_copies(drawn, tests, preprocessing)
        return tuple(file for file in drawn if file not in copies)

    if settings.calibration:
        files = draw(pictures_in(settings.calibration), settings.calibration_images, settings.seed)
        refuse_test_images(files, tests, preprocessing)
    else:
        files = draw_training(training, settings.calibration_images, settings.seed)
    if not files:
        raise DataError("no training image to calibrate with", "Name a folder with --calibration")
    held_out: tuple[Path, ...] = ()
    if settings.search:
        held_out = draw_training(training.without({sha256_of(file) for file in files}), HELD_OUT, settings.seed + 1)
        if not held_out:
            raise DataError("--search needs training images that do not calibrate", "Lower --calibration-images")
    method = "search" if settings.search else settings.method
    return Calibrator(
        files, preprocessing, record(files, method, settings.seed), Recipe(settings.method), held_out, step
    )
