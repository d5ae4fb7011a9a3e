"""Gray levels from stored values: the formulas of PS3.3, lookup tables against plain arithmetic, percentiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mri_edge.scans.intensity import (
    Histogram,
    LookupTable,
    Padding,
    Rescale,
    Window,
    hides_scan,
    percentile_window,
    to_gray,
)

_FUNCTIONS = ["LINEAR", "LINEAR_EXACT", "SIGMOID"]
_INTEGERS = st.sampled_from(["<i2", "<u2", ">i2", ">u2", "u1", "i1", "<i4"])


def _one_value(value: float, window: Window) -> float:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, written as the standard does, for an output of 0 to 255."""
    c, w = window.center, window.width
    if window.function == "SIGMOID":
        return float(255 / (1 + np.exp(-4 * (value - c) / w)))
    if window.function == "LINEAR":
        if value <= c - 0.5 - (w - 1) / 2:
            return 0
        if value > c - 0.5 + (w - 1) / 2:
            return 255
        return ((value - (c - 0.5)) / (w - 1) + 0.5) * 255
    if value <= c - w / 2:
        return 0
    if value > c + w / 2:
        return 255
    return ((value - c) / w + 0.5) * 255


@given(
    stored=_INTEGERS.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_dims=2, max_side=6))),
    function=st.sampled_from(_FUNCTIONS),
    center=st.floats(-5000, 5000),
    width=st.floats(1, 9000),
    slope=st.floats(-5, 5),
    intercept=st.floats(-2000, 2000),
)
def test_levels_are_those_of_the_standard(
    stored: np.ndarray, function: str, center: float, width: float, slope: float, intercept: float
) -> None:
    window = Window(center, width, function)
    gray = to_gray(stored, window, modality=Rescale(slope, intercept))
    assert gray.dtype == np.uint8
    assert gray.shape == stored.shape
    with np.errstate(over="ignore"):
        expected = [_one_value(slope * float(value) + intercept, window) for value in stored.reshape(-1)]
    assert np.abs(gray.reshape(-1) - np.array(expected)).max() <= 0.5 + 1e-6


@given(
    stored=_INTEGERS.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_dims=2, max_side=6))),
    invert=st.booleans(),
    padding=st.none() | st.tuples(st.integers(-300, 300), st.integers(0, 300)),
)
def test_integers_and_floats_give_the_same_levels(
    stored: np.ndarray, invert: bool, padding: tuple[int, int] | None
) -> None:
    window = Window(40, 400)
    pad = None if padding is None else Padding(padding[0], padding[0] + padding[1])
    by_table = to_gray(stored, window, invert=invert, padding=pad)
    by_arithmetic = to_gray(stored.astype(np.float64), window, invert=invert, padding=pad)
    np.testing.assert_array_equal(by_table, by_arithmetic)


def test_polarity_is_inverted_once_and_padding_stays_black() -> None:
    stored = np.array([[0, 100, 200, -2000]], np.int16)
    window = Window(100.5, 201)
    np.testing.assert_array_equal(to_gray(stored, window), [[0, 128, 255, 0]])
    np.testing.assert_array_equal(
        to_gray(stored, window, invert=True, padding=Padding(-2000, -2000)), [[255, 128, 0, 0]]
    )


def test_nan_is_black_and_infinity_is_an_end() -> None:
    values = np.array([np.nan, -np.inf, np.inf, 50.0])
    np.testing.assert_array_equal(to_gray(values, Window(50, 100, "LINEAR_EXACT")), [0, 0, 255, 128])


def test_a_width_of_one_leaves_two_levels() -> None:
    np.testing.assert_array_equal(to_gray(np.array([9, 10, 11], np.uint8), Window(10, 1)), [0, 255, 255])


@pytest.mark.parametrize(
    ("window", "valid"),
    [
        (Window(0, 0), False),
        (Window(0, 0.5), False),
        (Window(0, 0.5, "SIGMOID"), True),
        (Window(0, 1), True),
        (Window(float("nan"), 5), False),
        (Window(0, float("inf")), False),
    ],
)
def test_validity_of_a_width(window: Window, valid: bool) -> None:
    assert window.is_valid() is valid


def test_lookup_tables_extend_their_ends() -> None:
    table = LookupTable(10, np.array([0, 50, 100], np.uint16), bits=8)
    np.testing.assert_array_equal(table.apply(np.array([-5, 10, 11, 12, 99])), [0, 0, 50, 100, 100])
    np.testing.assert_array_equal(to_gray(np.array([10, 12], np.int16), table), [0, 100])
    assert table.to_dict()["function"] == "LUT"


@given(
    frames=_INTEGERS.filter(lambda dtype: "4" not in dtype).flatmap(
        lambda dtype: arrays.arrays(dtype, st.tuples(st.integers(1, 3), st.integers(1, 40)))
    ),
    slope=st.sampled_from([1.0, 0.5, -2.0]),
)
def test_percentiles_over_frames_are_those_of_all_values(frames: np.ndarray, slope: float) -> None:
    histogram = Histogram()
    for frame in frames:
        histogram.add(frame)
    assert histogram.counted()[1].sum() == frames.size
    window = percentile_window(histogram, Rescale(slope))
    values = np.sort(slope * frames.astype(np.float64), axis=None)
    low, high = np.percentile(values, [1, 99.5], method="inverted_cdf")
    if high > low:
        assert window.center == pytest.approx((low + high) / 2)
        assert window.width == pytest.approx(high - low)
    assert window.is_valid()
    assert window.origin == "percentiles"


def test_percentiles_of_floats_are_close_and_ignore_what_is_not_finite() -> None:
    rng = np.random.default_rng(0)
    values = rng.gamma(2, 100, 100_000)
    histogram = Histogram(values.min(), values.max())
    histogram.add(np.append(values, [np.nan, np.inf]))
    window = percentile_window(histogram)
    low, high = np.percentile(values, [1, 99.5])
    assert window.center - window.width / 2 == pytest.approx(low, abs=0.05)
    assert window.center + window.width / 2 == pytest.approx(high, abs=0.05)


def test_padding_is_no_part_of_the_percentiles() -> None:
    stored = np.concatenate([np.full(900, -2000), np.arange(100)]).astype(np.int16)
    histogram = Histogram()
    histogram.add(stored, Padding(-2000, -2000))
    window = percentile_window(histogram)
    assert window.center - window.width / 2 >= 0


@pytest.mark.parametrize("value", [0, 700])
def test_a_frame_of_one_value_is_black(value: int) -> None:
    stored = np.full((4, 4), value, np.uint16)
    histogram = Histogram()
    histogram.add(stored)
    assert not to_gray(stored, percentile_window(histogram)).any()
    assert not hides_scan(stored, np.zeros((4, 4), np.uint8))


def test_mostly_air_still_shows_what_is_there() -> None:
    stored = np.zeros(10_000, np.uint16)
    stored[:10] = 500
    histogram = Histogram()
    histogram.add(stored)
    assert to_gray(stored, percentile_window(histogram)).max() == 255


def test_a_window_far_from_the_values_hides_the_scan() -> None:
    stored = np.random.default_rng(0).integers(0, 1000, (64, 64)).astype(np.uint16)
    assert hides_scan(stored, to_gray(stored, Window(10_000, 100)))  # black
    assert hides_scan(stored, to_gray(stored, Window(-10_000, 100)))  # white
    assert not hides_scan(stored, to_gray(stored, Window(500, 1000)))


@pytest.mark.parametrize(("bright", "dark"), [(0, 0), (1, 0), (15, 0), (15, 3900), (0, 4076)])
@pytest.mark.parametrize("counted", [False, True])
def test_a_few_bright_pixels_are_not_the_whole_scan(bright: int, dark: int, counted: bool) -> None:
    """15 of 4,096 pixels are fewer than 0.5%. A slice at the end of the head is nearly all air."""
    stored = np.random.default_rng(0).integers(100, 1000, 4096).astype(np.uint16)
    stored[:dark] = 0
    stored[4096 - bright :] = 20_000
    values, counts = np.unique(stored, return_counts=True) if counted else (stored, None)

    def hidden(window: Window) -> bool:
        return hides_scan(values, to_gray(values, window), counts)

    assert not hidden(Window(500, 1000))
    assert not hidden(Window(15_000, 30_000))
    assert hidden(Window(60_000, 100))
    assert hidden(Window(-10_000, 100))


def test_a_frame_without_a_value_hides_nothing() -> None:
    assert not hides_scan(np.zeros(0, np.uint16), np.zeros(0, np.uint8))
