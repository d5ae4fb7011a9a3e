"""Test that augmentation draws and warps as Keras' ``ImageDataGenerator`` does, and is repeatable."""

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the extra 'train'")

from keras.src.legacy.preprocessing import image as keras_image

from mri_edge.train.recipes.base import Augmentation
from mri_edge.train.recipes.reference import REFERENCE
from mri_edge.train.transforms import affine


def by_keras(pixels, transform):
    picture = keras_image.apply_affine_transform(
        pixels.astype(np.float32),
        theta=transform.rotation,
        tx=transform.down,
        ty=transform.right,
        shear=transform.shear,
        zx=transform.zoom_rows,
        zy=transform.zoom_columns,
        row_axis=0,
        col_axis=1,
        channel_axis=2,
        fill_mode="nearest",
        order=1,
    )
    return picture[:, ::-1] if transform.flip else picture


@pytest.mark.parametrize("size", [(128, 128), (31, 57), (1, 1)])
def test_apply_equals_keras_affine_transform(size):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    for _ in range(20):
        transform = affine.draw(rng, REFERENCE.transforms, *size)
        # Keras uses double precision, this project single: 24 bits of 255 are 1.5e-5, times three blends.
        np.testing.assert_allclose(affine.apply(pixels, transform), by_keras(pixels, transform), atol=2e-4)


def test_draw_stays_within_the_ranges_of_image_data_generator():
    ranges = REFERENCE.transforms
    rng = np.random.default_rng(2)
    drawn = [affine.draw(rng, ranges, 100, 200) for _ in range(3000)]
    # The extremes of 3000 uniform draws are within 1% of the ends, except with a probability below 1e-12.
    for values, low, high in (
        ([transform.rotation for transform in drawn], -30, 30),
        ([transform.down for transform in drawn], -20, 20),
        ([transform.right for transform in drawn], -40, 40),
        ([transform.shear for transform in drawn], -0.2, 0.2),
        ([transform.zoom_rows for transform in drawn], 0.8, 1.2),
        ([transform.zoom_columns for transform in drawn], 0.8, 1.2),
    ):
        assert low <= min(values) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < max(values) <= high
    # For 3000 tosses of a fair coin, 5 standard deviations are 0.046.
    assert np.mean([transform.flip for transform in drawn]) == pytest.approx(0.5, abs=0.046)


def test_empty_augmentation_changes_nothing():
    pixels = np.random.default_rng(3).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    transform = affine.draw(np.random.default_rng(3), Augmentation(), 9, 7)
    np.testing.assert_array_equal(affine.apply(pixels, transform), pixels)
