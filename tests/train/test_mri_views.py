"""Test random views and drawn lesions: they are repeatable and within bounds, and hide framing and brightness."""

from __future__ import annotations

import numpy as np
import pytest

from mri_edge.scans.preprocessing import Preprocessing

pytest.importorskip("keras", reason="needs the extra 'train'")
from mri_edge.train.transforms import lesions, mri

SIZE = Preprocessing(height=64, width=48)


def head(height: int = 120, width: int = 100, level: int = 100) -> np.ndarray:
    """Draw a bright textured ellipse on black: uint8 (height, width, 3)."""
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    gray = np.where((down / 0.8) ** 2 + (across / 0.6) ** 2 < 1, level + 20 * np.sin(9 * down + 7 * across), 0)
    return np.repeat(gray.astype(np.uint8)[:, :, None], 3, axis=2)


def test_match_histogram_reproduces_the_gray_levels_of_the_reference():
    rng = np.random.default_rng(0)
    own, wanted = (rng.normal(center, 20, (128, 128)).clip(0, 255).astype(np.uint8) for center in (60, 160))
    matched = mri.match_histogram(own, wanted)
    fractions = np.linspace(0.05, 0.95, 19)
    # Rounding down and interpolating between levels cost one level each.
    np.testing.assert_allclose(np.quantile(matched, fractions), np.quantile(wanted, fractions), atol=2)
    darker, brighter = np.argsort(own.ravel())[[0, -1]]
    assert matched.ravel()[darker] <= matched.ravel()[brighter]


def test_random_state_determines_the_view():
    scan = mri.Slice.from_pixels(head())
    reference = head(level=180)[..., 0]
    for seed in range(40):  # enough to reach every branch
        views = [mri.augment(np.random.default_rng(state), scan, reference, SIZE) for state in (seed, seed, seed + 99)]
        assert views[0].dtype == np.uint8
        assert views[0].shape == (64, 48)
        assert views[0].flags.c_contiguous
        np.testing.assert_array_equal(views[0], views[1])
        assert (views[0] != views[2]).any()


def test_views_hide_brightness_and_framing():
    """The views of a dark, tightly cropped slice and of a bright one with wide margins overlap."""
    rng = np.random.default_rng(1)
    dark, bright = head(level=40)[15:105, 22:78], np.pad(head(level=190), ((30, 30), (30, 30), (0, 0)))
    reference = head(level=110)[..., 0]

    def views(pixels: np.ndarray) -> np.ndarray:
        scan = mri.Slice.from_pixels(pixels)
        return np.stack([mri.augment(rng, scan, reference, SIZE) for _ in range(150)])

    first, second = views(dark), views(bright)
    for measure in (lambda view: np.percentile(view, 95), lambda view: (view > 12).mean()):
        dark_values, bright_values = (np.array([measure(view) for view in many]) for many in (first, second))
        # A fifth of the dark, tight views exceed the median of the bright, wide ones, or the other way round.
        overlap = min(np.mean(dark_values > np.median(bright_values)), np.mean(dark_values < np.median(bright_values)))
        assert overlap > 0.05


def test_drawn_lesions_are_visible_and_inside_the_head():
    pixels = head(160, 140)[..., 0]
    rim = mri.head_box(pixels)
    for seed in range(60):
        changed = lesions.draw_lesion(np.random.default_rng(seed), pixels)
        difference = np.abs(changed.astype(int) - pixels)
        rows, columns = np.nonzero(difference > 8)
        assert len(rows) > 30
        # The mask of the head is closed and softened, so it extends a few pixels beyond the rim.
        assert rows.min() >= rim[0] - 4
        assert rows.max() <= rim[2] + 4
        assert columns.min() >= rim[1] - 4
        assert columns.max() <= rim[3] + 4
        assert (difference > 8).mean() < 0.5
        np.testing.assert_array_equal(changed, lesions.draw_lesion(np.random.default_rng(seed), pixels))


def test_no_lesion_is_drawn_without_a_head():
    empty = np.full((64, 64), 3, np.uint8)
    np.testing.assert_array_equal(lesions.draw_lesion(np.random.default_rng(0), empty), empty)
