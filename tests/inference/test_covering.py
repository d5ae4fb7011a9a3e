"""Covering parts of a head: the outline, the axis of symmetry, and what is filled in."""

from __future__ import annotations

import numpy as np
import pytest

from mri_edge.inference.covering import Head

ROWS, COLUMNS = np.mgrid[:128, :128]


def phantom(axis: float = 64, side: int = 128) -> np.ndarray:
    """A symmetric head with texture, about a vertical axis, and a bright spot on its left; uint8 (side, side, 3)."""
    rows, columns = np.mgrid[:side, :side] * (128 / side)
    distance = np.abs(columns - axis)
    inside = ((rows - 64) / 52) ** 2 + (distance / 40) ** 2 <= 1
    gray = np.where(inside, 90 + 30 * np.sin(distance / 4) * np.cos(rows / 5), 0)
    gray[spot(axis, side)] = 220
    return np.repeat(np.rint(gray).astype(np.uint8)[..., None], 3, axis=2)


def spot(axis: float = 64, side: int = 128, radius: float = 8) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] * (128 / side)
    return (rows - 60) ** 2 + (columns - (axis - 20)) ** 2 <= radius**2


@pytest.mark.parametrize("axis", [50, 64, 75])
@pytest.mark.parametrize("fill", ["mirrored half", "surroundings with mirrored detail"])
def test_a_covered_spot_looks_like_the_healthy_half(axis, fill):
    pixels = phantom(axis)
    head = Head(pixels)
    mask = spot(axis, radius=10).astype(np.float32)[None]
    covered = head.cover(mask, fill)[0, ..., 0].astype(float)
    healthy = pixels[:, :, 0].astype(float)[:, np.clip(np.rint(2 * axis - np.arange(128)).astype(int), 0, 127)]
    inner = spot(axis, radius=6)
    assert np.abs(covered - healthy)[inner].mean() < 15
    assert np.abs(pixels[..., 0] - healthy)[inner].mean() > 80
    outside = ~spot(axis, radius=11)
    np.testing.assert_array_equal(covered[outside], pixels[outside][:, 0])


def test_nothing_outside_the_head_is_changed():
    pixels = phantom()
    pixels[:20, :20] = 3  # noise in the air
    head = Head(pixels)
    assert not head.mask[:20, :20].any()
    everything = np.ones((1, 128, 128), np.float32)
    covered = head.cover(everything, "mirrored half")[0]
    np.testing.assert_array_equal(covered[~head.mask], pixels[~head.mask])


def test_the_outline_has_no_holes_and_no_specks():
    pixels = phantom()
    pixels[50:70, 60:68] = 0  # a dark ventricle
    pixels[2:4, 2:4] = 255
    mask = Head(pixels).mask
    assert mask[50:70, 60:68].all()
    assert not mask[:10, :10].any()
    assert np.mean(mask) == pytest.approx(np.pi * 52 * 40 / 128**2, rel=0.05)


@pytest.mark.parametrize("value", [0, 255])
def test_a_picture_without_a_head_is_all_head(value):
    head = Head(np.full((128, 128, 3), value, np.uint8))
    assert head.mask.all()
    covered = head.cover(np.ones((2, 128, 128), np.float32), "surroundings with mirrored detail")
    assert np.abs(covered.astype(int) - value).max() <= 1


@pytest.mark.parametrize("size", [(3, 3), (1, 40), (37, 64), (256, 256)])
def test_other_sizes(size):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    head = Head(pixels)
    assert head.mask.shape == head.mirrored.shape == size
    assert head.cover(np.ones((1, *size), np.float32), "mirrored half").shape == (1, *size, 3)


def test_lengths_are_scaled_to_the_input():
    small, large = Head(phantom(axis=58)), Head(phantom(axis=58, side=256))
    assert np.mean(small.mask) == pytest.approx(np.mean(large.mask), rel=0.03)
    mask = spot(58, 256, radius=10).astype(np.float32)[None]
    covered = large.cover(mask, "mirrored half")[0, ..., 0]
    assert covered[spot(58, 256, radius=6)].mean() < 125


def test_colors_keep_their_differences():
    pixels = phantom()
    pixels[..., 0] = np.minimum(pixels[..., 0].astype(int) + 20, 255) * (pixels[..., 0] > 0)
    covered = Head(pixels).cover(spot(radius=10).astype(np.float32)[None], "mirrored half")[0].astype(int)
    difference = (covered[..., 0] - covered[..., 1])[spot(radius=6)]
    assert np.abs(difference - 20).max() <= 1
