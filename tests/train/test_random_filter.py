"""Random filters change textures and gray levels and keep shapes and brightness; only recipes that ask draw them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the extra 'train'")

from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.recipes.base import ScanViews
from mri_edge.train.transforms import mri
from mri_edge.train.transforms.mri import Slice, augment
from mri_edge.train.transforms.random_filter import random_filter

SIZE = 64
DOWN, ACROSS = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
DISC = np.hypot(DOWN, ACROSS) < 0.5
HEAD = np.where(DISC, 160, 60).astype(np.float32)


def filtered(seed: int, field: np.ndarray = HEAD) -> np.ndarray:
    return random_filter(np.random.default_rng(seed), field)


def test_result_depends_on_the_seed_alone_and_input_is_unchanged() -> None:
    before = HEAD.copy()
    np.testing.assert_array_equal(filtered(3), filtered(3))
    assert not np.array_equal(filtered(3), filtered(4))
    np.testing.assert_array_equal(HEAD, before)


@pytest.mark.parametrize("field", [HEAD, 0 * HEAD, 0 * HEAD + 255, HEAD[:1, :1], HEAD[:, :3]])
def test_any_field_stays_one_of_gray_levels(field: np.ndarray) -> None:
    for seed in range(50):
        found = filtered(seed, field)
        assert (found.shape, found.dtype) == (field.shape, np.float32)
        assert np.isfinite(found).all()
        assert found.min() >= 0
        assert found.max() <= 255


def test_brightness_and_shapes_stay_while_gray_levels_and_contrast_change() -> None:
    results = np.stack([filtered(seed) for seed in range(200)])
    inside, outside = results[:, DISC].mean(axis=1), results[:, ~DISC].mean(axis=1)
    # The mean square stays, except where levels are clipped.
    strength = np.sqrt(np.mean(np.square(results), axis=(1, 2)))
    assert np.mean(np.isclose(strength, np.sqrt(np.mean(np.square(HEAD))), rtol=0.01)) > 0.6
    # A disc remains a disc: in most draws its level differs from that around it, in either direction.
    assert np.mean(np.abs(inside - outside) > 10) > 0.75
    assert np.mean(inside < outside) > 0.02
    assert np.std(inside) > 10


def test_only_recipes_with_filters_draw_them(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = Slice.from_pixels(np.repeat(HEAD.astype(np.uint8)[:, :, None], 3, axis=2))
    preprocessing = Preprocessing(height=SIZE, width=SIZE)
    untouched = ScanViews(untouched_probability=0.0)
    drawn = []

    def watch(rng: np.random.Generator, field: np.ndarray) -> np.ndarray:
        drawn.append(None)
        return random_filter(rng, field)

    monkeypatch.setattr(mri, "random_filter", watch)

    def views(transforms: ScanViews) -> np.ndarray:
        rngs = (np.random.default_rng(seed) for seed in range(8))
        return np.stack([augment(rng, scan, scan.gray, preprocessing, transforms=transforms) for rng in rngs])

    plain = views(untouched)
    assert not drawn
    always = views(dataclasses.replace(untouched, filter_probability=1.0))
    assert len(drawn) == len(always)
    assert not any(np.array_equal(*pair) for pair in zip(plain, always, strict=True))
