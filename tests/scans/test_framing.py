"""The head is found and framed in a square, whatever margins and aspect ratio a file has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from mri_edge.inference.preparing import Decoded, prepare
from mri_edge.scans import framing
from mri_edge.scans.frame import Frame, gray_channel
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.scans.readers import picture
from mri_edge.scans.resize import resize_antialiased

FRAMED = Preprocessing(height=96, width=96, framing="head", resize="antialiased")


def head(height: int = 120, width: int = 100, level: int = 100) -> np.ndarray[Any, Any]:
    """Draw a bright textured ellipse on black: uint8 (height, width, 3)."""
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    gray = np.where((down / 0.8) ** 2 + (across / 0.6) ** 2 < 1, level + 20 * np.sin(9 * down + 7 * across), 0)
    return np.repeat(gray.astype(np.uint8)[:, :, None], 3, axis=2)


def test_head_box_excludes_writing_in_a_corner() -> None:
    pixels = head()
    without = framing.head_box(pixels[..., 0])
    pixels[2:5, 2:30] = 255
    # 3% of 120 rows are 3.6 pixels, so a line of writing of three pixels is below the limit in every column.
    top, left, bottom, right = framing.head_box(pixels[..., 0])
    assert (left, bottom, right) == without[1:]
    assert without == pytest.approx((12, 20, 108, 80), abs=3)
    assert top <= without[0]


def test_head_box_of_an_empty_picture_is_the_whole_picture() -> None:
    assert framing.head_box(np.zeros((50, 40), np.uint8)) == (0, 0, 50, 40)


@settings(max_examples=200, deadline=None)
@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_background_level_is_numpys_percentile(gray: np.ndarray[Any, Any]) -> None:
    assert framing.background_level(gray) == pytest.approx(max(12.0, 0.12 * float(np.percentile(gray, 99))))


def test_cut_pads_with_black_and_does_not_move_pixels() -> None:
    gray = np.arange(1, 121, dtype=np.uint8).reshape(10, 12)
    part = framing.cut(gray, (-3, 2, 8, 15))
    assert part.shape == (11, 13)
    np.testing.assert_array_equal(part[3:, :10], gray[:8, 2:])
    assert not part[:3].any()
    assert not part[:, 10:].any()


@settings(max_examples=200, deadline=None)
@given(box=st.tuples(*[st.integers(-300, 300)] * 2), size=st.tuples(*[st.integers(1, 600)] * 2))
def test_square_contains_its_box_with_the_same_center(box: tuple[int, int], size: tuple[int, int]) -> None:
    top, left, bottom, right = around = framing.square_around((*box, box[0] + size[0], box[1] + size[1]))
    assert bottom - top == right - left == max(size)
    assert top <= box[0]
    assert left <= box[1]
    assert bottom >= box[0] + size[0]
    assert right >= box[1] + size[1]
    assert abs((top + bottom) - (2 * box[0] + size[0])) <= 1, around
    assert abs((left + right) - (2 * box[1] + size[1])) <= 1, around


@pytest.mark.parametrize("margins", [(30, 0, 0, 0), (0, 50, 0, 0), (20, 20, 60, 10)])
def test_margins_of_a_file_hardly_change_the_input(margins: tuple[int, int, int, int]) -> None:
    top, left, bottom, right = margins
    padded = np.pad(head(), ((top, bottom), (left, right), (0, 0)))
    framed, stretched = FRAMED, Preprocessing(height=96, width=96)
    change, unframed = (
        np.abs(model.resize_picture(padded).astype(int) - model.resize_picture(head())).mean()
        for model in (framed, stretched)
    )
    # The box moves by a pixel or two, because what counts as writing depends on the size of the picture.
    assert change < 5 < unframed


def test_framing_keeps_the_aspect_ratio_and_centers_the_head() -> None:
    framed = FRAMED.resize_picture(head(120, 100))[..., 0] > 40
    rows, columns = np.flatnonzero(framed.any(axis=1)), np.flatnonzero(framed.any(axis=0))
    # The ellipse is 96 pixels high and 60 wide.
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(60 / 96, abs=0.03)
    assert rows[0] + rows[-1] == pytest.approx(95, abs=2)
    assert columns[0] + columns[-1] == pytest.approx(95, abs=2)
    assert np.ptp(rows) / 96 == pytest.approx(1 / (1 + 2 * framing.SQUARE_MARGIN), abs=0.03)


def test_framing_a_framed_picture_changes_little() -> None:
    section = FRAMED.section(head(200, 160))
    again = FRAMED.section(section)
    assert abs(again.shape[0] - section.shape[0]) <= 2


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (9, 3, 3), (2, 2, 3)])
def test_degenerate_pictures_are_framed(shape: tuple[int, int, int]) -> None:
    assert FRAMED.resize_picture(np.full(shape, 7, np.uint8)).shape == (96, 96, 3)


@pytest.mark.parametrize("size", [(4, 60_000), (700, 20_000), (65_535, 976)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_in_a_huge_square_is_not_framed(size: tuple[int, int], channels: int) -> None:
    pixels = np.broadcast_to(np.array([90, 80, 70][:channels], np.uint8), (*size, 3))
    assert FRAMED.section(pixels) is pixels


@pytest.mark.parametrize("model", [FRAMED, Preprocessing()], ids=["head", "picture"])
def test_an_inverted_picture_gets_a_warning_however_it_is_framed(model: Preprocessing) -> None:
    frames = [Decoded(Frame(pixels), 0.0) for pixels in (head(), 255 - head())]
    prepared = prepare(frames, model, keep_pixels=False)
    assert [[warning.code for warning in scan.warnings] for scan in prepared] == [[], ["bright_border"]]


@pytest.mark.parametrize("channels", [1, 3])
def test_antialiased_resizing_equals_pillow(channels: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (301, 203, channels), np.uint8)
    pixels = np.broadcast_to(noise, (301, 203, 3))
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((96, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_antialiased([pixels], 64, 96)[0], expected)


def test_antialiasing_averages_what_sampling_would_lose() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[::4] = 200  # every fourth row: sampling every fourth row shows either all of them or none
    antialiased = resize_antialiased([stripes], 128, 128)[0]
    assert np.abs(antialiased[8:-8].astype(int) - 50).max() <= 2


@pytest.mark.data
def test_nearly_every_real_head_is_found(scans: Path) -> None:
    """A square that is much smaller than the picture's foreground would cut off the brain."""
    files = sorted((scans / "navoneel").glob("*/*"))
    kept = []
    for file in files:
        gray = framing.to_gray(picture.load(file))
        top, left, bottom, right = framing.head_box(gray)
        kept.append(gray[top:bottom, left:right].sum(dtype=float) / gray.sum(dtype=float))
    assert np.quantile(kept, 0.01) > 0.85
    assert np.median(kept) > 0.99


def test_gray_is_the_rounded_mean_and_one_different_value_makes_a_picture_colored() -> None:
    """Each sum of three channels occurs, and each place of a value in a picture of several blocks of rows."""
    sums = np.arange(766)
    channels = [np.clip(sums - 255 * index, 0, 255).astype(np.uint8) for index in range(3)]
    colored = np.stack(channels, axis=-1)[None]
    assert np.array_equal(framing.to_gray(colored)[0], np.rint(sums / 3))
    gray = np.random.default_rng(0).integers(0, 256, (70, 9), np.uint8)
    picture = np.repeat(gray[:, :, None], 3, axis=2)
    assert np.array_equal(gray_channel(picture), gray)
    assert np.array_equal(gray_channel(picture[::-1, ::-1]), gray[::-1, ::-1])
    for row, column, channel in [(0, 0, 0), (0, 8, 1), (31, 4, 2), (69, 0, 1), (69, 8, 2)]:
        changed = picture.copy()
        changed[row, column, channel] ^= 1
        assert gray_channel(changed) is None
