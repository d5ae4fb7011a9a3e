"""Normalization equals a calculation by hand, and resizing weights the right neighboring pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mri_edge.errors import InputError
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.scans.resize import resize_bilinear

RGB = np.array([[[[10, 100, 200]]]], np.uint8)


@pytest.mark.parametrize(
    ("order", "scale", "mean", "deviation", "expected"),
    [
        ("RGB", 1.0, (0, 0, 0), (1, 1, 1), (10, 100, 200)),
        ("BGR", 1.0, (0, 0, 0), (1, 1, 1), (200, 100, 10)),
        ("RGB", 0.5, (0, 0, 0), (1, 1, 1), (5, 50, 100)),
        ("RGB", 1.0, (1, 2, 3), (1, 1, 1), (9, 98, 197)),
        ("RGB", 1.0, (0, 0, 3), (1, 1, 1), (10, 100, 197)),
        ("RGB", 1.0, (0, 0, 0), (2, 4, 5), (5, 25, 40)),
        ("RGB", 1.0, (0, 0, 0), (1, 1, 5), (10, 100, 40)),
        ("RGB", 1.0, (0, 0, 0), (2, 2, 2), (5, 50, 100)),
        ("BGR", 0.5, (10, 20, 1), (3, 2, 4), (30, 15, 1)),
    ],
)
def test_normalisation_by_hand(order, scale, mean, deviation, expected):
    preprocessing = Preprocessing(channel_order=order, scale=scale, mean=mean, deviation=deviation)
    for batch in (RGB, RGB.astype(np.float32)):
        found = preprocessing.normalize(batch)
        assert found.dtype == np.float32
        assert found.ravel().tolist() == pytest.approx(expected)
    assert RGB.ravel().tolist() == [10, 100, 200]


def test_the_default_is_128_by_128_from_0_to_1():
    fitted = Preprocessing().resize_picture(np.full((40, 60, 3), 255, np.uint8))
    assert fitted.shape == (128, 128, 3)
    assert Preprocessing().normalize(fitted[None]).max() == 1
    assert Preprocessing().normalize(RGB)[0, 0, 0].tolist() == pytest.approx([10 / 255, 100 / 255, 200 / 255])


def test_twice_as_large_by_hand():
    """Pixel centers are at half integers: a new pixel is 0.25 from one old pixel and 0.75 from the next."""
    row = np.array([[0, 100, 200]], np.uint8)
    picture = np.repeat(row[..., None], 3, axis=2)
    [found] = resize_bilinear([picture], 1, 6)
    assert found[0, :, 0].tolist() == [0, 25, 75, 125, 175, 200]
    [found] = resize_bilinear([picture.transpose(1, 0, 2)], 6, 1)
    assert found[:, 0, 0].tolist() == [0, 25, 75, 125, 175, 200]


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_picture_with_one_colored_pixel_is_not_gray(channel):
    picture = np.full((40, 30, 3), 100, np.uint8)
    picture[20, 10, channel] = 101 + 100
    [found] = resize_bilinear([picture], 80, 60)
    assert np.ptp(found[..., channel]) > 0
    assert all(np.ptp(found[..., other]) == 0 for other in range(3) if other != channel)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_many_pictures_of_many_sizes_come_back_in_their_order(count):
    """More pictures than one step takes, of equal and of different sizes, gray and in color."""
    rng = np.random.default_rng(count)
    sizes = [(300, 300), (128, 128), (20, 500), (1, 1)]
    pictures = []
    for (height, width), colour in itertools.product(sizes, (False, True)):
        for _ in range(count):
            channels = rng.integers(0, 256, (height, width, 3 if colour else 1), np.uint8)
            pictures.append(np.ascontiguousarray(np.broadcast_to(channels, (height, width, 3))))
    order = rng.permutation(len(pictures))
    together = resize_bilinear([pictures[place] for place in order], 128, 128)
    for row, place in zip(together, order, strict=True):
        np.testing.assert_array_equal(row, resize_bilinear([pictures[place]], 128, 128)[0])


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
    ids=lambda picture: f"{picture.dtype} {picture.shape}",
)
def test_an_invalid_picture_among_valid_ones_is_refused(picture):
    with pytest.raises(InputError, match=r"picture must be uint8 \(H, W, 3\)"):
        resize_bilinear([np.zeros((4, 4, 3), np.uint8), picture], 8, 8)
