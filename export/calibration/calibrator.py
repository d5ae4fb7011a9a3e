"""Choose the calibration images, run them through a model, and search for the best int8 recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.manifest import Calibration
from mri_edge.bundles.split import Split
from mri_edge.engines import open_engine
from mri_edge.errors import DataError
from mri_edge.export.formats import Converted
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import sha256_of

from .images import Pixels, draw, find_copies, pictures_in, read_batches, record, refuse_test_images
from .observation import METHODS, Method, Observation

if TYPE_CHECKING:
    from mri_edge.export.exporter import Settings

# Runs a batch of pixels and returns the tensors to observe, by name.
Observer = Callable[[Pixels], Mapping[str, NDArray[np.float32]]]

HELD_OUT = 64  # training images on which a search compares its candidates; not used for calibration


@dataclass(frozen=True)
class Recipe:
    """How to make an int8 artifact: the method that sets ranges, and whether the first layer stays in float."""

    method: Method = "minmax"
    first_in_float: bool = False


SEARCHED = tuple(Recipe(method, first) for first in (False, True) for method in METHODS)


@dataclass(frozen=True)
class Calibrator:
    """The calibration images, and the recipe to build with. If there are ``held_out`` images, a search chooses it.

    ``record`` goes into the manifest. ``step`` is called with a line of text for each candidate of a search.
    """

    files: tuple[Path, ...]
    preprocessing: Preprocessing
    record: Calibration
    recipe: Recipe = Recipe()
    held_out: tuple[Path, ...] = ()
    step: Callable[[str], None] = lambda text: None

    def observe(self, observer: Observer, channel_axis: int) -> dict[str, Observation]:
        """Run the images through ``observer``, batch by batch; ``channel_axis`` is 1 for NCHW, -1 for NHWC."""
        observations: dict[str, Observation] = {}
        for batch in read_batches(self.files, self.preprocessing):
            for name, values in observer(batch).items():
                observations.setdefault(name, Observation(channel_axis)).add(values)
        return observations

    def build_best(
        self,
        build: Callable[[Recipe], Converted],
        reference: bytes,
        suffix: str,
        searched: tuple[Recipe, ...] = SEARCHED,
    ) -> Converted:
        """Build the artifact of ``recipe`` or, if there are ``held_out`` images, of the best of ``searched``.

        Parameters
        ----------
        build
            Returns an artifact's bytes, and facts about how it was made, from a recipe.
        reference
            Bytes of the float artifact. The candidate with the smallest mean |Δp| from it on the held-out images wins.
        suffix
            File name suffix of both, which decides the engine.
        """
        calibration = {"calibration": asdict(self.record)}
        if not self.held_out:
            content, facts = build(self.recipe)
            return content, {**facts, **calibration, "recipe": asdict(self.recipe)}
        batches = list(read_batches(self.held_out, self.preprocessing))
        expected = _probabilities(reference, suffix, batches)
        candidates = []
        for number, recipe in enumerate(searched, 1):
            layer = "float" if recipe.first_in_float else "integers"
            self.step(f"trying {recipe.method} ranges, first layer in {layer}: {number} of {len(searched)}")
            content, facts = build(recipe)
            difference = float(np.abs(_probabilities(content, suffix, batches) - expected).mean())
            if np.isnan(difference):  # min() would keep a NaN that comes first
                difference = np.inf
            candidates.append((difference, recipe, content, facts))
        _, best, content, facts = min(candidates, key=lambda candidate: candidate[0])
        tried = [
            {**asdict(recipe), "mean_difference": difference if np.isfinite(difference) else None}
            for difference, recipe, _, _ in candidates
        ]
        search = {"images": len(self.held_out), "tried": tried}
        return content, {**facts, **calibration, "recipe": asdict(best), "search": search}


def choose_calibration(
    split: Split,
    preprocessing: Preprocessing,
    settings: Settings,
    tests: Mapping[str, Path],
    step: Callable[[str], None] = lambda text: None,
) -> Calibrator:
    """Draw the calibration images and, for a search, the held-out images.

    Test images are left out, even those that a leaky split also lists for training.

    Parameters
    ----------
    tests
        The test images by ``images.digest``.
    step
        Called with a line of text for each candidate of a search.

    Raises
    ------
    DataError
        An image is missing or unreadable, one in ``settings.calibration`` is a test image, or no image is left.
    """
    training = split.without({image.sha256 for image in split.of("test")})

    def draw_training(candidates: Split, count: int, seed: int) -> tuple[Path, ...]:
        drawn = draw(candidates.locate(settings.data, "train"), count, seed)
        # Copies of test images in other formats are recognized only by their pixels, so they are removed after drawing.
        copies = find_copies(drawn, tests, preprocessing)
        return tuple(file for file in drawn if file not in copies)

    if settings.calibration:
        files = draw(pictures_in(settings.calibration), settings.calibration_images, settings.seed)
        refuse_test_images(files, tests, preprocessing)
    else:
        files = draw_training(training, settings.calibration_images, settings.seed)
    if not files:
        raise DataError("there is no training image to calibrate with", "Name a folder with --calibration")
    held_out: tuple[Path, ...] = ()
    if settings.search:
        held_out = draw_training(training.without({sha256_of(file) for file in files}), HELD_OUT, settings.seed + 1)
        if not held_out:
            raise DataError("--search needs training images beyond those for calibration", "Lower --calibration-images")
    method = "search" if settings.search else settings.method
    return Calibrator(
        files, preprocessing, record(files, method, settings.seed), Recipe(settings.method), held_out, step
    )


def _probabilities(content: bytes, suffix: str, batches: list[Pixels]) -> NDArray[np.float32]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        path.write_bytes(content)
        with closing(open_engine(path, provider="cpu")) as engine:
            return np.concatenate([engine.run(batch) for batch in batches])
