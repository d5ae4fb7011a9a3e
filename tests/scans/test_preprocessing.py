"""Resizing equals OpenCV's INTER_LINEAR, and normalization follows the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_edge.errors import InputError
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.scans.readers import picture as images
from mri_edge.scans.resize import resize_bilinear


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _resize(pixels: np.ndarray[Any, Any], height: int, width: int) -> np.ndarray[Any, Any]:
    return resize_bilinear([pixels], height, width)[0]


def _apart(pixels: np.ndarray[Any, Any], height: int, width: int) -> int:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is the peer that the resizer is compared with (group 'dev')")
    peer = cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=cv2.INTER_LINEAR)
    ours = _resize(pixels, height, width)
    assert ours.shape == peer.shape
    assert ours.dtype == np.uint8
    return int(np.abs(ours.astype(np.int16) - peer).max())


# OpenCV takes another path on some CPUs (SIMD, IPP, halving by area) whose last rounding differs by
# one step; the reference's accuracy was measured through OpenCV, and one step of 255 moves no label.
STEP = 1


@pytest.mark.data
def test_resizing_equals_opencv_on_real_scans(scans: Path) -> None:
    files = sorted((scans / "navoneel").glob("*/*"))
    assert len(files) == 253
    assert max(_apart(images.load(path), 128, 128) for path in files) <= STEP


@settings(max_examples=300, deadline=None)
@given(
    source=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    target=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    seed=st.integers(0, 2**32 - 1),
)
def test_resizing_equals_opencv_at_any_size(source: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    assert _apart(_noise(*source, seed), *target) <= STEP


@pytest.mark.parametrize(
    "source",
    [(1, 1), (1, 500), (500, 1), (2, 2), (127, 129), (128, 256), (256, 256), (255, 257), (1024, 1024), (64, 64)],
    ids=str,
)
@pytest.mark.parametrize("noise", [True, False], ids=["noise", "steps"])
def test_resizing_equals_opencv_at_the_edges(source: tuple[int, int], noise: bool) -> None:
    pixels = _noise(*source)
    if not noise:  # black and white alone: the largest sums
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
    assert _apart(pixels, 128, 128) <= STEP


def test_resizing_equals_opencv_on_a_very_long_picture() -> None:
    assert _apart(_noise(3, 40_000), 128, 128) <= STEP


@settings(max_examples=100, deadline=None)
@given(size=st.tuples(st.integers(1, 300), st.integers(1, 300)), seed=st.integers(0, 2**32 - 1))
def test_a_gray_view_of_three_channels_is_resized_like_a_copy(size: tuple[int, int], seed: int) -> None:
    grey = _noise(*size, seed)[:, :, :1]
    view = np.broadcast_to(grey, (*size, 3))
    np.testing.assert_array_equal(_resize(view, 128, 128), _resize(np.repeat(grey, 3, 2), 128, 128))


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_a_uniform_gray_level_is_unchanged(level: int) -> None:
    pixels = np.full((301, 77, 3), level, np.uint8)
    assert (_resize(pixels, 128, 128) == level).all()


def test_layout_of_the_source_makes_no_difference() -> None:
    pixels = _noise(200, 150)
    wanted = _resize(pixels, 128, 128)
    for view in (np.asfortranarray(pixels), pixels[::-1][::-1], np.dstack([pixels, pixels])[:, :, :3]):
        np.testing.assert_array_equal(_resize(view, 128, 128), wanted)


@pytest.mark.parametrize("size", [(200, 150), (128, 128)], ids=str)
def test_result_is_contiguous(size: tuple[int, int]) -> None:
    for pixels in (_noise(*size), np.broadcast_to(_noise(*size)[:, :, :1], (*size, 3))):
        result = _resize(pixels, 128, 128)
        assert result.flags.c_contiguous
        assert result.shape == (128, 128, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_an_invalid_picture_is_named(wrong: np.ndarray[Any, Any]) -> None:
    with pytest.raises(InputError, match="picture must be uint8") as caught:
        _resize(wrong, 128, 128)
    assert f"{wrong.dtype} {wrong.shape}" in str(caught.value)


def test_pictures_resized_together_equal_those_resized_alone() -> None:
    sizes = [(256, 256), (128, 128), (300, 200), (256, 256), (2000, 1500), (3, 40_000)]
    colour = [_noise(*size, seed) for seed, size in enumerate(sizes)]
    grey = [np.broadcast_to(picture[:, :, :1], picture.shape) for picture in colour]
    pictures = [*colour, *grey, *grey * 2, *colour[:4] * 3]
    together = resize_bilinear(pictures, 128, 128)
    for picture, fitted in zip(pictures, together, strict=True):
        np.testing.assert_array_equal(fitted, _resize(picture, 128, 128))


def test_an_empty_list_of_pictures_gives_an_empty_batch() -> None:
    assert resize_bilinear([], 128, 96).shape == (0, 128, 96, 3)


def test_pictures_are_resized_to_the_size_of_the_manifest() -> None:
    assert Preprocessing(height=96, width=112).resize_picture(_noise(20, 30)).shape == (96, 112, 3)


# --- normalisation


def test_default_scales_to_0_and_1_only() -> None:
    batch = _noise(128, 128)[None]
    np.testing.assert_array_equal(Preprocessing().normalize(batch), batch.astype(np.float32) * np.float32(1 / 255))


def test_bgr_turns_the_channels_before_mean_and_deviation() -> None:
    recipe = Preprocessing(channel_order="BGR", scale=1, mean=(10, 20, 30), deviation=(1, 2, 4))
    batch = np.array([[[[100, 120, 134]]]], np.uint8)  # red, green, blue
    np.testing.assert_array_equal(recipe.normalize(batch), [[[[124, 50, 17.5]]]])  # blue, green, red


def test_normalization_equals_torchvision() -> None:
    # torchvision.transforms.functional: to_tensor divides by 255, normalize subtracts and divides.
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batch = _noise(16, 16)[None]
    wanted = (batch / np.float64(255) - mean) / deviation
    found = Preprocessing(mean=mean, deviation=deviation).normalize(batch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)  # float32 against float64


def test_normalise_takes_floats_and_leaves_its_input() -> None:
    recipe = Preprocessing(mean=(0.5, 0.5, 0.5), deviation=(0.5, 0.5, 0.5))
    for dtype in (np.uint8, np.float32, np.float64):
        batch = _noise(8, 8)[None].astype(dtype)
        before = batch.copy()
        found = recipe.normalize(batch)
        np.testing.assert_array_equal(batch, before)
        assert found.dtype == np.float32
        assert found.min() >= -1
        assert found.max() <= 1 + 1e-6  # 255 * float32(1 / 255) rounds up
    assert recipe.normalize(np.empty((0, 8, 8, 3), np.uint8)).shape == (0, 8, 8, 3)
