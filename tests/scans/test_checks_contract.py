"""Each pixel rule on both sides of its limit: images just inside pass, images just outside are warned about."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mri_edge.inference.out_of_distribution import OutOfDistributionCheck, distances
from mri_edge.scans.checks import warnings_for

SIDE = 128


def plain() -> np.ndarray:
    """Return a dark picture with a bright block, which gets no warning."""
    grey = np.zeros((SIDE, SIDE), np.uint8)
    grey[30:90, 30:90] = 90
    return grey


def warnings_about(grey: np.ndarray, size: tuple[int, int] = (SIDE, SIDE)) -> tuple[str, ...]:
    fitted = grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)
    return tuple(map(str, warnings_for([size], fitted[None])[0]))


def rule_names(found: tuple[str, ...]) -> list[str]:
    return [item.removeprefix("may be no brain scan: ").split(":")[0].split(",")[0] for item in found]


def test_the_plain_picture_of_these_tests_gets_no_warning():
    assert warnings_about(plain()) == ()


@pytest.mark.parametrize(
    ("size", "found"),
    [
        ((100, 100), ()),
        ((99, 150), ("may be no brain scan: tiny: 150 x 99 pixels",)),
        ((150, 99), ("may be no brain scan: tiny: 99 x 150 pixels",)),
        ((100, 200), ()),
        ((200, 100), ()),
        ((100, 201), ("may be no brain scan: long and narrow: 201 x 100 pixels",)),
        ((401, 200), ("may be no brain scan: long and narrow: 200 x 401 pixels",)),
    ],
)
def test_size_and_shape_are_those_of_the_picture_as_it_came(size, found):
    assert warnings_about(plain(), size) == found


@pytest.mark.parametrize(("level", "found"), [(120, []), (121, ["bright at the border"])])
def test_a_border_up_to_120_gets_no_warning(level, found):
    grey = np.full((SIDE, SIDE), 60, np.uint8)
    grey[[0, -1]] = level
    grey[:, [0, -1]] = level
    assert rule_names(warnings_about(grey)) == found


SIDES = {"top": np.s_[0, :], "bottom": np.s_[-1, :], "left": np.s_[:, 0], "right": np.s_[:, -1]}


@pytest.mark.parametrize("bright", list(itertools.combinations(SIDES, 2)), ids="-".join)
def test_every_side_of_the_border_counts(bright):
    """Two white sides of four: a mean of 127 to 130. One white side: 64."""
    grey = plain()
    grey[SIDES[bright[0]]] = 255
    assert rule_names(warnings_about(grey)) == []
    grey[SIDES[bright[1]]] = 255
    assert rule_names(warnings_about(grey)) == ["bright at the border"]


@pytest.mark.parametrize(("brightest", "found"), [(100, []), (99, ["blank"])])
def test_fifty_grey_levels_are_enough(brightest, found):
    grey = np.full((SIDE, SIDE), 50, np.uint8)
    grey[40:80, 40:80] = brightest
    assert rule_names(warnings_about(grey)) == found


def test_a_blank_picture_gets_no_further_warning():
    assert rule_names(warnings_about(np.full((SIDE, SIDE), 255, np.uint8))) == ["blank"]


@pytest.mark.parametrize(("step", "found"), [(35, []), (36, ["as restless as noise"])])
@pytest.mark.parametrize("down", [False, True])
def test_neighbours_may_differ_by_35_on_average(step, found, down):
    """Stripes on a slope: each pixel differs from the next in its row by ``step``."""
    slope = np.linspace(0, 60, SIDE).astype(np.uint8)[:, None]
    grey = slope + np.where(np.arange(SIDE) % 2 == down, step, 0).astype(np.uint8)
    assert rule_names(warnings_about(grey)) == found


@pytest.mark.parametrize("tint", [c for c in itertools.product((0, 1), repeat=3) if 0 < sum(c) < 3])
@pytest.mark.parametrize(
    ("strength", "pixels", "found"),
    [(25, 20, []), (25, 21, ["coloured"]), (24, 1024, [])],
    ids=["too few", "enough", "too weak"],
)
def test_colour_counts_where_it_is_strong_and_wide(tint, strength, pixels, found):
    """The rule samples 1,024 pixels, and 2% of them are 20.5."""
    picture = np.repeat(plain()[..., None], 3, axis=2)
    looked_at = picture[::4, ::4].reshape(-1, 3).copy()
    looked_at[:pixels] += (np.array(tint) * strength).astype(np.uint8)
    picture[::4, ::4] = looked_at.reshape(SIDE // 4, SIDE // 4, 3)
    assert rule_names(warnings_about(picture)) == found


def test_each_picture_of_a_batch_gets_its_own_warnings():
    bright = np.full((SIDE, SIDE), 255, np.uint8)
    bright[40:80, 40:80] = 0
    fitted = np.stack([np.repeat(image[..., None], 3, axis=2) for image in (plain(), bright, plain())])
    found = warnings_for([(SIDE, SIDE), (SIDE, SIDE), (50, 60)], fitted)
    assert [rule_names(tuple(map(str, item))) for item in found] == [[], ["bright at the border"], ["tiny"]]


# --- how far from the training images

PLANE = np.array([[1, 2, 3], [1, 0, 0], [0, 1, 0]], np.float32)  # a mean and two directions; the third is outside


@pytest.mark.parametrize(
    ("features", "distance"),
    [([1, 4, 9], 0), ([100, 49, 9], 0), ([1, 4, 16], 1), ([1, 4, 1], 2), ([25, 0, 0], 3), ([1, 4, -4], 3)],
)
def test_only_the_part_outside_all_directions_counts(features, distance):
    """The square root comes first, and treats values below 0 as 0."""
    found = distances(np.array([features, [1, 4, 9]], np.float32), PLANE)
    assert found.tolist() == pytest.approx([distance, 0], abs=2e-3)  # a difference of squares, in float32
    assert found.dtype == np.float32


@pytest.mark.parametrize(("limit", "doubted"), [(1.0, [False, False, True]), (0.99, [False, True, True])])
def test_a_distance_at_the_limit_gets_no_warning(limit, doubted):
    features = np.array([[1, 4, 9], [1, 4, 16], [1, 4, 25]], np.float32)
    found = OutOfDistributionCheck(PLANE, limit).warnings_for(features)
    assert [bool(item) for item in found] == doubted
    assert [str(warning) for warning in found[2]] == [f"unlike the training images: distance 2.00, limit {limit:.2f}"]
